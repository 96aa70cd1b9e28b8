"""Candidate pairs from shared LSH buckets, and their exact shingle Jaccard.

In a bucket of ordinary size every two documents are compared, once however many buckets they share. A hot bucket
(boilerplate) would make that quadratic, so it is taken apart in two steps. First hub by hub: the best document is
compared with all the others, those alike leave, and the best of the rest is the next hub, for a few rounds; a heap of
copies is gone after one. What is left then shares its boilerplate and little else, so it is bucketed anew by the rare
shingles of which any two near repeats must share one (`set_kernels.prefixes`): that finds every pair at the threshold,
and the new buckets are small unless more than the threshold is boilerplate. Only those still hot are given a bounded
number of hubs; pairs that are then left out are counted and reported. Rejected: chaining neighbours of a sorted bucket
without looking (it joins documents that merely met), taking a shared bucket for a match (a third of such pairs are
none), and hubs alone (they leave out most pairs of a hot bucket, and with them recall that was promised).

Pairs are never gathered: they are compared as they are found, document by document, so memory is that of the buckets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from llmray.data import set_kernels
from llmray.data.minhash import I64, U64, mix_all

HOT_BUCKET = 256
"""Buckets of more documents than this are taken apart."""
FIRST_ROUNDS = 8
"""Hubs that remove heaps of copies before a bucket is taken apart by rare shingles."""
HUB_ROUNDS = 64
"""Hubs of what is hot even so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """Sets of two documents or more that met; none twice."""

    members: I64
    """Document numbers, bucket by bucket, ascending in each [M]."""
    offsets: I64
    """Bucket b is `members[offsets[b]:offsets[b + 1]]` [B + 1]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[I64]:
        for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.members[begin:end]

    def documents(self) -> I64:
        """Documents that are in some bucket, ascending."""
        return np.unique(self.members)

    def renumbered(self, number_D: I64) -> "Buckets":
        """The same with `number_D[d]` for document d, which must keep their order."""
        return Buckets(members=number_D[self.members], offsets=self.offsets)

    def chosen(self, which_B: NDArray[np.bool_]) -> "Buckets":
        """Some of the buckets."""
        sizes_B = np.diff(self.offsets)
        return Buckets(
            members=self.members[np.repeat(which_B, sizes_B)],
            offsets=np.concatenate(([0], np.cumsum(sizes_B[which_B]))).astype(np.int64),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Edges:
    """Verified pairs of documents."""

    left: I64
    right: I64
    """Document numbers; left < right, no pair twice, sorted [E]."""
    similarity: NDArray[np.float64]
    """Exact Jaccard of their shingles, at the threshold or above [E]."""
    num_candidates: int
    """Comparisons that were made."""
    num_skipped: int
    """Pairs of hot buckets that may be alike and were not compared."""


class Compared(NamedTuple):
    """Pairs at the threshold or above, and how many were compared to find them."""

    left: I64
    right: I64
    similarity: NDArray[np.float64]
    num_compared: int


class Shingled:
    """Documents as sets of shingles (`minhash.shingle_sets`), and how they are compared."""

    def __init__(self, shingles_S: U64, offsets_D1: I64) -> None:
        self._shingles_S = np.ascontiguousarray(shingles_S, np.uint64)
        self.offsets_D1 = np.ascontiguousarray(offsets_D1, np.int64)

    def jaccard(self, left_P: I64, right_P: I64, threshold: float = 0.0) -> NDArray[np.float64]:
        """Exact Jaccard similarity of pairs; 0 where it is below the threshold, or both are empty."""
        left_P, right_P = np.ascontiguousarray(left_P, np.int64), np.ascontiguousarray(right_P, np.int64)
        return set_kernels.jaccard_of_pairs(self._shingles_S, self.offsets_D1, left_P, right_P, float(threshold))

    def compare_buckets(self, buckets: Buckets, threshold: float) -> Compared:
        """Every two documents that share a bucket, once."""
        arrays = (self._shingles_S, self.offsets_D1, buckets.members, buckets.offsets)
        return Compared(*set_kernels.compare_buckets(*arrays, float(threshold)))

    def compare_with_hubs(self, members: I64, rounds: int, threshold: float) -> tuple[Compared, I64]:
        """Members hub by hub, and those that were alike to no hub and never one."""
        left, right, similarity, waiting, num_compared = set_kernels.compare_with_hubs(
            self._shingles_S, self.offsets_D1, np.ascontiguousarray(members), rounds, float(threshold)
        )
        return Compared(left, right, similarity, num_compared), waiting

    def by_rare_shingles(self, members: I64, threshold: float) -> Buckets:
        """Buckets of members such that any two at the threshold or above share one."""
        return merged([bucketed(*set_kernels.prefixes(self._shingles_S, self.offsets_D1, members, float(threshold)))])

    def settle(self, graph: sparse.csr_matrix, threshold: float, max_far: int) -> tuple[I64, NDArray[np.float64]]:
        """For each document the kept one that it repeats, and how closely (`components.resolve`)."""
        num_documents = len(self.offsets_D1) - 1
        kept_for_D, similarity_D = np.arange(num_documents), np.ones(num_documents)
        set_kernels.settle(
            self._shingles_S,
            self.offsets_D1,
            graph.indptr.astype(np.int64),
            graph.indices.astype(np.int64),
            graph.data,
            float(threshold),
            max_far,
            kept_for_D,
            similarity_D,
        )
        return kept_for_D, similarity_D


def candidates(bands_DN: U64, kind_D: I64) -> Buckets:
    """Documents of one kind that share a bucket in some band.

    Args:
        bands_DN: bucket names [D, N].
        kind_D: documents of different kinds never share a bucket [D].
    """
    everyone = np.arange(len(bands_DN))
    apart_D = mix_all(np.asarray(kind_D).astype(np.uint64))
    return merged([bucketed(bands_DN[:, band] ^ apart_D, everyone) for band in range(bands_DN.shape[1])])


def bucketed(names_E: U64, documents_E: I64) -> Buckets:
    """Documents under each name that two or more have; of a slice of an index of bands, say.

    Args:
        names_E: bucket names, in any order.
        documents_E: the document of each; none twice under one name.
    """
    if not len(names_E):
        return Buckets(members=np.zeros(0, np.int64), offsets=np.zeros(1, np.int64))
    ascending = bool((documents_E[1:] >= documents_E[:-1]).all())
    order_E = np.argsort(names_E, kind="stable") if ascending else np.lexsort((documents_E, names_E))
    sorted_E = names_E[order_E]
    begins_B = np.flatnonzero(np.concatenate(([True], sorted_E[1:] != sorted_E[:-1])))
    every = Buckets(members=documents_E[order_E], offsets=np.append(begins_B, len(order_E)))
    return every.chosen(np.diff(every.offsets) > 1)


def merged(parts: Sequence[Buckets]) -> Buckets:
    """Buckets of several parts, each set of documents once; sets are told apart by 64-bit hashes."""
    members = np.concatenate([np.zeros(0, np.int64), *[part.members for part in parts]])
    sizes_B = np.concatenate([np.zeros(0, np.int64), *[np.diff(part.offsets) for part in parts]])
    offsets = np.concatenate(([0], np.cumsum(sizes_B))).astype(np.int64)
    everything = Buckets(members=members, offsets=offsets)
    if not len(everything):
        return everything
    set_B = np.add.reduceat(mix_all(members.astype(np.uint64) + np.uint64(1)), offsets[:-1])
    once_B = np.zeros(len(everything), bool)
    once_B[np.unique(set_B, return_index=True)[1]] = True
    return everything.chosen(once_B)


def components(buckets: Buckets, num_documents: int) -> I64:
    """The number of the component of each document, where documents that share a bucket are in one."""
    inside_M = np.ones(len(buckets.members), bool)
    inside_M[buckets.offsets[1:] - 1] = False
    follows = np.flatnonzero(inside_M)
    links = (np.ones(len(follows), bool), (buckets.members[follows], buckets.members[follows + 1]))
    graph = sparse.coo_matrix(links, shape=(num_documents, num_documents))
    return csgraph.connected_components(graph, directed=False)[1].astype(np.int64)


def verify(buckets: Buckets, documents: Shingled, threshold: float) -> Edges:
    """Compare the documents that met; those at least `threshold` alike are joined by an edge.

    Document numbers must follow rank: 0 is the best. What is found in a component of buckets depends on it alone, so
    components can be verified together or apart.
    """
    hot_B = np.diff(buckets.offsets) > HOT_BUCKET
    found: list[Compared] = []
    anew: list[Buckets] = []
    num_skipped = 0
    if hot_B.any():
        left_over: dict[int, list[I64]] = {}
        component_D = components(buckets, len(documents.offsets_D1) - 1)
        for members in buckets.chosen(hot_B):
            compared, waiting = documents.compare_with_hubs(members, FIRST_ROUNDS, threshold)
            found.append(compared)
            left_over.setdefault(int(component_D[members[0]]), []).append(waiting)
        for waiting_of_each in left_over.values():
            rare = documents.by_rare_shingles(np.unique(np.concatenate(waiting_of_each)), threshold)
            hot_B_anew = np.diff(rare.offsets) > HOT_BUCKET
            anew.append(rare.chosen(~hot_B_anew))
            # They overlap, as boilerplate has many shingles: together they cost what the largest would.
            compared, waiting = documents.compare_with_hubs(rare.chosen(hot_B_anew).documents(), HUB_ROUNDS, threshold)
            found.append(compared)
            num_skipped += len(waiting) * (len(waiting) - 1) // 2
    found.append(documents.compare_buckets(merged([buckets.chosen(~hot_B), *anew]), threshold))
    left, right = np.concatenate([part.left for part in found]), np.concatenate([part.right for part in found])
    _, first = np.unique(left * len(documents.offsets_D1) + right, return_index=True)
    return Edges(
        left=left[first],
        right=right[first],
        similarity=np.concatenate([part.similarity for part in found])[first],
        num_candidates=sum(part.num_compared for part in found),
        num_skipped=num_skipped,
    )
