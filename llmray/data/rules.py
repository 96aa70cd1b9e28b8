"""Outlier rules: each measures one thing about one row and says which values pass.

Fixed thresholds come from Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A1.1 and table A1); n-gram repetition
is only measured from Gopher's own minimum of 50 words on, since every short text repeats itself. They judge
documents, so they pass over conversations and preferences: on worked answers to word problems ("#### 72") they would
remove two rows in five for nothing. The length rule is robust: its limits are learned from the rows themselves, as
median ± k·MAD of log length, kind by kind (Leys et al. 2013). A rule of one's own is a `Rule` in any module, named
`module:attribute`. Every rule is applied to every row, so that a removed row can name all that it failed. Rejected:
one quality score, which nobody can argue with, and mean ± k·sd, which the outliers themselves push outwards.
"""

import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmray.data.rows import Row
from llmray.errors import ConfigError

_WORD = re.compile(r"\S+")
_REPETITION_MIN_WORDS = 50
_MACHINE_MADE = re.compile(
    r"alias for field number \d+"
    r"|return (repr|str|hash|len|iter|bool|int|float|key in|value in|format)\b[^.]{0,20}\([^)]*\)\.?"
    r"|return (self|value|key)\S{0,12}(==|!=|<=|>=|<|>|\+|-|\*|/|%|@|&|\||\^|\[|in)\S{0,12}\.?"
    r"|return (getattr\(self, name\)|key in self|a reverse iterator over \S+)\.?"
    r"|initialize self\.\s+see help\(type\(self\)\) for accurate signature\."
    r"|create and return a new object\.\s+see help\(type\) for accurate signature\."
    r"|see help\(type\(self\)\)\.?"
    r"|(implement|set|delete) (iter|next|setattr|delattr|self)\S*( to value)?( name)?[^.]{0,20}\.?"
    r"|helper for pickle\.?"
    r"|default (object )?(formatter|dir\(\) implementation)\.?"
    r"|size of object in memory, in bytes\.?"
    r"|(xxx )?to be (provided|documented|done)\.?"
    r"|todo\.?|xxx\.?|\.\.\.|not documented\.?|structure/union member",
    re.IGNORECASE,
)


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
    why: str = ""
    """One phrase for the report."""

    def judge(self, row: Row) -> "Failure | None":
        """The failure, or None where the row passes."""
        value = self.measure(row)
        return None if value is None else failure(self.name, value, self.low, self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A rule that a row failed."""

    rule: str
    value: float
    threshold: float
    """The limit that the value lies beyond: below it where it is smaller, above it where it is larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outliers:
    """Which rules judge a row, and where their limits lie."""

    rules: tuple[str, ...] = field(
        default=(
            "empty",
            "too_short",
            "short_answer",
            "machine_made_docstring",
            "symbol_ratio",
            "duplicate_lines",
            "top_2gram",
            "top_3gram",
            "top_4gram",
            "same_preference",
            "length_outlier",
        ),
        metadata={"code": True},
    )
    """Names of the built-in rules, and `module:attribute` for a rule of your own."""
    min_words: int = 3
    """Fewest words of a text row."""
    min_answer_words: int = 1
    """Fewest words that the assistant says in a conversation, or of a chosen completion."""
    max_symbol_ratio: float = 0.1
    """Most hash signs, and most ellipses, per word of a text row (Gopher A1.1)."""
    max_duplicate_lines: float = 0.3
    """Largest share of a text row's lines that repeat an earlier one (Gopher, table A1)."""
    max_top_2gram: float = 0.2
    """Largest share of characters in the commonest pair of words, from 50 words on (Gopher, table A1)."""
    max_top_3gram: float = 0.18
    """The same for three words."""
    max_top_4gram: float = 0.16
    """The same for four words."""
    length_mads: float = 5.0
    """How many scaled MADs from the median the logarithm of a row's length may lie."""

    def __post_init__(self) -> None:
        if self.length_mads <= 0:
            raise ConfigError(f"outliers.length_mads ({self.length_mads}) must be above 0: try 5")
        if self.min_words < 0 or self.min_answer_words < 0:
            raise ConfigError("outliers.min_words and outliers.min_answer_words must be zero or more")
        for name in self.rules:
            if ":" not in name and name not in BUILT_IN:
                raise ConfigError(
                    f"outliers.rules: no rule is called {name!r}: choose among {', '.join(sorted(BUILT_IN))}, or write "
                    "module:attribute"
                )


def build(config: Outliers) -> list[Rule]:
    """The rules that judge a row by itself; `length_outlier` is learned later.

    Raises:
        ConfigError: a rule of one's own cannot be loaded.
    """
    made = {
        "empty": Rule(name="empty", measure=_num_characters, low=1, why="nothing but white space"),
        "too_short": Rule(
            name="too_short",
            measure=lambda row: len(row.answer.split()) if row.shape == "text" else None,
            low=config.min_words,
            why="words of a text",
        ),
        "short_answer": Rule(
            name="short_answer",
            measure=lambda row: None if row.shape == "text" else len(row.answer.split()),
            low=config.min_answer_words,
            why="words of an answer",
        ),
        "machine_made_docstring": Rule(
            name="machine_made_docstring", measure=_machine_made, high=0, why="a stub, or words that a program wrote"
        ),
        "symbol_ratio": Rule(
            name="symbol_ratio",
            measure=symbol_ratio,
            high=config.max_symbol_ratio,
            why="hash signs or ellipses per word",
        ),
        "duplicate_lines": Rule(
            name="duplicate_lines",
            measure=duplicate_lines,
            high=config.max_duplicate_lines,
            why="share of lines that repeat an earlier one",
        ),
        "same_preference": Rule(
            name="same_preference", measure=_same_preference, high=0, why="chosen and rejected are the same"
        ),
    }
    for size, most in ((2, config.max_top_2gram), (3, config.max_top_3gram), (4, config.max_top_4gram)):
        made[f"top_{size}gram"] = Rule(
            name=f"top_{size}gram",
            measure=partial(top_ngram, size=size),
            high=most,
            why=f"share of characters in the commonest {size} words",
        )
    return [load(name) if ":" in name else made[name] for name in config.rules if name != "length_outlier"]


def load(name: str) -> Rule:
    """The rule at `module:attribute`.

    Raises:
        ConfigError: it is not there, or is no `Rule`.
    """
    module, _, attribute = name.partition(":")
    try:
        rule = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"outliers.rules: {name} cannot be loaded: {error}") from error
    if not isinstance(rule, Rule):
        raise ConfigError(f"outliers.rules: {name} is a {type(rule).__name__}: make it a llmray.data.rules.Rule")
    return rule


def judge(row: Row, rules: Iterable[Rule]) -> list[Failure]:
    """Every rule that the row fails, in the order of the rules."""
    return [found for rule in rules if (found := rule.judge(row)) is not None]


def failure(name: str, value: float, low: float, high: float) -> Failure | None:
    """The failure of a value outside its limits; a value that is no number fails too."""
    if low <= value <= high:
        return None
    return Failure(rule=name, value=float(value), threshold=float(low if value < low else high))


def robust_limits(lengths: NDArray[np.int64], mads: float) -> tuple[float, float]:
    """Smallest and largest usual length, in characters: median ± `mads` scaled MADs of the logarithm.

    With a MAD of zero, where more than half of the rows have one length, nothing can be called unusual.
    """
    logs = np.log1p(lengths[lengths > 0])
    if not len(logs):
        return -np.inf, np.inf
    middle = float(np.median(logs))
    # 1.4826 makes the MAD of a normal sample estimate its standard deviation.
    scale = 1.4826 * float(np.median(np.abs(logs - middle)))
    if scale == 0:
        return -np.inf, np.inf
    return float(np.expm1(middle - mads * scale)), float(np.expm1(middle + mads * scale))


def symbol_ratio(row: Row) -> float | None:
    """Hash signs, or ellipses, whichever are more, per word of a document (Gopher A1.1)."""
    if row.text is None:
        return None
    ellipses = row.text.count("...") + row.text.count("…")
    return max(row.text.count("#"), ellipses) / max(1, len(row.text.split()))


def duplicate_lines(row: Row) -> float | None:
    """Share of a document's non-empty lines that repeat an earlier one (Gopher, table A1)."""
    if row.text is None:
        return None
    lines = [line.strip() for line in row.text.splitlines() if line.strip()]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def top_ngram(row: Row, size: int) -> float | None:
    """Share of a document's characters in its commonest n-gram, where that comes up twice (Gopher, table A1)."""
    words = _WORD.findall(row.text or "")
    if len(words) < _REPETITION_MIN_WORDS:
        return None
    counts = Counter(_ngrams(words, size))
    # The longest of the commonest: ties must not depend on the order of words.
    gram, times = max(counts.items(), key=lambda item: (item[1], sum(map(len, item[0]))))
    return min(1.0, times * sum(map(len, gram)) / sum(map(len, words))) if times > 1 else 0.0


def _ngrams(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)


def _num_characters(row: Row) -> float:
    return len(row.answer.strip())


def _machine_made(row: Row) -> float:
    return float(_MACHINE_MADE.fullmatch(row.answer.strip()) is not None)


def _same_preference(row: Row) -> float | None:
    return float(row.chosen == row.rejected) if row.shape == "preference" else None


BUILT_IN = frozenset(
    {
        "empty",
        "too_short",
        "short_answer",
        "machine_made_docstring",
        "symbol_ratio",
        "duplicate_lines",
        "top_2gram",
        "top_3gram",
        "top_4gram",
        "same_preference",
        "length_outlier",
    }
)
