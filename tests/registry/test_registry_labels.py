"""Labels of prompts: splits, protection, deletion, and a log that says it all."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_values import fresh

from llmray.errors import GateRefusedError, InputError, NotFoundError
from llmray.registry.records import AliasEvent
from llmray.registry.registry import Registry

YES = {"decision": "promote", "tasks": {"heldout": {"p": 0.01}}}
HAND = {"actor": "ada", "reason": "because"}


@pytest.fixture
def digests(registry: Registry) -> list[str]:
    """Three versions of `ask`, and one of `tell`."""
    return [_put(registry, "ask", text) for text in ("one", "two", "three")] + [_put(registry, "tell", "four")]


def test_a_label_is_split_among_versions_and_rolled_back_in_one_event(registry: Registry, digests: list[str]) -> None:
    registry.label_prompt("ask", "production", {"1": 1.0}, **HAND)
    event = registry.label_prompt("ask", "production", {"ask:2": 3, digests[0][:16]: 1}, **HAND)
    assert (event.digest, event.weights, event.previous) == (digests[1], {digests[1]: 3, digests[0]: 1}, digests[0])
    split = registry.prompt_split("ask@production")
    assert [(record.version, weight) for record, weight in split] == [(1, 1.0), (2, 3.0)]
    assert registry.prompt("ask@production").version == 2
    [label] = [one for one in registry.aliases("ask", "prompt") if one.alias == "production"]
    assert label.weights == event.weights
    registry.rollback("ask", "production", kind="prompt", **HAND)
    assert [(record.version, weight) for record, weight in registry.prompt_split("ask@production")] == [(1, 1.0)]
    assert registry.prompt_split("ask:3")[0][0].version == 3


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({}, "needs versions"),
        ({"1": 1, "2": 0}, "above zero"),
        ({"1": 1, "2": float("nan")}, "above zero"),
        ({"1": 1, "ask:1": 1}, "the same version"),
        ({"9": 1}, "ask has versions up to 3"),
        ({"0": 1}, "is no reference"),
        ({"tell:1": 1}, "does not exist"),
    ],
)
def test_impossible_splits_are_refused(
    registry: Registry, digests: list[str], versions: Mapping[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        registry.label_prompt("ask", "production", versions, **HAND)
    assert registry.alias_events("ask", "production") == []


def test_a_protected_label_moves_only_with_evidence_and_back_without(registry: Registry, digests: list[str]) -> None:
    registry.protect_alias("ask", "production", kind="prompt", **HAND)
    assert registry.alias("ask", "production", "prompt") is None
    for evidence in (None, {"decision": "hold"}):
        with pytest.raises(GateRefusedError, match="ask@production stays where it is"):
            registry.label_prompt("ask", "production", {"1": 1}, **HAND, evidence=evidence)
    for version in ("1", "2"):
        registry.label_prompt("ask", "production", {version: 1}, **HAND, evidence=YES)
    with pytest.raises(GateRefusedError, match="protected"):
        registry.delete_alias("ask", "production", kind="prompt", **HAND)
    assert [one.protected for one in registry.aliases("ask")] == [False, True]
    assert registry.rollback("ask", "production", kind="prompt", **HAND).digest == digests[0]
    registry.protect_alias("ask", "production", False, kind="prompt", **HAND)
    registry.label_prompt("ask", "production", {"3": 1}, **HAND)
    with pytest.raises(InputError, match="latest of a prompt follows"):
        registry.protect_alias("ask", "latest", kind="prompt", **HAND)
    with pytest.raises(NotFoundError, match="no prompt nobody"):
        registry.protect_alias("nobody", "production", kind="prompt", **HAND)


def test_a_deleted_label_names_nothing_and_keeps_its_history(registry: Registry, digests: list[str]) -> None:
    for version in ("1", "2"):
        registry.label_prompt("ask", "staging", {version: 1}, **HAND)
    event = registry.delete_alias("ask", "staging", kind="prompt", **HAND)
    assert (event.type, event.digest, event.previous) == ("delete", None, digests[1])
    for ask in (registry.prompt, registry.prompt_split):
        with pytest.raises(NotFoundError, match="the aliases latest"):
            ask("ask@staging")
    for again in (registry.rollback, registry.delete_alias):
        with pytest.raises(NotFoundError, match="no prompt alias"):
            again("ask", "staging", kind="prompt", **HAND)
    registry.label_prompt("ask", "staging", {"3": 1}, **HAND)
    with pytest.raises(NotFoundError, match="nothing to go back to"):
        registry.rollback("ask", "staging", kind="prompt", **HAND)
    assert [one.type for one in registry.alias_events("ask", "staging")] == ["move", "move", "delete", "move"]


_moves = st.dictionaries(st.sampled_from("123"), st.integers(1, 9), min_size=1)
_steps = st.lists(
    st.one_of(_moves, st.sampled_from(["rollback", "delete", "protect", "unprotect"])), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps)
def test_the_log_replayed_gives_the_label(registry: Registry, digests: list[str], steps: list[Any]) -> None:
    label, place = fresh(), {"kind": "prompt", **HAND}
    written = 0
    for step in steps:
        try:
            if isinstance(step, dict):
                registry.label_prompt("ask", label, step, **HAND)
            elif step == "rollback":
                registry.rollback("ask", label, **place)
            elif step == "delete":
                registry.delete_alias("ask", label, **place)
            else:
                registry.protect_alias("ask", label, step == "protect", **place)
            written += 1
        except (GateRefusedError, NotFoundError):
            pass
        events = registry.alias_events("ask", label, "prompt")
        digest, weights, protected = _replay(events)
        there = {one.alias: one for one in registry.aliases("ask", "prompt")}.get(label)
        assert len(events) == written
        assert (None if there is None else there.digest) == digest == (events[-1].digest if events else None)
        if there is not None:
            assert (there.weights, there.protected) == (weights, protected)


def _replay(events: list[AliasEvent]) -> tuple[str | None, Mapping[str, float] | None, bool]:
    """The rule of the log, written once more and otherwise: what a label names is the top of a stack of moves."""
    stack: list[tuple[str | None, Mapping[str, float] | None]] = []
    protected = False
    for event in events:
        match event.type:
            case "move" if not stack or stack[-1] != (event.digest, event.weights):
                assert not protected
                stack.append((event.digest, event.weights))
            case "rollback":
                stack.pop()
            case "delete":
                stack.clear()
            case "protect" | "unprotect":
                protected = event.type == "protect"
    return (*(stack[-1] if stack else (None, None)), protected)


def _put(registry: Registry, name: str, text: str) -> str:
    messages = [{"role": "user", "content": text}]
    return registry.put_prompt(name, messages=messages, settings={}, message=text, author="ada").digest
