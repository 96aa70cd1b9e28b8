"""Pairs of documents that share LSH buckets and are alike: the exact Jaccard of their shingles.

In a bucket of ordinary size every two documents are compared, once however many buckets they share. A hot bucket
(boilerplate) would make that quadratic, so it is taken apart in two steps. First hub by hub: the best document is
compared with all the others, those alike leave, and the best of the rest is the next hub, for a few rounds; a heap of
copies is gone after one. What is left then shares its boilerplate and little else, so it is bucketed anew by the rare
shingles of which any two near repeats must share one (`set_kernels.prefixes`): that finds every pair at the threshold,
and the new buckets are small unless more than the threshold is boilerplate. Only those still hot are given a bounded
number of hubs; what is left then is a crowd, whose members were not all compared.

Who left with a hub has met the hub, and not everybody. If the hub stays, that is enough; if it goes for a better
document while they stay, they must be compared again with the others that stay: `Verified` names them, and `verify` (the
module) does that. Rejected: chaining neighbours of a sorted bucket without looking (it joins documents that merely met),
taking a shared bucket for a match (a third of such pairs are none), hubs alone (they leave out most pairs of a hot
bucket, and with them recall that was promised), and comparing those that left with everybody, which in a heap of copies
is quadratic or not done.

Pairs are never gathered: they are compared as they are found, document by document, so memory is that of the buckets.
Shape legend: D documents, S shingles, P pairs, B buckets, M members of all buckets, E edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llmray.data import set_kernels
from llmray.data.buckets import components, grouped, joined, select
from llmray.data.minhash import I64, U64

HOT_BUCKET = 256
"""Buckets of more documents than this are taken apart."""
FIRST_ROUNDS = 8
"""Hubs that remove heaps of copies before a bucket is taken apart by rare shingles."""
HUB_ROUNDS = 64
"""Hubs of what is hot even so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edges:
    """Verified pairs of documents."""

    left: I64
    right: I64
    """Document numbers; left < right, no pair twice, sorted [E]."""
    similarity: NDArray[np.float64]
    """How alike they are, at the threshold or above [E]."""

    def chosen(self, which_E: NDArray[np.bool_]) -> "Edges":
        """Some of them."""
        return Edges(left=self.left[which_E], right=self.right[which_E], similarity=self.similarity[which_E])


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified(Edges):
    """What came of comparing the documents of buckets.

    Two documents that share a bucket were compared, or one of them is a leaver, or both are in one crowd.
    """

    leavers: I64
    """Documents that left a hot bucket for being like a hub, ascending."""
    crowds: Sequence[I64]
    """Documents of hot buckets that were not compared with one another; those of a crowd are of one component."""
    num_candidates: int
    """Comparisons that were made."""


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

    def chosen(self, which: I64) -> "Shingled":
        """Some of the documents."""
        return Shingled(*select(self._shingles_S, self.offsets_D1, which))

    def compare_buckets(self, members_M: I64, offsets_B1: I64, threshold: float) -> Compared:
        """Every two documents that share a bucket, once; members ascend in each bucket."""
        arrays = (self._shingles_S, self.offsets_D1, members_M, offsets_B1)
        return Compared(*set_kernels.compare_buckets(*arrays, float(threshold)))

    def compare_with_hubs(self, members: I64, rounds: int, threshold: float) -> tuple[Compared, I64]:
        """Members hub by hub, and those that were alike to no hub and never one."""
        left, right, similarity, waiting, num_compared = set_kernels.compare_with_hubs(
            self._shingles_S, self.offsets_D1, np.ascontiguousarray(members), rounds, float(threshold)
        )
        return Compared(left, right, similarity, num_compared), waiting

    def by_rare_shingles(self, members: I64, threshold: float) -> tuple[I64, I64]:
        """Buckets of members such that any two at the threshold or above share one: who, and where each begins."""
        arrays = (self._shingles_S, self.offsets_D1, np.ascontiguousarray(members))
        return joined([grouped(*set_kernels.prefixes(*arrays, float(threshold)))])

    def settle(self, graph: sparse.csr_matrix, threshold: float, max_looks: int) -> tuple[I64, NDArray[np.float64]]:
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
            max_looks,
            kept_for_D,
            similarity_D,
        )
        return kept_for_D, similarity_D


def verify(members_M: I64, offsets_B1: I64, documents: Shingled, threshold: float) -> Verified:
    """Compare the documents that met; those at least `threshold` alike are joined by an edge.

    Document numbers must follow rank: 0 is the best. What is found in a component of buckets depends on it alone, so
    components can be verified together or apart.

    Args:
        members_M: documents, bucket by bucket, ascending in each.
    """
    hot_B = np.diff(offsets_B1) > HOT_BUCKET
    ordinary = [select(members_M, offsets_B1, np.flatnonzero(~hot_B))]
    with_hubs: list[Compared] = []
    crowds: list[I64] = []
    left_over: dict[int, list[I64]] = {}
    component_D = components(len(documents.offsets_D1) - 1, members_M, offsets_B1) if hot_B.any() else hot_B
    for bucket in np.flatnonzero(hot_B):
        members = members_M[offsets_B1[bucket] : offsets_B1[bucket + 1]]
        compared, waiting = documents.compare_with_hubs(members, FIRST_ROUNDS, threshold)
        with_hubs.append(compared)
        left_over.setdefault(int(component_D[members[0]]), []).append(waiting)
    for waiting_of_each in left_over.values():
        rare = documents.by_rare_shingles(np.unique(np.concatenate(waiting_of_each)), threshold)
        still_hot_B = np.diff(rare[1]) > HOT_BUCKET
        ordinary.append(select(*rare, np.flatnonzero(~still_hot_B)))
        # They overlap, as boilerplate has many shingles: together they cost what the largest would.
        together = np.unique(select(*rare, np.flatnonzero(still_hot_B))[0])
        compared, waiting = documents.compare_with_hubs(together, HUB_ROUNDS, threshold)
        with_hubs.append(compared)
        if len(waiting) > 1:
            crowds.append(waiting)
    found = [*with_hubs, documents.compare_buckets(*joined(ordinary), threshold)]
    left, right, similarity = each_once(found)
    return Verified(
        left=left,
        right=right,
        similarity=similarity,
        leavers=np.unique(np.concatenate([np.zeros(0, np.int64), *(one.right for one in with_hubs)])),
        crowds=crowds,
        num_candidates=sum(one.num_compared for one in found),
    )


def each_once(parts: Sequence[Edges | Compared]) -> tuple[I64, I64, NDArray[np.float64]]:
    """Left, right and similarity of the pairs of several parts, sorted."""
    left_E, right_E = (np.concatenate([getattr(part, side) for part in parts]) for side in ("left", "right"))
    similarity_E = np.concatenate([part.similarity for part in parts])
    _, first = np.unique(left_E * (int(right_E.max(initial=0)) + 1) + right_E, return_index=True)
    return left_E[first], right_E[first], similarity_E[first]
