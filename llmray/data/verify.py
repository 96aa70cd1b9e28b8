"""A batch of documents that met: compare them exactly, and decide which go. Pure; texts come from outside.

New rows that repeat a row of the snapshot that is added to go first: an old row always stays. The others are compared
bucket by bucket, and clusters are resolved best first (`components`). Shingles of a batch are held at once if they are
of ordinary size; a giant component is gone through in slices, so that memory stays bounded, and only what was found to
be alike is looked at together. Shape legend: C documents of the batch by rank, P pairs with old rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray.data import minhash, near
from llmray.data.buckets import Buckets, components, select
from llmray.data.components import resolve
from llmray.data.config import CurateConfig
from llmray.data.near import Edges, Shingled

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

SLICE_CHARACTERS = 64 << 20
"""Text whose shingles are held at once."""

Texts = Callable[[I64], pa.Array]
"""What is compared of some rows, given in ascending order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """What became of the documents of a batch; old rows are numbered from R, the number of new ones, on."""

    rows_C: I64
    kept_for_C: I64
    """The kept row that each repeats; its own number where it stays."""
    similarity_C: F64
    cluster_C: I64
    """The best row of its cluster; its own number for a document without repeats."""
    num_candidates: int
    num_skipped: int


def verify_batch(
    batch: Buckets,
    config: CurateConfig,
    *,
    rank_R: NDArray[np.int64],
    length_R: NDArray[np.int64],
    texts: Texts,
    old_texts: Texts,
) -> Verdicts:
    """Verify and resolve a batch."""
    rows = np.unique(np.concatenate((batch.members_M, batch.new_P)))
    rows = rows[np.argsort(rank_R[rows])]
    kept_for, similarity, cluster = rows.copy(), np.ones(len(rows)), rows.copy()
    place = _Places(rows)
    gone, old, alike = _repeat_old(batch, length_R, texts, old_texts, config)
    at = place.of(gone)
    kept_for[at] = cluster[at] = old + len(rank_R)
    similarity[at] = alike
    num_candidates, num_skipped = len(batch.new_P), 0
    member_M, offsets_B1 = _without(place.of(batch.members_M), batch.offsets_B1, at, len(rows))
    if len(member_M):
        compare = _Compare(rows, length_R, texts, config)
        edges = compare.edges(member_M, offsets_B1)
        num_candidates, num_skipped = num_candidates + edges.num_candidates, edges.num_skipped
        for documents, kept, like, best in compare.resolved(edges):
            kept_for[documents], similarity[documents], cluster[documents] = rows[kept], like, rows[best]
    return Verdicts(
        rows_C=rows,
        kept_for_C=kept_for,
        similarity_C=similarity,
        cluster_C=cluster,
        num_candidates=num_candidates,
        num_skipped=num_skipped,
    )


def shingled(texts: pa.Array, config: CurateConfig) -> Shingled:
    """Texts by their sets of shingles."""
    return Shingled(*minhash.shingle_sets(texts, config.dedup.shingling))


class _Places:
    """Where each row stands in a list of rows."""

    def __init__(self, rows: I64) -> None:
        self._order = np.argsort(rows)
        self._sorted = rows[self._order]

    def of(self, rows: I64) -> I64:
        return self._order[np.searchsorted(self._sorted, rows)]


def _repeat_old(
    batch: Buckets, length_R: I64, texts: Texts, old_texts: Texts, config: CurateConfig
) -> tuple[I64, I64, F64]:
    """New rows that repeat an old one: the row, the old row most like it (the first of equals), and how alike."""
    likeness = np.zeros(len(batch.new_P))
    # Pairs are in order of the new row: slices of them name few documents twice.
    for low, high in _cuts(length_R[batch.new_P]):
        new, new_at = np.unique(batch.new_P[low:high], return_inverse=True)
        old, old_at = np.unique(batch.old_P[low:high], return_inverse=True)
        documents = shingled(pa.concat_arrays([texts(new), old_texts(old)]), config)
        likeness[low:high] = documents.jaccard(new_at, old_at + len(new))
    alike = np.flatnonzero(likeness >= config.dedup.threshold)
    order = alike[np.lexsort((batch.old_P[alike], -likeness[alike], batch.new_P[alike]))]
    _, first = np.unique(batch.new_P[order], return_index=True)
    best = order[first]
    return batch.new_P[best], batch.old_P[best], likeness[best]


def _without(member_M: I64, offsets_B1: I64, gone: I64, num_documents: int) -> tuple[I64, I64]:
    """Buckets without the documents that have gone; those of fewer than two are none."""
    left = np.ones(num_documents, bool)
    left[gone] = False
    bucket_M = np.repeat(np.arange(len(offsets_B1) - 1), np.diff(offsets_B1))
    stays = left[member_M]
    sizes = np.bincount(bucket_M[stays], minlength=len(offsets_B1) - 1)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return select(member_M[stays], offsets, np.flatnonzero(sizes > 1))


class _Compare:
    """Comparison of documents, in slices where there are too many for one."""

    def __init__(self, rows: I64, length_R: I64, texts: Texts, config: CurateConfig) -> None:
        self._rows = rows
        self._length = length_R[rows]
        self._texts = texts
        self._config = config
        self._held: tuple[I64, Shingled] | None = None

    def edges(self, member_M: I64, offsets_B1: I64) -> Edges:
        """Verified pairs among the members of the buckets."""
        weight = np.add.reduceat(self._length[member_M], offsets_B1[:-1])
        everyone = np.unique(member_M)
        one = int(self._length[everyone].sum()) <= SLICE_CHARACTERS
        found = [
            self._slice(*select(member_M, offsets_B1, np.arange(low, high)))
            for low, high in ([(0, len(weight))] if one else _cuts(weight))
        ]
        pairs = np.concatenate([np.stack((edges.left, edges.right), axis=1) for edges in found])
        unique, first = np.unique(pairs, axis=0, return_index=True)
        return Edges(
            left=unique[:, 0],
            right=unique[:, 1],
            similarity=np.concatenate([edges.similarity for edges in found])[first],
            num_candidates=sum(edges.num_candidates for edges in found),
            num_skipped=sum(edges.num_skipped for edges in found),
        )

    def resolved(self, edges: Edges) -> "list[tuple[I64, I64, F64, I64]]":
        """Documents, the kept document of each, how alike, the best of its cluster: slice by slice."""
        documents, place = np.unique(np.concatenate((edges.left, edges.right)), return_inverse=True)
        if not len(documents):
            return []
        left, right = place[: len(edges.left)], place[len(edges.left) :]
        pairs_M = np.stack((left, right), axis=1).ravel()
        label = components(len(documents), pairs_M, np.arange(0, len(pairs_M) + 1, 2))
        order = np.argsort(label, kind="stable")
        sizes = np.bincount(label)
        weight = np.bincount(label, self._length[documents]).astype(np.int64)
        ends = np.concatenate(([0], np.cumsum(sizes)))
        found = []
        for low, high in _cuts(weight):
            mine = np.sort(order[ends[low] : ends[high]])
            inside = (label[left] >= low) & (label[left] < high)
            part = Edges(
                left=np.searchsorted(mine, left[inside]),
                right=np.searchsorted(mine, right[inside]),
                similarity=edges.similarity[inside],
                num_candidates=0,
                num_skipped=0,
            )
            chosen = documents[mine]
            made = resolve(len(mine), part, self._shingles(chosen), self._config.dedup.threshold)
            found.append((chosen, chosen[made.kept_for], made.similarity, chosen[made.cluster]))
        return found

    def _slice(self, member_M: I64, offsets_B1: I64) -> Edges:
        documents, place = np.unique(member_M, return_inverse=True)
        buckets = near.Buckets(members=place, offsets=offsets_B1)
        edges = near.verify(buckets, self._shingles(documents), self._config.dedup.threshold)
        return Edges(
            left=documents[edges.left],
            right=documents[edges.right],
            similarity=edges.similarity,
            num_candidates=edges.num_candidates,
            num_skipped=edges.num_skipped,
        )

    def _shingles(self, documents: I64) -> Shingled:
        """The documents' shingles; ascending numbers are ascending ranks."""
        if self._held is not None and np.array_equal(self._held[0], documents):
            return self._held[1]
        rows = self._rows[documents]
        ascending = np.sort(rows)
        by_rank = self._texts(ascending).take(pa.array(np.searchsorted(ascending, rows)))
        self._held = documents, shingled(by_rank, self._config)
        return self._held[1]


def _cuts(weight: I64) -> list[tuple[int, int]]:
    """Ranges of things that weigh no more than a slice may, or are single ones."""
    if not len(weight):
        return []
    number = (np.cumsum(weight) - weight) // SLICE_CHARACTERS
    bounds = np.concatenate(([0], np.flatnonzero(np.diff(number)) + 1, [len(weight)]))
    return list(pairwise(bounds.tolist()))
