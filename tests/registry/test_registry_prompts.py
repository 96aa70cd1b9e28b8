"""Prompts: versions, labels, placeholders."""

from typing import Any

import pytest

from llmray.errors import InputError, NotFoundError
from llmray.registry.records import PromptRecord
from llmray.registry.registry import Registry


def _put(registry: Registry, text: str, **settings: Any) -> PromptRecord:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return registry.put_prompt("ask-docs", messages=messages, settings=settings, message="try", author="ada")


def test_same_content_same_version(registry: Registry) -> None:
    first = _put(registry, "What does {symbol} of {module} do? Use {{braces}} and {symbol}.")
    second = _put(registry, "Explain {symbol}.")
    again = _put(registry, "What does {symbol} of {module} do? Use {{braces}} and {symbol}.")
    warmer = _put(registry, "Explain {symbol}.", temperature=0.5)
    assert [record.version for record in (first, second, again, warmer)] == [1, 2, 1, 3]
    assert first == again
    assert first.variables == ["symbol", "module"]
    assert registry.prompt("ask-docs:2") == second == registry.prompt(second.digest[:16])
    assert registry.prompt("ask-docs@latest") == warmer
    assert [record.version for record in registry.prompts("ask-docs")] == [3, 2, 1]
    assert registry.prompts("other") == []


def test_labels_are_aliases(registry: Registry) -> None:
    first, second = _put(registry, "one"), _put(registry, "two")
    for record in (first, second):
        registry.move_alias("ask-docs", "production", record.digest, kind="prompt", actor="ada", reason="reads better")
    assert registry.prompt("ask-docs@production") == second
    registry.rollback("ask-docs", "production", kind="prompt", actor="ada", reason="it did not")
    assert registry.prompt("ask-docs@production") == first


@pytest.mark.parametrize("text", ["{", "}", "{user.key}", "{0}", "{}", "{a!r}", "{a:>10}", "{a[0]}"])
def test_only_plain_placeholders(registry: Registry, text: str) -> None:
    with pytest.raises(InputError, match=r"placeholder|stray brace"):
        _put(registry, text)
    assert registry.prompts() == []


def test_a_prompt_that_does_not_exist(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="there is no prompt yet"):
        registry.prompt("ask-docs@production")
    _put(registry, "one")
    with pytest.raises(NotFoundError, match="ask-docs has versions up to 1 and the aliases latest"):
        registry.prompt("ask-docs@production")
    with pytest.raises(NotFoundError, match="there are ask-docs"):
        registry.prompt("ask:1")
    with pytest.raises(InputError, match="at least one message"):
        registry.put_prompt("empty", messages=[], settings={}, message="", author="ada")
    with pytest.raises(InputError, match="role and content"):
        registry.put_prompt("empty", messages=[{"role": "user"}], settings={}, message="", author="ada")
