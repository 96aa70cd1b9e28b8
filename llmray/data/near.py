"""Candidate pairs from shared LSH buckets, and their exact shingle Jaccard.

In a bucket of ordinary size every pair is a candidate. A hot bucket (boilerplate) is dealt with hub by hub: the best
document is compared with all the others, those it matches leave, and the best of the rest is the next hub, for a fixed
number of rounds; the pairs that are then left out are counted and reported. So no bucket is quadratic. Rejected:
chaining neighbours of a sorted bucket without looking (it joins documents that merely met), and taking a shared bucket
for a match (a third of such pairs are none).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llmray.data.minhash import I64, U64

HOT_BUCKET = 48
"""Buckets of more documents than this are dealt with hub by hub."""
HUB_ROUNDS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Edges:
    """Verified pairs of documents."""

    left: I64
    right: I64
    """Document numbers; left < right, no pair twice, sorted [E]."""
    similarity: NDArray[np.float64]
    """Exact Jaccard of their shingles, at the threshold or above [E]."""
    num_candidates: int
    """Pairs that were compared."""
    num_skipped: int
    """Pairs of hot buckets that were not compared."""


class Shingled:
    """Documents as rows of a sparse 0/1 matrix over the shingles that any of them has."""

    def __init__(self, shingles_S: U64, offsets_D1: I64) -> None:
        _, columns = np.unique(shingles_S, return_inverse=True)
        width = int(columns.max()) + 1 if len(columns) else 1
        data = np.ones(len(columns), np.int32)
        self._matrix = sparse.csr_matrix((data, columns, offsets_D1), shape=(len(offsets_D1) - 1, width))
        self._size = np.diff(offsets_D1)

    def jaccard(self, left: I64, right: I64) -> NDArray[np.float64]:
        """Jaccard similarity of document `left[i]` and `right[i]`; 0 where both are empty."""
        result = np.empty(len(left))
        for low in range(0, len(left), 1 << 16):
            here, there = left[low : low + (1 << 16)], right[low : low + (1 << 16)]
            shared = np.asarray(self._matrix[here].multiply(self._matrix[there]).sum(axis=1)).ravel()
            union = self._size[here] + self._size[there] - shared
            result[low : low + (1 << 16)] = shared / np.maximum(union, 1)
        return result


def candidates(bands_DN: U64, kind_D: I64) -> list[I64]:
    """Buckets of two or more documents of one kind, each sorted by document number, none twice.

    Args:
        bands_DN: bucket names [D, N].
        kind_D: documents of different kinds never share a bucket [D].
    """
    buckets: dict[bytes, I64] = {}
    for band in range(bands_DN.shape[1]):
        order = np.lexsort((bands_DN[:, band], kind_D))
        names, kinds = bands_DN[order, band], kind_D[order]
        cuts = np.flatnonzero((names[1:] != names[:-1]) | (kinds[1:] != kinds[:-1])) + 1
        starts, ends = np.concatenate(([0], cuts)), np.concatenate((cuts, [len(order)]))
        shared = ends - starts > 1
        for start, end in zip(starts[shared], ends[shared], strict=True):
            members = np.sort(order[start:end])
            buckets.setdefault(members.tobytes(), members)
    return [buckets[name] for name in sorted(buckets)]


def verify(buckets: list[I64], documents: Shingled, threshold: float) -> Edges:
    """Compare the documents that met; those at least `threshold` alike are joined by an edge.

    Document numbers must follow rank: 0 is the best.
    """
    small = [members for members in buckets if len(members) <= HOT_BUCKET]
    pairs = _distinct([_all_pairs(members) for members in small])
    likeness = documents.jaccard(pairs[:, 0], pairs[:, 1])
    found = [(pairs[likeness >= threshold], likeness[likeness >= threshold])]
    num_candidates, num_skipped = len(pairs), 0
    for members in buckets:
        if len(members) > HOT_BUCKET:
            edges, similarity, compared, skipped = _by_hubs(members, documents, threshold)
            found.append((edges, similarity))
            num_candidates += compared
            num_skipped += skipped
    edges_E2 = np.concatenate([edges for edges, _ in found])
    similarity_E = np.concatenate([similarity for _, similarity in found])
    unique_E2, first = np.unique(edges_E2, axis=0, return_index=True)
    return Edges(
        left=unique_E2[:, 0],
        right=unique_E2[:, 1],
        similarity=similarity_E[first],
        num_candidates=num_candidates,
        num_skipped=num_skipped,
    )


def _by_hubs(members: I64, documents: Shingled, threshold: float) -> tuple[I64, NDArray[np.float64], int, int]:
    edges, similarities, compared = [np.zeros((0, 2), np.int64)], [np.zeros(0)], 0
    waiting = members
    for _ in range(HUB_ROUNDS):
        if len(waiting) < 2:
            break
        hub, others = waiting[0], waiting[1:]
        likeness = documents.jaccard(np.full(len(others), hub), others)
        alike = likeness >= threshold
        compared += len(others)
        edges.append(np.stack((np.full(alike.sum(), hub), others[alike]), axis=1))
        similarities.append(likeness[alike])
        waiting = others[~alike]
    skipped = len(waiting) * (len(waiting) - 1) // 2
    return np.concatenate(edges), np.concatenate(similarities), compared, skipped


def _all_pairs(members: I64) -> I64:
    left, right = np.triu_indices(len(members), 1)
    return np.stack((members[left], members[right]), axis=1)


def _distinct(pairs: list[I64]) -> I64:
    if not pairs:
        return np.zeros((0, 2), np.int64)
    return np.unique(np.concatenate(pairs), axis=0)
