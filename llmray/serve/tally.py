"""What is counted of one application's answers, so that two models can be compared without keeping an answer.

Counts and histograms of fixed buckets: tallies of gateway replicas add up, and the difference of two is what happened
in between. What an answer looks like is kept as three figures that garbage cannot hide in: its length, how far it can be
compressed (loops and noise), and the entropy of its characters. Rejected: keeping answers (memory), and means alone (a
mean of times says little about who waited).
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

_LOOKED_AT = 2000
"""Characters of an answer that its figures are made from: some 50 µs."""
_TOO_SHORT = 32
"""Characters from which compression and entropy say something."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer looks like."""

    compressed: float
    """Bytes after zlib over bytes before."""
    entropy: float
    """Bits a character, from how often each occurs."""


def shape_of(text: str) -> Shape | None:
    """The figures of a text; None for one that is too short for any."""
    text = text[:_LOOKED_AT]
    if len(text) < _TOO_SHORT:
        return None
    data = text.encode("utf-8", "replace")
    total = len(text)
    entropy = -sum(count / total * math.log2(count / total) for count in Counter(text).values())
    return Shape(len(zlib.compress(data, 1)) / len(data), entropy)


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts since somebody began to count; histograms are bucket numbers with how many fell into each."""

    requests: int = 0
    """Requests that were begun."""
    running: int = 0
    """Answers that have not ended, each of the `n` to a request."""
    errors: int = 0
    """Those that the model failed, not the client."""
    refused: int = 0
    """Those that the model would not take: it cannot do what was asked, or is too busy."""
    given_up: int = 0
    """Those whose time was over, and those whose client left before a token came."""
    answers: int = 0
    """Those that were answered to the end."""
    empty: int = 0
    """Answers without a token."""
    cut: int = 0
    """Answers that ended because they had become too long."""
    first_token: Counter[int] = field(default_factory=Counter)
    """Seconds to the first token, four buckets to a doubling."""
    next_token: Counter[int] = field(default_factory=Counter)
    """Seconds between tokens, in the mean of an answer, four buckets to a doubling."""
    length: Counter[int] = field(default_factory=Counter)
    """Tokens of an answer, four buckets to a doubling."""
    compressed: Counter[int] = field(default_factory=Counter)
    """`Shape.compressed`, twenty buckets to one."""
    entropy: Counter[int] = field(default_factory=Counter)
    """`Shape.entropy`, four buckets to a bit."""

    @property
    def ended(self) -> int:
        """Requests that say what the model is like: answered to the end, or failed."""
        return self.answers + self.errors

    def begin(self, *, another: bool = False) -> None:
        """Count a request that begins, or another answer to one that is counted."""
        self.requests += not another
        self.running += 1

    def end(
        self,
        outcome: str,
        *,
        latency_s: float,
        ttft_s: float | None = None,
        tokens: int = 0,
        shape: Shape | None = None,
        another: bool = False,
    ) -> None:
        """Count its end.

        Args:
            outcome: a finish reason, or `error`, `cancelled`, `refused`, `deadline`.
            another: whether another answer speaks for its request.
        """
        self.running -= 1
        if another:
            return
        if outcome in ("error", "refused", "deadline", "cancelled"):
            self.errors += outcome == "error"
            self.refused += outcome == "refused"
            self.given_up += outcome == "deadline" or (outcome == "cancelled" and ttft_s is None)
            return
        self.answers += 1
        self.empty += not tokens
        self.cut += outcome == "length"
        if ttft_s is not None:
            self.first_token[octave(ttft_s)] += 1
            if tokens > 1:
                self.next_token[octave((latency_s - ttft_s) / (tokens - 1))] += 1
        if tokens:
            self.length[octave(tokens)] += 1
        if shape is not None:
            self.compressed[math.floor(shape.compressed * 20)] += 1
            self.entropy[math.floor(shape.entropy * 4)] += 1

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{name: _plus(getattr(self, name), getattr(other, name), 1) for name in _NAMES})

    def __sub__(self, other: "Tally") -> "Tally":
        return Tally(**{name: _plus(getattr(self, name), getattr(other, name), -1) for name in _NAMES})


_NAMES = tuple(one.name for one in fields(Tally))


def together(tallies: Iterable[Tally]) -> Tally:
    """The sum."""
    return sum(tallies, Tally())


def octave(value: float) -> int:
    """Number of a value's bucket, four to a doubling; nothing is less than 0.1 ms."""
    return math.floor(4 * math.log2(max(value, 1e-4)))


def quantile(histogram: Counter[int], share: float) -> int:
    """The first bucket with at least `share` of what fell into a histogram up to it; the histogram is not empty."""
    wanted = share * histogram.total()
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= wanted:
            return bucket
    raise AssertionError("a histogram without a quantile")


def _plus(a: Any, b: Any, sign: int) -> Any:
    if isinstance(a, int):
        return a + sign * b
    total = Counter(a)
    for bucket, count in b.items():
        total[bucket] += sign * count
    return Counter({bucket: count for bucket, count in total.items() if count})
