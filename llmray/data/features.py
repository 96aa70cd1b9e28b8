"""What can be measured on one text by itself, cheaply: the shapes that junk has and prose has not.

Each measure is a pure function of a text and has a name; none has a threshold. What is usual is learned from the data,
kind by kind, over the rows that pass the fixed rules (`robust.learn`), so documentation and chat each get limits of
their own. A measure that a text is too short for is NaN, and then it says nothing. A measure of one's own is a
`Learned` in any module, named `module:attribute`.

The shares come from one count of the characters, kept for the text last seen. Rejected: regular expressions a measure
(five passes over the text), and a classifier of good and bad text, which cannot say what it objects to.
"""

import math
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from llmray.code_names import load_named
from llmray.data.robust import MIN_VALUES, Axis, Side, Transform
from llmray.errors import ConfigError

MIN_WORDS = 20
"""Fewest words for a share of distinct ones: below it nearly every text has only distinct words."""
MIN_BYTES = 128
"""Fewest bytes for a compression ratio: below it the codes' own tables are most of what is measured."""
_SPACE, _UPPER, _LETTER, _DIGIT, _SYMBOL = range(5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """A measure whose limits are learned from the data."""

    name: str
    measure: Callable[[str], float]
    """The value for a text; NaN where the measure does not apply."""
    side: Side = "both"
    """Which values can be unusual."""
    transform: Transform = "linear"
    """The axis on which usual values lie evenly about their middle."""
    mads: float | None = None
    """Scaled MADs from the median to a limit; None for the configured number."""
    why: str = ""
    """One phrase for the report."""

    def axis(self, mads: float) -> Axis:
        """How its limits are learned, where the configuration says `mads`."""
        return Axis(mads=self.mads or mads, side=self.side, transform=self.transform)


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Which measures have limits that are learned from the data."""

    measures: tuple[str, ...] = field(default=("length",), metadata={"code": True})
    """Names of built-in measures, and `module:attribute` for a `Learned` of your own."""
    mads: float = 5.0
    """Scaled MADs from the median to a limit; a measure may have its own number."""
    min_rows: int = MIN_VALUES
    """Fewest rows of a kind that limits are learned from."""

    def __post_init__(self) -> None:
        if self.mads <= 0:
            raise ConfigError(f"statistics.mads ({self.mads}) must be above 0: try 5")
        if self.min_rows < 1:
            raise ConfigError(f"statistics.min_rows ({self.min_rows}) must be 1 or more: try {MIN_VALUES}")
        for name in self.measures:
            if ":" not in name and name not in BUILT_IN:
                raise ConfigError(
                    f"statistics.measures: no measure is called {name!r}: choose among {', '.join(sorted(BUILT_IN))}, "
                    "or write module:attribute"
                )


def build(config: Statistics) -> list[Learned]:
    """The measures that are configured, in that order.

    Raises:
        ConfigError: one of one's own cannot be loaded.
    """
    return [load(name) if ":" in name else BUILT_IN[name] for name in config.measures]


def load(name: str) -> Learned:
    """The measure at `module:attribute`.

    Raises:
        ConfigError: it is not there, or is no `Learned`.
    """
    found = load_named(name, "statistics.measures")
    if not isinstance(found, Learned):
        raise ConfigError(f"statistics.measures: {name} is a {type(found).__name__}: make it a features.Learned")
    return found


def measure_all(texts: Sequence[str], measures: Sequence[Learned]) -> NDArray[np.float64]:
    """Values of N texts by M measures [N, M]; text by text, so that one count serves all measures of a text."""
    values_NM = np.empty((len(texts), len(measures)))
    for row, text in enumerate(texts):
        values_NM[row] = [learned.measure(text) for learned in measures]
    return values_NM


def length(text: str) -> float:
    """Characters; NaN for an empty text, whose rule is another one."""
    return float(len(text)) if text else math.nan


def symbol_share(text: str) -> float:
    """Share of the characters other than white space that are neither letter, mark nor digit."""
    classes = _count(text).classes
    return _share(classes[_SYMBOL], sum(classes) - classes[_SPACE])


def digit_share(text: str) -> float:
    """Share of the characters other than white space that are digits."""
    classes = _count(text).classes
    return _share(classes[_DIGIT], sum(classes) - classes[_SPACE])


def upper_share(text: str) -> float:
    """Share of the letters that are upper case."""
    classes = _count(text).classes
    return _share(classes[_UPPER], classes[_UPPER] + classes[_LETTER])


def space_share(text: str) -> float:
    """Share of the characters that are white space."""
    classes = _count(text).classes
    return _share(classes[_SPACE], sum(classes))


def mean_word_length(text: str) -> float:
    """Characters of a word, words being what white space parts."""
    counted = _count(text)
    return _share(sum(counted.classes) - counted.classes[_SPACE], counted.num_words)


def link_share(text: str) -> float:
    """Links by words: what has `://` or `www.` in it is one."""
    links = text.count("://") + text.count("www.") - text.count("://www.")
    return _share(links, _count(text).num_words)


def type_token(text: str) -> float:
    """How much of the text are new words: log distinct / log all (Herdan's C, 1960), NaN below `MIN_WORDS` words.

    The plain ratio falls with length by itself (Heaps' law), so that its limits would judge length once more.
    """
    counted = _count(text)
    if counted.num_words < MIN_WORDS:
        return math.nan
    return math.log(counted.num_types) / math.log(counted.num_words)


def compression(text: str) -> float:
    """Bytes after DEFLATE by bytes before, NaN below `MIN_BYTES` bytes.

    At zlib's lowest level, and so without a header. Builds of zlib may differ in a byte or two: a cluster whose
    machines have different ones can differ in this measure, and in no other.
    """
    data = text.encode("utf-8", "surrogatepass")
    if len(data) < MIN_BYTES:
        return math.nan
    return len(zlib.compress(data, 1, -15)) / len(data)


def entropy(text: str) -> float:
    """Bits a character by the text's own frequencies (Shannon 1948); NaN for an empty text."""
    counts = _count(text).counts
    if not len(counts):
        return math.nan
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


BUILT_IN = {
    learned.name: learned
    for learned in (
        Learned(name="length", measure=length, transform="log", why="characters"),
        Learned(
            name="symbol_share",
            measure=symbol_share,
            side="high",
            transform="root",
            why="symbols among the visible characters",
        ),
        Learned(
            name="digit_share",
            measure=digit_share,
            side="high",
            transform="root",
            why="digits among the visible characters",
        ),
        Learned(
            name="upper_share", measure=upper_share, side="high", transform="root", why="capitals among the letters"
        ),
        Learned(name="space_share", measure=space_share, transform="root", why="white space among the characters"),
        Learned(name="mean_word_length", measure=mean_word_length, transform="log", why="characters of a word"),
        Learned(name="link_share", measure=link_share, side="high", why="links by words"),
        Learned(name="type_token", measure=type_token, side="low", why="log distinct words by log words"),
        Learned(name="compression", measure=compression, why="bytes left by DEFLATE"),
        Learned(name="entropy", measure=entropy, why="bits a character"),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Count:
    counts: NDArray[np.int64]
    """How often each distinct character comes, in the order of code points, so that sums have one order."""
    classes: tuple[int, int, int, int, int]
    """Characters that are white space, upper case, other letters, digits, symbols."""
    num_words: int
    num_types: int


@lru_cache(maxsize=1)
def _count(text: str) -> _Count:
    words = text.split()
    if text.isascii():
        counts_128 = np.bincount(np.frombuffer(text.encode("ascii"), np.uint8), minlength=128)
        classes = _ASCII @ counts_128
        counts = counts_128[counts_128 > 0]
    else:
        codes, counts = np.unique(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4"), return_counts=True)
        classes = np.bincount([_class(code) for code in codes.tolist()], counts, minlength=5).astype(np.int64)
    space, upper, letter, digit, symbol = classes.tolist()
    return _Count(
        counts=counts,
        classes=(space, upper, letter, digit, symbol),
        num_words=len(words),
        num_types=len(set(words)),
    )


@cache
def _class(code: int) -> int:
    character = chr(code)
    if character.isspace():
        return _SPACE
    category = unicodedata.category(character)
    if category == "Lu":
        return _UPPER
    # A mark belongs to the letter that it stands on: scripts with many are no symbol soup.
    return {"L": _LETTER, "M": _LETTER, "N": _DIGIT}.get(category[0], _SYMBOL)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


_ASCII = np.array([[_class(code) == which for code in range(128)] for which in range(5)], np.int64)
