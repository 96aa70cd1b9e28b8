"""Lines or paragraphs that many documents share: licence headers, navigation, footers.

Three steps, of which only the middle one sees more than one chunk: name each line by a hash, find out in how many
different texts each name comes up, take out of each text what came up in too many. Every copy goes, also the first:
boilerplate is what no document needs. Rejected: keeping the first copy (as CCNet does), which depends on the order of
documents; and counting occurrences instead of documents, which would take a song's chorus for boilerplate.

Exact repeats are removed later, so a text that comes ten times must count once here: else its lines would make one
another boilerplate, and no copy would be left. So a line's name is kept with the names of the texts it stands in, exact
keys, and no more of them than it takes to be boilerplate: the smallest. Two such tables are one again, exactly, in any
order, so chunks, shards and retries cannot change the result, and a line costs at most `min_documents` entries.
Near copies are different texts: ten versions of a page that differ in a date share all other lines, and all those are
boilerplate. Where a corpus is full of such versions, curate it first without this, and then what was kept.

Lines are compared without case and by single spaces, by 64 bits of BLAKE2b: among a billion different lines the chance
that any two share a name is 3%, and then a line that many documents share would take along one that they do not.

Shape legend: L lines of a text, P pairs of a line and a text it stands in, U lines that are boilerplate.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from llmray.data.exact import KEY_BYTES, exact_keys, halves
from llmray.data.normalize import Normalization
from llmray.errors import ConfigError

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

Unit = Literal["line", "paragraph"]

_TEXTS_AT_ONCE = 64
_PAIRS_AT_ONCE = 1 << 21
"""Pairs that wait to be sorted into the others: 32 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Boilerplate:
    """What counts as boilerplate, and what is done with it."""

    unit: Unit = "line"
    """Lines, or paragraphs between blank lines."""
    min_documents: int = 10
    """Documents from which on a line that they share is boilerplate; those that say exactly the same are one."""
    min_characters: int = 20
    """Fewest characters of a line that can be: "}" and "Example:" are shared by chance."""
    action: Literal["off", "strip", "remove"] = "off"
    """Do not look for it, take it out of texts, or remove texts that are mostly boilerplate."""
    max_share: float = 0.5
    """Largest share of a text's characters that may be boilerplate, where such texts are removed."""

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ConfigError(f"boilerplate.unit ({self.unit}) must be line or paragraph")
        if self.action not in ("off", "strip", "remove"):
            raise ConfigError(f"boilerplate.action ({self.action}) must be off, strip or remove")
        if not 0 <= self.max_share < 1:
            raise ConfigError(f"boilerplate.max_share ({self.max_share}) must be at least 0 and below 1: try 0.5")
        if self.min_documents < 2:
            raise ConfigError(f"boilerplate.min_documents ({self.min_documents}) must be 2 or more: try 10")
        if self.min_characters < 1:
            raise ConfigError(f"boilerplate.min_characters ({self.min_characters}) must be 1 or more: try 20")


class LineKeys(NamedTuple):
    """Lines (or paragraphs) of a text that can be boilerplate, in order [L]."""

    keys: U64
    """What each says."""
    starts: I64
    """Where each starts, in characters, its indentation included."""
    ends: I64
    """Where the next thing starts: line breaks after a line are part of it."""


class Counts(NamedTuple):
    """Which different texts lines stand in: at most `min_documents` of each line, those with the smallest names [P]."""

    keys: U64
    """Names of lines, ascending."""
    texts: U64
    """Names of texts, ascending within a line."""


class Stripped(NamedTuple):
    """A text without its boilerplate."""

    text: str
    num_units: int
    """Lines or paragraphs that went."""
    num_characters: int
    """Characters that went, line breaks among them."""


def line_keys(text: str, config: Boilerplate) -> LineKeys:
    """Names and places of a text's lines; those that are too short are left out."""
    digests, starts, ends = [], [], []
    for start, end in _lines(text) if config.unit == "line" else _paragraphs(text):
        said = " ".join(text[start:end].split()).lower()
        if len(said) >= config.min_characters:
            digests.append(hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest())
            starts.append(start)
            ends.append(end)
    return LineKeys(
        np.frombuffer(b"".join(digests), "<u8").astype(np.uint64), np.array(starts, np.int64), np.array(ends, np.int64)
    )


def count(texts: Iterable[str], config: Boilerplate, rules: Normalization | None = None) -> Counts:
    """Counts over the documents of a chunk: a line counts once a text, however often it is in it.

    Args:
        texts: gone through once.
        config: what a line is, and from how many texts on it is boilerplate.
        rules: differences that make no two texts of one: those that exact repeats may have.
    """
    rules = rules or Normalization()
    counts, waiting, num_waiting = _NOTHING, list[Counts](), 0
    coming = iter(texts)
    while some := list(islice(coming, _TEXTS_AT_ONCE)):
        said = b"".join(exact_keys(["text"] * len(some), some, rules))
        names, _ = halves(np.frombuffer(said, np.uint8).reshape(len(some), KEY_BYTES))
        keys = [np.unique(line_keys(text, config).keys) for text in some]
        pairs = Counts(np.concatenate(keys), np.repeat(names, [len(of_one) for of_one in keys]))
        waiting.append(pairs)
        num_waiting += len(pairs.keys)
        if num_waiting > max(_PAIRS_AT_ONCE, len(counts.keys)):
            counts, waiting, num_waiting = merge([counts, *waiting], config), [], 0
    return merge([counts, *waiting], config)


def merge(counts: Sequence[Counts], config: Boilerplate) -> Counts:
    """Counts of several chunks as one; exact, and the same in any order."""
    keys = np.concatenate([_NOTHING.keys, *(some.keys for some in counts)])
    texts = np.concatenate([_NOTHING.texts, *(some.texts for some in counts)])
    order = np.lexsort((texts, keys))
    keys, texts = keys[order], texts[order]
    fresh = np.ones(len(keys), bool)
    fresh[1:] = (keys[1:] != keys[:-1]) | (texts[1:] != texts[:-1])
    keys, texts = keys[fresh], texts[fresh]
    place = np.arange(len(keys)) - np.searchsorted(keys, keys)
    few = place < config.min_documents
    return Counts(keys[few], texts[few])


def repeated(counts: Counts, config: Boilerplate) -> U64:
    """Names of the lines that are boilerplate, ascending [U]."""
    keys, num_texts = np.unique(counts.keys, return_counts=True)
    return keys[num_texts >= config.min_documents]


def share(text: str, repeated_U: U64, config: Boilerplate) -> float:
    """Share of a text's characters that are boilerplate."""
    return strip(text, repeated_U, config).num_characters / len(text) if text else 0.0


def strip(text: str, repeated_U: U64, config: Boilerplate) -> Stripped:
    """The text without boilerplate; what stays is not changed by a character, whatever `action` says.

    Args:
        text: a document.
        repeated_U: ascending names from `repeated` [U].
        config: the same as for counting.
    """
    lines = line_keys(text, config)
    gone = _contains(repeated_U, lines.keys)
    if not gone.any():
        return Stripped(text, 0, 0)
    starts, ends = lines.starts[gone], lines.ends[gone]
    kept = [text[begin:end] for begin, end in zip([0, *ends.tolist()], [*starts.tolist(), len(text)], strict=True)]
    return Stripped("".join(kept), int(gone.sum()), int((ends - starts).sum()))


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """Where each line starts and the next one does."""
    start = 0
    for line in text.split("\n"):
        yield start, min(start + len(line) + 1, len(text))
        start += len(line) + 1


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Where each paragraph starts and the next one does: blank lines belong to the paragraph before them."""
    begin, blank = 0, False
    for start, end in _lines(text):
        empty = not text[start:end].strip()
        if blank and not empty:
            yield begin, start
            begin = start
        blank = empty
    yield begin, len(text)


def _contains(sorted_U: U64, keys: U64) -> NDArray[np.bool_]:
    if not len(sorted_U):
        return np.zeros(len(keys), bool)
    return sorted_U[np.minimum(np.searchsorted(sorted_U, keys), len(sorted_U) - 1)] == keys


_NOTHING = Counts(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
