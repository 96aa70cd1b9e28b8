"""What a shadow answered, held against what people got for the same requests.

Both are outputs in the registry; a shadow's names the other in `shadow_of`. This says how often they agree, and what it would
cost in time; whether the shadow is better is the gate's business, with references to judge by.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from llmray.errors import NotFoundError
from llmray.outputs import Output
from llmray.registry.registry import Registry

_WORDS = 300
"""Words of each text that are compared: the time grows with their square."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One model's answers."""

    failed: int
    cut: int
    """Answers that ended at the length limit."""
    tokens: float
    """In the mean of an answer."""
    ttft_s: float | None
    """Median; None where no answer had a token."""
    latency_s: float
    """Median."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    pairs: int
    same: int | None
    """Pairs with the same text; None where no texts were kept."""
    likeness: float | None
    """Mean share of the words that a pair has in common, in order, 0 to 1."""
    people: Side
    shadow: Side

    def rows(self) -> list[list[object]]:
        """A table: figure, people, shadow."""
        rows: list[list[object]] = [["requests", self.pairs, self.pairs]]
        for name in ("failed", "cut", "tokens", "ttft_s", "latency_s"):
            rows.append([name, getattr(self.people, name), getattr(self.shadow, name)])
        return [*rows, ["same text", "", self.same], ["likeness", "", self.likeness]]


def compare(registry: Registry, digest: str, *, limit: int = 1000) -> Comparison:
    """Hold a shadow's newest answers against the answers that people got.

    Args:
        digest: the shadow's model.

    Raises:
        NotFoundError: it was never a shadow.
    """
    pairs = [
        (original, output)
        for output in registry.outputs(limit, model_digest=digest)
        if output.shadow_of is not None and (original := registry.output(output.shadow_of)) is not None
    ]
    if not pairs:
        raise NotFoundError(f"{digest[:12]} answered no copies: start it with jobs/deploy.py --shadow 10")
    return compared(pairs)


def compared(pairs: Sequence[tuple[Output, Output]]) -> Comparison:
    """The figures of pairs: what people got, and what the shadow said."""
    texts = [
        (a.completion, b.completion) for a, b in pairs if a.text_kept and b.text_kept and b.finish_reason != "error"
    ]
    return Comparison(
        pairs=len(pairs),
        same=sum(a == b for a, b in texts) if texts else None,
        likeness=statistics.fmean(_likeness(a, b) for a, b in texts) if texts else None,
        people=_side([a for a, _ in pairs]),
        shadow=_side([b for _, b in pairs]),
    )


def _side(outputs: Sequence[Output]) -> Side:
    def median(value: Callable[[Output], float | None]) -> float | None:
        known = [found for one in outputs if (found := value(one)) is not None]
        return round(statistics.median(known), 4) if known else None

    return Side(
        failed=sum(one.finish_reason == "error" for one in outputs),
        cut=sum(one.finish_reason == "length" for one in outputs),
        tokens=round(statistics.fmean(one.completion_tokens for one in outputs), 1),
        ttft_s=median(lambda one: one.ttft_s),
        latency_s=median(lambda one: one.latency_s) or 0.0,
    )


def _likeness(a: str, b: str) -> float:
    return SequenceMatcher(None, a.split()[:_WORDS], b.split()[:_WORDS], autojunk=False).ratio()
