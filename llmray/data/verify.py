"""A batch of documents that met: compare them exactly, and decide which go. Pure; texts come from outside.

New rows that repeat a row of the snapshot that is added to go first: an old row always stays. The others are compared
bucket by bucket, and clusters are resolved best first (`components`). Shingles of a batch are held at once if they are
of ordinary size; a giant component is gone through in slices, so that memory stays bounded, and only what was found to
be alike is looked at together.

In a hot bucket a document may have been compared with its hub alone (`near`). Where it stays although the hub went, the
bucket is compared again, without those that went, and so on until nothing new is found. So no two rows that stay share a
bucket and are alike, but for pairs that are counted. Each round finds a pair that was not known; two or three are usual,
as a document waits for few others unless the ranks are made for it (Fischer and Noever 2018), and whoever removes a hub
looks through those that left with it (`components`). Rejected: letting a document leave only for a hub that is sure to
stay, which makes one long row of what can be compared in slices.

Shape legend: C documents of the batch by rank, M members of all buckets, B buckets, P pairs with old rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray.data import minhash, near
from llmray.data.buckets import Buckets, components, select
from llmray.data.components import Resolution, resolve
from llmray.data.config import CurateConfig
from llmray.data.near import Edges, Shingled, Verified

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

SLICE_CHARACTERS = 64 << 20
"""Text whose shingles are held at once."""
MAX_ROUNDS = 16
"""Times that hot buckets are compared again; what is left to compare then is counted."""

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
    """Pairs of rows that stay, share a hot bucket and were not compared."""


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
    place = _Places(rows)
    gone, old, alike = _repeat_old(batch, length_R, texts, old_texts, config)
    at = place.of(gone)
    stays = np.ones(len(rows), bool)
    stays[at] = False
    left = _among(stays, place.of(batch.members_M), batch.offsets_B1)
    made, num_candidates, num_skipped = _Compare(rows, length_R, texts, config).settled(*left)
    kept_for, similarity, cluster = rows[made.kept_for], made.similarity, rows[made.cluster]
    kept_for[at] = cluster[at] = old + len(rank_R)
    similarity[at] = alike
    return Verdicts(
        rows_C=rows,
        kept_for_C=kept_for,
        similarity_C=similarity,
        cluster_C=cluster,
        num_candidates=len(batch.new_P) + num_candidates,
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


def _among(stays_C: NDArray[np.bool_], member_M: I64, offsets_B1: I64) -> tuple[I64, I64]:
    """Buckets of the documents that stay; those of fewer than two are none."""
    bucket_M = np.repeat(np.arange(len(offsets_B1) - 1), np.diff(offsets_B1))
    stays = stays_C[member_M]
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

    def settled(self, member_M: I64, offsets_B1: I64) -> tuple[Resolution, int, int]:
        """What becomes of each document [C]; comparisons that were made, and pairs of those that stay that were not."""
        everyone = np.arange(len(self._rows))
        made = Resolution(cluster=everyone.copy(), kept_for=everyone.copy(), similarity=np.ones(len(everyone)))
        stays = np.ones(len(everyone), bool)
        component = components(len(everyone), member_M, offsets_B1)
        first = found = new = self._verified(member_M, offsets_B1)
        hot = select(member_M, offsets_B1, np.flatnonzero(np.diff(offsets_B1) > near.HOT_BUCKET))
        left = np.isin(everyone, first.leavers)
        crowds: list[I64] = []
        rounds = 0
        while len(new.left):
            changed = np.unique(component[new.left])
            for documents, part in self._resolved(found.chosen(np.isin(component[found.left], changed))):
                made.cluster[documents] = documents[part.cluster]
                made.kept_for[documents] = documents[part.kept_for]
                made.similarity[documents] = part.similarity
            before, stays = stays, made.kept_for == everyone
            if rounds:  # Who stayed before and did not leave since has met the others that did.
                changed = np.unique(component[stays & (~before | np.isin(everyone, new.leavers))])
            # In buckets with one that left and stays; elsewhere all who stay have met.
            open_C = left & stays & np.isin(component, changed)
            again = _among(stays, *select(*hot, np.flatnonzero(np.logical_or.reduceat(open_C[hot[0]], hot[1][:-1]))))
            crowds = [crowd for crowd in crowds if component[crowd[0]] not in changed]
            if not len(again[0]):
                break
            new = self._verified(*again) if rounds < MAX_ROUNDS else _uncompared(*again)
            rounds += 1
            found = _together([found, new])
            crowds += new.crowds
        # Pairs of those that never left are as the first comparison says, the others as the last.
        skipped = sum(_pairs((stays & ~left)[crowd]) for crowd in first.crowds)
        skipped += sum(_pairs(stays[crowd]) - _pairs((stays & ~left)[crowd]) for crowd in crowds)
        return made, found.num_candidates, skipped

    def _verified(self, member_M: I64, offsets_B1: I64) -> Verified:
        """What comes of comparing the members of the buckets."""
        if not len(member_M):
            return _uncompared(member_M, offsets_B1)
        if int(self._length[np.unique(member_M)].sum()) <= SLICE_CHARACTERS:
            return self._slice(member_M, offsets_B1)
        weight = np.add.reduceat(self._length[member_M], offsets_B1[:-1])
        return _together([self._slice(*select(member_M, offsets_B1, np.arange(*cut))) for cut in _cuts(weight)])

    def _slice(self, member_M: I64, offsets_B1: I64) -> Verified:
        documents, place = np.unique(member_M, return_inverse=True)
        made = near.verify(place, offsets_B1, self._shingles(documents), self._config.dedup.threshold)
        return Verified(
            left=documents[made.left],
            right=documents[made.right],
            similarity=made.similarity,
            leavers=documents[made.leavers],
            crowds=[documents[crowd] for crowd in made.crowds],
            num_candidates=made.num_candidates,
        )

    def _resolved(self, edges: Edges) -> Iterator[tuple[I64, Resolution]]:
        """Documents and what becomes of them, slice by slice."""
        documents, place = np.unique(np.concatenate((edges.left, edges.right)), return_inverse=True)
        left, right = place[: len(edges.left)], place[len(edges.left) :]
        pairs_M = np.stack((left, right), axis=1).ravel()
        label = components(len(documents), pairs_M, np.arange(0, len(pairs_M) + 1, 2))
        order = np.argsort(label, kind="stable")
        sizes = np.bincount(label)
        weight = np.bincount(label, self._length[documents]).astype(np.int64)
        ends = np.concatenate(([0], np.cumsum(sizes)))
        for low, high in _cuts(weight):
            mine = np.sort(order[ends[low] : ends[high]])
            inside = (label[left] >= low) & (label[left] < high)
            part = Edges(
                left=np.searchsorted(mine, left[inside]),
                right=np.searchsorted(mine, right[inside]),
                similarity=edges.similarity[inside],
            )
            chosen = documents[mine]
            yield chosen, resolve(len(mine), part, self._shingles(chosen), self._config.dedup.threshold)

    def _shingles(self, documents: I64) -> Shingled:
        """The documents' shingles; ascending numbers are ascending ranks."""
        if self._held is not None and np.isin(documents, self._held[0], assume_unique=True).all():
            held, shingles = self._held
            return shingles if len(held) == len(documents) else shingles.chosen(np.searchsorted(held, documents))
        rows = self._rows[documents]
        ascending = np.sort(rows)
        by_rank = self._texts(ascending).take(pa.array(np.searchsorted(ascending, rows)))
        self._held = documents, shingled(by_rank, self._config)
        return self._held[1]


def _together(parts: Sequence[Verified]) -> Verified:
    """What came of several comparisons."""
    left, right, similarity = near.each_once(parts)
    return Verified(
        left=left,
        right=right,
        similarity=similarity,
        leavers=np.unique(np.concatenate([part.leavers for part in parts])),
        crowds=[crowd for part in parts for crowd in part.crowds],
        num_candidates=sum(part.num_candidates for part in parts),
    )


def _uncompared(member_M: I64, offsets_B1: I64) -> Verified:
    """What comes of comparing nobody."""
    none = np.zeros(0, np.int64)
    crowds = [member_M[low:high] for low, high in pairwise(offsets_B1)]
    return Verified(left=none, right=none, similarity=np.zeros(0), leavers=none, crowds=crowds, num_candidates=0)


def _pairs(some: NDArray[np.bool_]) -> int:
    return comb(int(np.count_nonzero(some)), 2)


def _cuts(weight: I64) -> list[tuple[int, int]]:
    """Ranges of things that weigh no more than a slice may, or are single ones."""
    if not len(weight):
        return []
    number = (np.cumsum(weight) - weight) // SLICE_CHARACTERS
    bounds = np.concatenate(([0], np.flatnonzero(np.diff(number)) + 1, [len(weight)]))
    return list(pairwise(bounds.tolist()))
