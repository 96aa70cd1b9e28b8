"""What of an evaluation set stands in the training data: shared word n-grams, with the set and the item named.

An item is found in a text by the share of its own distinct 13-word runs that the text has (13: Brown et al. 2020,
appendix C), so a text that quotes one sentence of a passage is told from one that holds it whole, however long the text
is. An item of fewer words is one run of all its words; below `min_words` it is left out, since "What is the capital of
France?" stands everywhere (Brown et al. let their n go down to 8), and the index says how many were. Words and hashes
are those of near repeats, so case, punctuation and white space do not hide a copy. Rejected: flagging any one shared
run, as Brown et al. do: a licence or a famous quotation is no leak; and shares of the *text*, in which a long
document hides what it copied.

Shapes: I items, G runs of all items, N texts, S runs of all texts, H hits of a text's run in an item.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmray.data import readers
from llmray.data.minhash import I64, U64, WORDS, Shingling, shingle_lists, shingle_sets
from llmray.data.rows import Row
from llmray.errors import ConfigError, InputError

RULE = "contamination"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contamination:
    """Which evaluation sets must not be in the data, and how much of an item may be."""

    sets: tuple[str, ...] = ()
    """Evaluation sets, `name=uri`, in any format that sources may have."""
    ngram_words: int = 13
    """Words of a run (Brown et al. 2020)."""
    min_words: int = 8
    """Fewest words of an item that is looked for."""
    max_share: float = 0.2
    """Largest share of an item's runs that a row may have: of a 45-word question, 18 words at a stretch."""

    def __post_init__(self) -> None:
        for entry in self.sets:
            name, _, uri = entry.partition("=")
            if not name or not uri:
                raise ConfigError(f"contamination.sets: {entry!r} must be name=uri, as in gsm8k=tests/gsm8k.jsonl")
        names = [entry.partition("=")[0] for entry in self.sets]
        if len(set(names)) < len(names):
            raise ConfigError("contamination.sets: every set needs a name of its own")
        if self.ngram_words < 1:
            raise ConfigError(f"contamination.ngram_words ({self.ngram_words}) must be 1 or more: try 13")
        if not 1 <= self.min_words <= self.ngram_words:
            raise ConfigError(
                f"contamination.min_words ({self.min_words}) must be at least 1 and at most contamination.ngram_words "
                f"({self.ngram_words}): try {min(8, self.ngram_words)}"
            )
        if not 0 <= self.max_share < 1:
            raise ConfigError(f"contamination.max_share ({self.max_share}) must be at least 0 and below 1: try 0.2")

    @property
    def uris(self) -> list[str]:
        """Where the sets are."""
        return [entry.partition("=")[2] for entry in self.sets]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalItem:
    """A passage of an evaluation set; a question and its answer are two passages of one item."""

    set: str
    number: int
    """Line or row of its file, from 1."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """The item that a text holds most of."""

    set: str
    number: int
    share: float
    """Share of the item's distinct runs that are in the text."""
    shared: int
    """How many runs that is."""

    @property
    def why(self) -> str:
        """What the report says."""
        return f"holds {self.share:.0%} of item {self.number} of {self.set} ({self.shared} runs of words)"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalIndex:
    """Items of evaluation sets, by their runs of words; a value that pickles."""

    items: tuple[EvalItem, ...]
    """Items that can be found, in order of set, number and text [I]."""
    sizes: I64
    """Distinct runs of each [I]."""
    lengths: tuple[int, ...]
    """Words of a run that any item has: `ngram_words`, and the lengths of shorter items."""
    runs: tuple[U64, ...]
    """For each length, hashes of the items' runs, ascending [G]."""
    owners: tuple[I64, ...]
    """The item that each belongs to [G]."""
    num_short: int
    """Passages with too few words to be looked for."""

    @classmethod
    def build(cls, items: Iterable[EvalItem], *, ngram_words: int = 13, min_words: int = 8) -> "EvalIndex":
        """Index of passages; those that two sets share count for each."""
        everything = sorted(set(items), key=lambda item: (item.set, item.number, item.text))
        _, starts = shingle_lists([item.text for item in everything], WORDS)
        words_I = np.diff(starts)
        kept = np.flatnonzero(words_I >= min_words)
        items_kept = tuple(everything[place] for place in kept)
        length_I = np.minimum(words_I[kept], ngram_words)
        size_I = np.zeros(len(kept), np.int64)
        runs, owners = [], []
        lengths = tuple(np.unique(length_I).tolist())
        for length in lengths:
            here = np.flatnonzero(length_I == length)
            hashes_G, offsets = shingle_sets([items_kept[place].text for place in here], Shingling(size=length))
            size_I[here] = np.diff(offsets)
            owner_G = np.repeat(here, np.diff(offsets))
            order = np.lexsort((owner_G, hashes_G))
            runs.append(hashes_G[order])
            owners.append(owner_G[order])
        return cls(
            items=items_kept,
            sizes=size_I,
            lengths=lengths,
            runs=tuple(runs),
            owners=tuple(owners),
            num_short=len(everything) - len(kept),
        )

    def overlap(self, texts: Sequence[str]) -> list[Overlap | None]:
        """For each text the item with the largest share, then the most runs, then the first; None where none is met."""
        text_H, item_H = self._hits(texts)
        # A pair of text and item has all its hits in one length, where each run of the text is counted once.
        pair_P, shared_P = np.unique(text_H * max(1, len(self.items)) + item_H, return_counts=True)
        text_P, item_P = pair_P // max(1, len(self.items)), pair_P % max(1, len(self.items))
        share_P = shared_P / self.sizes[item_P]
        found: list[Overlap | None] = [None] * len(texts)
        for place in np.lexsort((-item_P, shared_P, share_P)):
            item = self.items[item_P[place]]
            found[text_P[place]] = Overlap(
                set=item.set, number=item.number, share=float(share_P[place]), shared=int(shared_P[place])
            )
        return found

    def _hits(self, texts: Sequence[str]) -> tuple[I64, I64]:
        """Text and item, for each run that they share [H]."""
        text_parts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        item_parts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        for length, runs_G, item_G in zip(self.lengths, self.runs, self.owners, strict=True):
            runs_S, offsets_N1 = shingle_sets(texts, Shingling(size=length))
            first_S = np.searchsorted(runs_G, runs_S, side="left")
            met = np.flatnonzero(runs_G[np.minimum(first_S, len(runs_G) - 1)] == runs_S)
            num_S = np.searchsorted(runs_G, runs_S[met], side="right") - first_S[met]
            within_H = np.arange(num_S.sum()) - np.repeat(np.cumsum(num_S) - num_S, num_S)
            text_parts.append(np.repeat(np.searchsorted(offsets_N1, met, side="right") - 1, num_S))
            item_parts.append(item_G[np.repeat(first_S[met], num_S) + within_H])
        return np.concatenate(text_parts), np.concatenate(item_parts)


def load(config: Contamination) -> EvalIndex:
    """Read the evaluation sets.

    Raises:
        InputError: a set cannot be read whole, or has no item that can be looked for. A leak that goes unseen because a
            line was broken is worse than a curation that does not start.
        NotFoundError: a file is missing.
    """
    items: list[EvalItem] = []
    for entry in config.sets:
        name, _, uri = entry.partition("=")
        before = len(items)
        for record in readers.read(uri):
            if not isinstance(record, readers.Found):
                raise InputError(f"contamination.sets: {name}: row {record.number} of {uri}: {record.reason}")
            items += [EvalItem(set=name, number=record.number, text=passage) for passage in passages(record.row)]
        if len(items) == before:
            raise InputError(f"contamination.sets: {name}: {uri} has no row")
    index = EvalIndex.build(items, ngram_words=config.ngram_words, min_words=config.min_words)
    for name in sorted({item.set for item in items} - {item.set for item in index.items}):
        raise InputError(
            f"contamination.sets: {name} has no item of {config.min_words} words: lower contamination.min_words"
        )
    return index


def passages(row: Row) -> list[str]:
    """What of an evaluation row must not be trained on: each turn but the system's, each side of a preference.

    Passages are looked for one by one: a text with the question alone holds all of the question.
    """
    match row.shape:
        case "text":
            return [row.text or ""]
        case "messages":
            return [content for role, content in row.messages or () if role != "system"]
        case "preference":
            return [part for part in (row.prompt, row.chosen, row.rejected) if part]
