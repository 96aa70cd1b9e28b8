"""The normalisations of `normalize` as tables of code points, so that a kernel can apply them while it reads.

Most characters fold to the same thing in any company; those that do not (marks that combine or reorder, letters that
compose with what precedes them, such as Hangul jamo) have no entry here, and a text with one of them goes through
`word_text` or `normalize` itself. The table is made from the running Python's Unicode data by applying the same steps to all
characters, each on a line of its own: a line feed composes with nothing. Rejected: a table in the source, which would
differ from `normalize.normalize` on another version of Unicode.
"""

import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from llmray.data.normalize import separated

LIMIT = 0x20000
"""Code points above this have no entry: rare ideographs, tags, private use."""
_FIRST = 0x80
MOST_GROWTH = 3
"""A longer result than this, in bytes for each byte, has no entry, so that a kernel can bound its buffer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folding:
    """What each code point becomes, in UTF-8."""

    starts: NDArray[np.int32]
    """Code point c becomes `data[starts[c]:starts[c + 1]]`; nothing at all stands for "ask Python"."""
    data: NDArray[np.uint8]


NOTHING = Folding(starts=np.zeros(1, np.int32), data=np.zeros(1, np.uint8))
"""A table for texts that are ASCII."""


@cache
def folding(*, spaced: bool) -> Folding:
    """The table of `word_text`, with the byte 0 for what is no part of a word; `spaced` as there. Takes 0.2 s, once."""
    made = _table(lambda folded: separated(folded, spaced=spaced, keep="\n"))
    return Folding(starts=made.starts, data=np.where(made.data == ord(" "), 0, made.data).astype(np.uint8))


@cache
def normal_folding() -> Folding:
    """The table of `normalize` with all its rules, but that each white space is a blank. Takes 0.2 s, once."""
    blanks = {point: " " for point in range(_FIRST, sys.maxunicode + 1) if chr(point).isspace()}
    return _table(lambda folded: folded.translate(blanks))


def _table(finish: Callable[[str], str]) -> Folding:
    """The table of a normalisation that ends with `finish`, which leaves line feeds as they are."""
    alone = "\n".join(map(chr, range(_FIRST, LIMIT)))
    folded = unicodedata.normalize("NFKC", alone).casefold()
    dependent = _starts_dependent(alone) | _starts_dependent(folded)
    lines = finish(unicodedata.normalize("NFKC", folded)) + "\n"
    encoded = np.frombuffer(lines.encode("utf-8", "surrogatepass"), np.uint8)
    line_feed = encoded == ord("\n")
    lengths = np.diff(np.flatnonzero(line_feed), prepend=-1) - 1
    point = np.arange(_FIRST, LIMIT)
    width = np.where(point < 0x800, 2, np.where(point < 0x10000, 3, 4))
    refused = dependent | (lengths > MOST_GROWTH * width)
    starts = np.zeros(LIMIT + 1, np.int32)
    starts[_FIRST + 1 :] = np.cumsum(np.where(refused, 0, lengths))
    return Folding(starts=starts, data=encoded[~line_feed][np.repeat(~refused, lengths)])


def _starts_dependent(lines: str) -> NDArray[np.bool_]:
    """Whether the decomposition of each line begins with a character that may act on what stands before it."""
    points = np.frombuffer(
        unicodedata.normalize("NFKD", lines).encode(f"utf-32-{sys.byteorder[0]}e", "surrogatepass"), np.uint32
    )
    begins = np.concatenate(([0], np.flatnonzero(points == ord("\n")) + 1))
    return _dependent()[points[begins]]


@cache
def _dependent() -> NDArray[np.bool_]:
    """Code points that combine or reorder (UAX 15), or that compose with what precedes them."""
    dependent = np.zeros(sys.maxunicode + 1, bool)
    for point in range(_FIRST, LIMIT):
        letter = chr(point)
        if unicodedata.combining(letter):
            dependent[point] = True
        parts = unicodedata.decomposition(letter).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            dependent[int(parts[1], 16)] = True
    # Hangul syllables compose by rule, from vowels and final consonants (The Unicode Standard, 3.12).
    dependent[0x1161:0x1176] = True
    dependent[0x11A8:0x11C3] = True
    return dependent
