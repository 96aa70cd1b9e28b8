"""How likely a text's words are, and their order, by what the rest of the corpus says.

`Unigram` counts every word of the corpus in hashed buckets and takes the mean log-likelihood of a text's words with
add-one smoothing: base64, mojibake and other languages are made of words that nobody else uses. `WordOrder` asks how much better words
that are neighbours elsewhere explain a text's neighbours than its words three and seven places apart: shuffled words are
as likely as before, and only their order gives them away. The text's own distant pairs are the control, so that tables,
rare names and odd topics, whose neighbours nobody has seen, count for little (AUPRC for shuffled words, on the part of
`benchmarks/curation_outliers.py` that this was chosen on: 0.79 with the control, 0.56 without). Both measures leave the text's own counts out, or a word said 500 times in one
text would be a common word.

Everything is counted in integers, and logarithms are summed in integers of 2^-32, so no order of texts, chunks or words
can change a bit. Rejected: a language model trained elsewhere (KenLM on Wikipedia, as CCNet has it), which measures
likeness to Wikipedia; and counting pairs of the whole corpus in buckets, where at a gigabyte every bucket is full.

Shapes: N texts, W words, P pairs, B buckets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmray.data.corpus import Sampled, merge_samples, places_of, sample
from llmray.data.features import MIN_WORDS
from llmray.data.minhash import I64, U64, WORDS, shingle_lists
from llmray.data.robust import Axis
from llmray.errors import ConfigError

_BUCKET_BITS = 18
_ONE = 2.0**32
"""A sum of a million logarithms in these units is far from the end of an int64."""
_MIX = 0.9
"""Weight of the pair against the word alone in P(b|a) = w·c(ab)/c(a) + (1 - w)·P(b) (Jelinek and Mercer 1980)."""
_MAX_LIFT = 64.0
"""Two rare words seen together once say no more than this: the logarithm's tail would be the score."""
_CONTROLS = (3, 7)
"""Places between the words of a control pair: beyond a phrase, within a topic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordCounts:
    """How often words come, by bucket."""

    buckets: NDArray[np.uint32]
    """Buckets that hold anything, ascending [B]."""
    counts: I64


@dataclass(frozen=True, kw_only=True, slots=True)
class Unigram:
    """Mean log-likelihood of a text's words, in nats a word; NaN for a text without words."""

    mads: float = 5.0
    """Scaled MADs below the median from which on a text is unlikely."""

    def __post_init__(self) -> None:
        if self.mads <= 0:
            raise ConfigError(f"unigram.mads ({self.mads}) must be above 0: try 5")

    @property
    def name(self) -> str:
        """The name of the rule."""
        return "unigram"

    @property
    def axis(self) -> Axis:
        """Only unlikely texts are unusual."""
        return Axis(mads=self.mads, side="low")

    def survey(self, texts: Sequence[str], ids: Sequence[bytes], *, total: int | None = None) -> WordCounts:
        """Counts of all words; ids and total do not matter."""
        del ids, total
        words_W, _ = _words(texts)
        return _sparse(np.bincount(words_W, minlength=1 << _BUCKET_BITS))

    def merge(self, surveys: Sequence[WordCounts]) -> WordCounts:
        """The sum."""
        return _sparse(_dense(surveys))

    def fit(self, surveys: Sequence[WordCounts]) -> I64:
        """Counts of each bucket [B]."""
        return _dense(surveys)

    def score(self, texts: Sequence[str], ids: Sequence[bytes], model: I64) -> NDArray[np.float64]:
        """Scores of texts that were surveyed [N]: each is left out of the counts that it is judged by."""
        del ids
        words_W, offsets_N1 = _words(texts)
        doc_U, word_U, own_U = _counted(words_W, offsets_N1)
        lengths_N = np.diff(offsets_N1)
        others_U = np.maximum(model[word_U] - own_U, 0)
        all_U = np.maximum(model.sum() - lengths_N[doc_U], 0) + len(model)
        terms_U = own_U * _fixed(np.log((others_U + 1) / all_U))
        return _means(terms_U, doc_U, lengths_N)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """How often each of some codes comes."""

    codes: NDArray[Any]
    """Ascending."""
    counts: I64

    @classmethod
    def of(cls, codes: NDArray[Any]) -> "Counts":
        """Count codes."""
        distinct, counts = np.unique(codes, return_counts=True)
        return cls(codes=distinct, counts=counts.astype(np.int64))

    def look_up(self, wanted: NDArray[Any]) -> I64:
        """The count of each wanted code; 0 for one that never comes."""
        if not len(self.codes):
            return np.zeros(len(wanted), np.int64)
        place = np.minimum(np.searchsorted(self.codes, wanted), len(self.codes) - 1)
        return np.where(self.codes[place] == wanted, self.counts[place], 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCounts:
    """What a sample says about words and pairs of neighbours."""

    keys: tuple[bytes, ...]
    """Documents of the sample, as `corpus.key_of` names them."""
    words: Counts
    pairs: Counts


@dataclass(frozen=True, kw_only=True, slots=True)
class WordOrder:
    """How much the word before tells of a word, in nats more than a word farther off does; NaN below 20 words."""

    sample: int = 20_000
    """Documents that pairs are learned from."""
    max_words: int = 1000
    """Words of each that are."""
    mads: float = 2.5
    """Scaled MADs below the median from which on the order of words is strange. Scores end where order tells nothing,
    some three MADs below that of documentation: 2.5 loses 0.3% of it and finds 70% of texts whose words were shuffled."""

    def __post_init__(self) -> None:
        if self.mads <= 0:
            raise ConfigError(f"word_order.mads ({self.mads}) must be above 0: try 2.5")
        if self.sample < 1 or self.max_words < 2:
            raise ConfigError(
                "word_order.sample must be 1 or more and word_order.max_words 2 or more: try 20000 and 1000"
            )

    @property
    def name(self) -> str:
        """The name of the rule."""
        return "word_order"

    @property
    def axis(self) -> Axis:
        """Only a strange order is unusual, not a well-known one."""
        return Axis(mads=self.mads, side="low")

    def survey(self, texts: Sequence[str], ids: Sequence[bytes], *, total: int | None = None) -> Sampled:
        """The first words of the documents that may be in the sample."""
        return sample(texts, ids, self.sample, self._encode, total=total)

    def merge(self, surveys: Sequence[Sampled]) -> Sampled:
        """The sample."""
        return merge_samples(surveys, self.sample)

    def fit(self, surveys: Sequence[Sampled]) -> PairCounts:
        """Counts of words and of pairs of neighbours in the sample."""
        merged = self.merge(surveys)
        doc_W = np.repeat(np.arange(len(merged.keys)), np.diff(merged.offsets))
        pair_P, _ = _pairs(merged.codes, doc_W, 1)
        return PairCounts(keys=merged.keys, words=Counts.of(merged.codes), pairs=Counts.of(pair_P))

    def score(self, texts: Sequence[str], ids: Sequence[bytes], model: PairCounts) -> NDArray[np.float64]:
        """Scores [N]; a document of the sample is left out of the counts that it is judged by."""
        codes_W, offsets_N1 = self._encode(texts)
        lengths_N = np.diff(offsets_N1)
        inside_N = places_of(model.keys, ids) >= 0
        doc_W = np.repeat(np.arange(len(texts)), lengths_N)
        word_W = np.maximum(_others(codes_W, doc_W, (codes_W, doc_W), inside_N, model.words), 1)
        all_N = model.words.counts.sum() - inside_N * lengths_N
        neighbour_P, at_P = _pairs(codes_W, doc_W, 1)
        sums_N, counts_N = np.zeros((2, len(texts)), np.int64), np.zeros((2, len(texts)), np.int64)
        for gap in (1, *_CONTROLS):
            pair_P, second_P = (neighbour_P, at_P) if gap == 1 else _pairs(codes_W, doc_W, gap)
            doc_P = doc_W[second_P]
            pairs_P = _others(pair_P, doc_P, (neighbour_P, doc_W[at_P]), inside_N, model.pairs)
            lift_P = pairs_P * (all_N[doc_P] / (word_W[second_P - gap] * word_W[second_P]))
            terms_P = _fixed(np.log((1 - _MIX) + _MIX * np.minimum(lift_P, _MAX_LIFT)))
            np.add.at(sums_N[int(gap != 1)], doc_P, terms_P)
            counts_N[int(gap != 1)] += np.bincount(doc_P, minlength=len(texts))
        means_N = sums_N / (np.maximum(counts_N, 1) * _ONE)
        return np.where(lengths_N >= MIN_WORDS, means_N[0] - means_N[1], np.nan)

    def _encode(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], I64]:
        hashes_W, offsets_N1 = shingle_lists(texts, WORDS)
        lengths_N = np.diff(offsets_N1)
        place_W = np.arange(len(hashes_W)) - np.repeat(offsets_N1[:-1], lengths_N)
        kept_N = np.minimum(lengths_N, self.max_words)
        codes_W = (hashes_W >> np.uint64(32)).astype(np.uint32)[place_W < self.max_words]
        return codes_W, np.concatenate(([0], np.cumsum(kept_N))).astype(np.int64)


def _words(texts: Sequence[str]) -> tuple[I64, I64]:
    hashes_W, offsets_N1 = shingle_lists(texts, WORDS)
    return (hashes_W >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64), offsets_N1


def _pairs(codes_W: NDArray[np.uint32], doc_W: I64, gap: int) -> tuple[U64, I64]:
    """Words of a text that stand `gap` places apart, as one number a pair, and where the second of each stands."""
    second_P = np.flatnonzero(doc_W[gap:] == doc_W[:-gap]) + gap
    wide_W = codes_W.astype(np.uint64)
    return (wide_W[second_P - gap] << np.uint64(32)) | wide_W[second_P], second_P


def _others(
    wanted_P: NDArray[Any], doc_P: I64, own: tuple[NDArray[Any], I64], inside_N: NDArray[np.bool_], table: Counts
) -> I64:
    """How often each wanted code is counted outside its own text [P].

    Args:
        wanted_P: codes.
        doc_P: the text that wants each.
        own: codes that the texts were counted with, and the text of each.
        inside_N: which texts were counted at all.
        table: the counts of all.
    """
    own_W, doc_W = own
    # Distinct codes are few and sorted, which a binary search in a large table rewards.
    distinct_U, number = np.unique(np.concatenate((wanted_P, own_W)), return_inverse=True)
    number_P, number_W = number[: len(wanted_P)], number[len(wanted_P) :]
    count_P = table.look_up(distinct_U)[number_P]
    if not inside_N.any():
        return count_P
    owned = Counts.of(doc_W * len(distinct_U) + number_W)
    return count_P - inside_N[doc_P] * owned.look_up(doc_P * len(distinct_U) + number_P)


def _counted(words_W: I64, offsets_N1: I64) -> tuple[I64, I64, I64]:
    """Text, word and number of times, for each text's distinct words."""
    doc_W = np.repeat(np.arange(len(offsets_N1) - 1), np.diff(offsets_N1))
    both, own_U = np.unique((doc_W << _BUCKET_BITS) | words_W, return_counts=True)
    return both >> _BUCKET_BITS, both & ((1 << _BUCKET_BITS) - 1), own_U.astype(np.int64)


def _means(terms_U: I64, doc_U: I64, lengths_N: I64) -> NDArray[np.float64]:
    """Mean of each text's terms over its length; NaN where that is zero."""
    sums_N = np.zeros(len(lengths_N), np.int64)
    np.add.at(sums_N, doc_U, terms_U)
    known = lengths_N > 0
    return np.where(known, sums_N / (np.maximum(lengths_N, 1) * _ONE), np.nan)


def _fixed(values: NDArray[np.float64]) -> I64:
    return np.rint(values * _ONE).astype(np.int64)


def _dense(surveys: Sequence[WordCounts]) -> I64:
    counts_B = np.zeros(1 << _BUCKET_BITS, np.int64)
    for survey in surveys:
        counts_B[survey.buckets] += survey.counts
    return counts_B


def _sparse(counts_B: NDArray[np.integer[Any]]) -> WordCounts:
    bucket_B = np.flatnonzero(counts_B)
    return WordCounts(buckets=bucket_B.astype(np.uint32), counts=counts_B[bucket_B].astype(np.int64))
