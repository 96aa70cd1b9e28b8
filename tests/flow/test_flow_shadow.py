"""A shadow's answers beside what people got."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from llmray.errors import NotFoundError
from llmray.flow.shadow import compare
from llmray.outputs import Output
from llmray.registry.registry import Registry

HEARD = Output(
    id="a1", at=datetime(2026, 1, 1, tzinfo=UTC), prompt_digest=None, prompt_reference=None, variables={},
    messages=[{"role": "user", "content": "?"}], completion="one two three four", finish_reason="stop",
    model_digest="a" * 64, variant="stable", quantization="none", engine="echo", sampling={}, prompt_tokens=1,
    completion_tokens=4, ttft_s=0.1, latency_s=0.5,
)  # fmt: skip


def unheard(number: int, completion: str, **changes: object) -> Output:
    changes = {"model_digest": "b" * 64, "variant": "shadow", "shadow_of": f"a{number}", **changes}
    return replace(HEARD, id=f"b{number}", completion=completion, **changes)  # type: ignore[arg-type]


def test_pairs_are_compared_by_text_length_and_time() -> None:
    with Registry.open() as registry:
        registry.put_outputs([replace(HEARD, id=f"a{number}") for number in range(4)])
        with pytest.raises(NotFoundError, match="answered no copies"):
            compare(registry, "b" * 64)
        registry.put_outputs(
            [
                unheard(0, "one two three four", latency_s=1.0),
                unheard(1, "one two", completion_tokens=2, latency_s=1.0, finish_reason="length"),
                unheard(2, "", completion_tokens=0, ttft_s=None, finish_reason="error"),
                unheard(3, "", text_kept=False, completion_tokens=2),
                replace(HEARD, id="own", model_digest="b" * 64),
            ]
        )
        found = compare(registry, "b" * 64)
    assert (found.pairs, found.same) == (4, 1)
    assert found.likeness == pytest.approx((1 + 2 * 2 / 6) / 2)
    assert (found.shadow.failed, found.shadow.cut, found.shadow.tokens) == (1, 1, 2.0)
    assert (found.people.failed, found.people.tokens, found.people.latency_s) == (0, 4.0, 0.5)
    assert found.shadow.latency_s == 0.75
