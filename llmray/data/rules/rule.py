"""What a rule is: one measure of one row, and the values that pass.

Every rule is applied to every row, so that a removed row can name all that it failed. Rejected: one quality score,
which nobody can argue with, and stopping at the first failure, which hides what a looser limit would let back in.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from llmray.data.rows import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One measure and the values that pass."""

    name: str
    measure: Callable[[Row], float | None]
    """The value for a row; None where the rule does not apply to it."""
    low: float = -np.inf
    """Smallest value that passes."""
    high: float = np.inf
    """Largest value that passes."""
    exclusive: bool = False
    """Whether a value exactly at a limit fails too, as in "remove where ≤ 0.12"."""
    why: str = ""
    """One phrase for the report."""

    def judge(self, row: Row) -> "Failure | None":
        """The failure, or None where the row passes."""
        value = self.measure(row)
        return None if value is None else failure(self.name, value, self.low, self.high, exclusive=self.exclusive)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A rule that a row failed."""

    rule: str
    value: float
    threshold: float
    """The limit that the value lies beyond: below it where it is smaller, above it where it is larger."""
    detail: str | None = None
    """What more there is to say: which item of which evaluation set, which kinds of personal data."""


def judge(row: Row, rules: Iterable[Rule]) -> list[Failure]:
    """Every rule that the row fails, in the order of the rules."""
    return [found for rule in rules if (found := rule.judge(row)) is not None]


def failure(name: str, value: float, low: float, high: float, *, exclusive: bool = False) -> Failure | None:
    """The failure of a value outside its limits; a value that is no number fails too."""
    if (low < value < high) if exclusive else (low <= value <= high):
        return None
    below = value <= low if exclusive else value < low
    return Failure(rule=name, value=float(value), threshold=float(low if below else high))
