"""Semantic duplicates: texts whose embeddings are nearly the same, compared within clusters.

What this finds and MinHash does not: the same said in other words or in another order. What MinHash finds and this does
not: copies as such, with a number that a person can check, at any length, in any language. A cosine is an opinion of
the model, and it has blind spots. MiniLM reads the first 256 word pieces of a text, so long texts that part later look
alike; it knows English; and it hardly sees a "not": "the file is closed when the block ends" and "is not closed" lie at
0.98, as close as a question and its paraphrase, and two word problems that differ in their numbers can lie at 0.95. So
it is off unless asked for, and it comes after MinHash, which settles what it can prove.

As in SemDeDup (Abbas et al. 2023, arXiv 2303.09540) the vectors are clustered and compared within clusters. There a
pair on a border is lost; here a vector belongs to its few nearest clusters, and two are compared where they share one.
On 6,000 MRPC sentences and GSM8K questions by MiniLM (77 clusters) one cluster each finds 96.4% of the pairs at 0.95 and
92.2% at 0.8; two find 100% and 99.2% with 7% of all comparisons, three 100% and 99.8% with 15%.
The clusters come from whole-number sums of snapped vectors (see `embedding.snap`), so the same documents in the same
order give the same pairs on any machine. Rejected: an approximate index (HNSW), whose graph depends on the order of
insertion and on threads; and k-means in floats, for the same reason.

Shapes: N documents in rank order, D dimensions, K clusters, P probes, M members of a cluster, E pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llmray.data import embedding
from llmray.data.embedding import GRID, Vectors
from llmray.data.minhash import I64
from llmray.data.near import Edges
from llmray.errors import ConfigError

MAX_BETTER = 64
"""Pairs kept of one document with better ones, the best first: so a thousand copies of one text are no million pairs."""
_BRUTE_FORCE = 2048
"""Up to here all pairs are compared."""
_ROUNDS = 10
_SAMPLE_PER_CLUSTER = 64
_BLOCK = 1 << 22
"""Similarities held at once: 16 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Semantic:
    """What counts as a semantic repeat."""

    embedding: str | None = field(default=None, metadata={"code": True})
    """`minilm`, the folder of a sentence-transformers model, or `module:attribute`; None to look for none."""
    threshold: float = 0.95
    """Cosine similarity from which on two rows are repeats."""
    probes: int = 2
    """Nearest clusters that each row is compared in."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"semantic.threshold ({self.threshold}) must be above 0 and at most 1: try 0.95")
        if self.probes < 1:
            raise ConfigError(f"semantic.probes ({self.probes}) must be 1 or more: try 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared(Edges):
    """Pairs of documents at the threshold or above; the similarity is their cosine."""

    num_candidates: int
    """Comparisons that were made."""
    num_skipped: int
    """Pairs at the threshold that were left out because the worse document has `MAX_BETTER` better ones: it goes for one
    of those, or stays."""


class Embedded:
    """Documents as snapped vectors, for `components.resolve`."""

    def __init__(self, vectors_ND: NDArray[np.float32] | NDArray[np.int16]) -> None:
        self._vectors_ND = vectors_ND

    def jaccard(self, left: I64, right: I64) -> NDArray[np.float64]:
        """Cosine similarity of document `left[i]` and `right[i]`, under the name that the resolution asks for."""
        result = np.empty(len(left))
        for low in range(0, len(left), 1 << 14):
            block = slice(low, low + (1 << 14))
            result[block] = _cosines(self._vectors_ND[left[block]], self._vectors_ND[right[block]])
        return result

    def settle(self, graph: sparse.csr_matrix, threshold: float, max_looks: int) -> tuple[I64, NDArray[np.float64]]:
        """Best first: a document that nothing better removed is kept, and removes those it has an edge with.

        The edges are all there is to know, so nobody need be compared again.
        """
        del threshold, max_looks
        num_documents = graph.shape[0]
        kept_for_D, similarity_D = np.arange(num_documents), np.ones(num_documents)
        decided_D = np.zeros(num_documents, bool)
        for document in np.flatnonzero(np.diff(graph.indptr)):
            if decided_D[document]:
                continue
            decided_D[document] = True
            edges = slice(graph.indptr[document], graph.indptr[document + 1])
            others, alike = graph.indices[edges], graph.data[edges]
            gone = ~decided_D[others]
            kept_for_D[others[gone]], similarity_D[others[gone]] = document, alike[gone]
            decided_D[others[gone]] = True
        return kept_for_D, similarity_D


def semantic_pairs(
    vectors_ND: NDArray[np.float32] | NDArray[np.int16],
    threshold: float,
    *,
    probes: int = 2,
    num_clusters: int | None = None,
    seed: int = 0,
) -> Compared:
    """Pairs of documents that share a cluster and are at least `threshold` alike.

    Args:
        vectors_ND: snapped vectors of documents in rank order, best first, as `embedding.embed` makes them; they may
            be int16 in a mapped file. A vector of zeros is like nothing.
        threshold: smallest cosine of a pair.
        probes: nearest clusters that a document is compared in.
        num_clusters: the square root of N where None, or one where N is small.
        seed: of the documents that clusters start from.
    """
    num = len(vectors_ND)
    if num_clusters is None:
        num_clusters = 1 if num <= _BRUTE_FORCE else round(num**0.5)
    found = [np.zeros((0, 2), np.int64)]
    num_candidates, num_skipped = 0, 0
    for members in clusters(vectors_ND, num_clusters, probes=probes, seed=seed):
        pairs, skipped = _within(vectors_ND, members, threshold)
        found.append(pairs)
        num_candidates += len(members) * (len(members) - 1) // 2
        num_skipped += skipped
    pairs_E2 = np.unique(np.concatenate(found), axis=0)
    # Sorted by the worse document, then by the better: the place within a run says how many better ones come before.
    pairs_E2 = pairs_E2[np.lexsort((pairs_E2[:, 0], pairs_E2[:, 1]))]
    runs_E = np.searchsorted(pairs_E2[:, 1], pairs_E2[:, 1])
    kept_E = np.arange(len(pairs_E2)) - runs_E < MAX_BETTER
    num_skipped += int((~kept_E).sum())
    pairs_E2 = pairs_E2[kept_E]
    pairs_E2 = pairs_E2[np.lexsort((pairs_E2[:, 1], pairs_E2[:, 0]))]
    left, right = pairs_E2[:, 0], pairs_E2[:, 1]
    return Compared(
        left=left,
        right=right,
        similarity=Embedded(vectors_ND).jaccard(left, right),
        num_candidates=num_candidates,
        num_skipped=num_skipped,
    )


def clusters(
    vectors_ND: NDArray[np.float32] | NDArray[np.int16], num_clusters: int, *, probes: int = 2, seed: int = 0
) -> Iterator[I64]:
    """Members of each cluster, ascending; each document is in its `probes` nearest."""
    num = len(vectors_ND)
    num_clusters = min(num_clusters, num)
    if num_clusters <= 1:
        yield np.arange(num)
        return
    centres_KD = _centres(vectors_ND, num_clusters, seed)
    probes = min(probes, num_clusters)
    nearest_NP = np.empty((num, probes), np.int32)
    for block in _blocks(num, num_clusters):
        nearest_NP[block] = _nearest(np.asarray(vectors_ND[block], np.float32), centres_KD, probes)
    order = np.argsort(nearest_NP.ravel(), kind="stable")
    cuts = np.searchsorted(nearest_NP.ravel()[order], np.arange(num_clusters + 1))
    for start, end in pairwise(cuts.tolist()):
        yield order[start:end] // probes


def _centres(vectors_ND: NDArray[np.float32] | NDArray[np.int16], num_clusters: int, seed: int) -> Vectors:
    """Spherical k-means (Dhillon and Modha 2001) on a sample: the mean of each cluster, at length one [K, D]."""
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = generator.permutation(len(vectors_ND))[: _SAMPLE_PER_CLUSTER * num_clusters]
    sample_SD = np.asarray(vectors_ND[np.sort(chosen)], np.float32)
    centres_KD = sample_SD[np.sort(generator.permutation(len(sample_SD))[:num_clusters])]
    nearest_S = np.empty(len(sample_SD), np.int64)
    for _ in range(_ROUNDS):
        for block in _blocks(len(sample_SD), num_clusters):
            nearest_S[block] = _nearest(sample_SD[block], centres_KD, 1)[:, 0]
        ones = np.ones(len(sample_SD))
        members_KS = sparse.csr_matrix((ones, (nearest_S, np.arange(len(ones)))), shape=(num_clusters, len(ones)))
        # Sums of whole numbers far below 2^53: exact, so the order of documents does not show.
        sums_KD = members_KS @ sample_SD.astype(np.float64)
        empty_K1 = ~sums_KD.any(axis=1, keepdims=True)
        centres_KD = np.where(empty_K1, centres_KD, embedding.snap(sums_KD))
    return centres_KD


def _nearest(vectors_BD: Vectors, centres_KD: Vectors, probes: int) -> NDArray[np.int32]:
    """The nearest centres of each vector, nearest first; of equals the first."""
    likeness_BK = vectors_BD @ centres_KD.T
    nearest_BP = np.empty((len(vectors_BD), probes), np.int32)
    for probe in range(probes):
        nearest_BP[:, probe] = likeness_BK.argmax(axis=1)
        likeness_BK[np.arange(len(vectors_BD)), nearest_BP[:, probe]] = -np.inf
    return nearest_BP


def _within(vectors_ND: NDArray[np.float32] | NDArray[np.int16], members: I64, threshold: float) -> tuple[I64, int]:
    """Pairs of a cluster's members at the threshold, the best `MAX_BETTER` of each worse document [E, 2]."""
    found, skipped = [np.zeros((0, 2), np.int64)], 0
    vectors_MD = np.asarray(vectors_ND[members], np.float32)
    # Grid rounding moves a length by at most sqrt(D)/2 steps, so nothing at the threshold lies below this.
    shortest = GRID - vectors_MD.shape[1] ** 0.5 / 2
    least = threshold * shortest * shortest - 1
    for block in _blocks(len(members), len(members)):
        likeness_BM = vectors_MD[block] @ vectors_MD[: block.stop].T
        worse, better = np.nonzero(likeness_BM >= least)
        worse += block.start
        earlier = better < worse
        worse, better = worse[earlier], better[earlier]
        exact = np.empty(len(worse))
        for low in range(0, len(worse), 1 << 14):
            part = slice(low, low + (1 << 14))
            exact[part] = _cosines(vectors_MD[worse[part]], vectors_MD[better[part]])
        worse, better = worse[exact >= threshold], better[exact >= threshold]
        place = np.arange(len(worse)) - np.searchsorted(worse, worse)
        skipped += int((place >= MAX_BETTER).sum())
        worse, better = worse[place < MAX_BETTER], better[place < MAX_BETTER]
        found.append(np.stack((members[better], members[worse]), axis=1))
    return np.concatenate(found), skipped


def _cosines(
    left_ED: NDArray[np.float32] | NDArray[np.int16], right_ED: NDArray[np.float32] | NDArray[np.int16]
) -> NDArray[np.float64]:
    left, right = np.asarray(left_ED, np.float64), np.asarray(right_ED, np.float64)
    dots_E = (left * right).sum(axis=1)
    squares_E = np.square(left).sum(axis=1) * np.square(right).sum(axis=1)
    # One square root of a whole number, not two: a vector's cosine with itself is then exactly 1.
    return dots_E / np.sqrt(np.where(squares_E > 0, squares_E, 1.0))


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, num_columns))
    for low in range(0, num_rows, step):
        yield slice(low, min(low + step, num_rows))
