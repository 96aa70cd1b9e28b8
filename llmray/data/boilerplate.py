"""Lines or paragraphs that many documents share: licence headers, navigation, footers.

Three steps, of which only the middle one sees more than one chunk: name each line by a hash, count in how many documents
each name comes up, take out of each text what came up in too many. Counts are tables sorted by name, and adding two of
them is exact in any order, so chunks, shards and retries cannot change the result. Every copy goes, also the first:
boilerplate is what no document needs. Rejected: keeping the first copy (as CCNet does), which depends on the order of
documents; and counting occurrences instead of documents, which would take a song's chorus for boilerplate.

Lines are compared without case and by single spaces, by 64 bits of BLAKE2b: among a billion different lines the chance
that any two share a name is 3%, and then a line that many documents share would take along one that they do not.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from llmray.errors import ConfigError

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

Unit = Literal["line", "paragraph"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Boilerplate:
    """What counts as boilerplate, and what is done with it."""

    unit: Unit = "line"
    """Lines, or paragraphs between blank lines."""
    min_documents: int = 10
    """Documents from which on a line that they share is boilerplate."""
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
    """In how many documents lines come up [U]."""

    keys: U64
    """Names of lines, ascending."""
    documents: I64
    """Documents with the line in them."""


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


def count(texts: Iterable[str], config: Boilerplate) -> Counts:
    """Counts over the documents of a chunk: a line counts once a document, however often it is in it."""
    keys = [np.unique(line_keys(text, config).keys) for text in texts]
    return Counts(*_summed(np.concatenate([np.zeros(0, np.uint64), *keys])))


def merge(counts: Sequence[Counts]) -> Counts:
    """Counts of several chunks as one; exact, and the same in any order."""
    keys = np.concatenate([np.zeros(0, np.uint64), *(some.keys for some in counts)])
    documents = np.concatenate([np.zeros(0, np.int64), *(some.documents for some in counts)])
    return Counts(*_summed(keys, documents))


def repeated(counts: Counts, config: Boilerplate) -> U64:
    """Names of the lines that are boilerplate, ascending."""
    return counts.keys[counts.documents >= config.min_documents]


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


def _summed(keys: U64, documents: I64 | None = None) -> tuple[U64, I64]:
    unique, label = np.unique(keys, return_inverse=True)
    if documents is None:
        return unique, np.bincount(label, minlength=len(unique)).astype(np.int64)
    total = np.zeros(len(unique), np.int64)
    np.add.at(total, label, documents)
    return unique, total
