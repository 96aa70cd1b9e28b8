"""From bucket names to batches of documents that must be compared: what a shard of the name space says, then the union.

Each chunk keeps its bucket names sorted, so a shard (a range of names) is a slice of every chunk's file, and shards can
be gone through by as many tasks as there are. What they find is put together without regard to where it was found:
buckets of the same members are one, documents that met are joined to components, and whole components are dealt out to
batches. So one shard and a thousand give the same. Rejected: sending the names through Ray's shuffle, which costs more
than all of this below some hundred million names.

Shape legend: R rows, E entries (a name and whose it is), M members of all buckets, B buckets, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from llmray.data.minhash import I64, U64, mix_all
from llmray.data.tables import array

Member = TypeVar("Member", bound=np.generic)

BATCH_CHARACTERS = 16 << 20
"""Text of the documents that a task compares; a component is never cut."""
LEAST_BATCHES = 8
"""Batches, where there is less text than fills so many; of a quarter of a million characters at least."""
OLD_CHARACTERS = 1 << 15
"""What reading an old row costs, in characters of text compared: it lies alone in a row group."""
OLD_MEMBERS = 64
"""Rows of the snapshot that is added to, in one bucket, that a new row is compared with: the first of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """Documents that met."""

    members_M: I64
    """Rows, bucket by bucket, the best first."""
    offsets_B1: I64
    """Where each bucket begins."""
    new_P: I64
    """Rows that met a row of the snapshot that is added to,"""
    old_P: I64
    """and that row's number there."""
    num_skipped: int
    """Pairs with old rows that were left out of crowded buckets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """Buckets dealt out to tasks; batch t has `x[cuts_T1[t]:cuts_T1[t + 1]]` of each array x with its cuts."""

    members_M: I64
    offsets_B1: I64
    bucket_cuts_T1: I64
    """Buckets of each batch."""
    new_P: I64
    old_P: I64
    pair_cuts_T1: I64
    """Pairs of each batch."""

    def __len__(self) -> int:
        return len(self.bucket_cuts_T1) - 1

    def of(self, batch: int) -> Buckets:
        """One batch."""
        low, high = self.bucket_cuts_T1[batch], self.bucket_cuts_T1[batch + 1]
        offsets = np.asarray(self.offsets_B1[low : high + 1])
        pairs = slice(self.pair_cuts_T1[batch], self.pair_cuts_T1[batch + 1])
        return Buckets(
            members_M=np.asarray(self.members_M[offsets[0] : offsets[-1]]),
            offsets_B1=offsets - offsets[0],
            new_P=np.asarray(self.new_P[pairs]),
            old_P=np.asarray(self.old_P[pairs]),
            num_skipped=0,
        )


def shard_bounds(shard: int, num_shards: int) -> tuple[int, int]:
    """First and last name of a shard."""
    return (shard << 64) // num_shards, ((shard + 1 << 64) // num_shards) - 1


def entries(folder: Path, base: int, original_R: NDArray[np.bool_], low: int, high: int) -> tuple[U64, I64]:
    """A chunk's names from `low` to `high` and the rows they belong to, of rows that are nobody's copy."""
    hashes_E = array(folder / "hashes.npy")
    inside = between(hashes_E, low, high)
    rows_E = array(folder / "owners.npy")[inside].astype(np.int64) + base
    wanted = original_R[rows_E]
    return np.asarray(hashes_E[inside])[wanted], rows_E[wanted]


def between(sorted_E: U64, low: int, high: int) -> slice:
    """Where in sorted names those from `low` to `high` stand, `high` among them."""
    begin = int(np.searchsorted(sorted_E, np.uint64(low)))
    return slice(begin, int(np.searchsorted(sorted_E, np.uint64(high), side="right")))


def meet(hashes_E: U64, rows_E: I64, rank_R: I64) -> tuple[I64, I64]:
    """Buckets of two or more rows: members, and where each bucket begins."""
    rows, offsets = grouped(hashes_E, rows_E)
    by_rank = np.lexsort((rank_R[rows], np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))))
    return rows[by_rank], offsets


def meet_old(hashes_E: U64, rows_E: I64, names_H: U64, owners_H: NDArray[np.uint32]) -> tuple[I64, I64, int]:
    """Pairs of a new row and an old row that share a bucket, and how many were left out.

    Args:
        names_H: bucket names of a segment of the old rows' index, sorted; mapped, and only touched where it is looked up.
        owners_H: whose they are.
    """
    order = np.argsort(hashes_E, kind="stable")
    wanted, rows = hashes_E[order], rows_E[order]
    begin, end = np.searchsorted(names_H, wanted), np.searchsorted(names_H, wanted, side="right")
    count = np.minimum(end - begin, OLD_MEMBERS)
    some = np.flatnonzero(count)
    skipped = int((end - begin - count).sum())
    if not len(some):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), skipped
    place = np.repeat(begin[some], count[some]) + _within(count[some])
    return np.repeat(rows[some], count[some]), owners_H[place].astype(np.int64), skipped


def unite(parts: Sequence[Buckets]) -> Buckets:
    """Buckets of all shards, those of the same members once, in an order of their own."""
    members, offsets = joined([(part.members_M, part.offsets_B1) for part in parts])
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(np.stack((part.new_P, part.old_P), 1) for part in parts)])
    pairs = np.unique(pairs, axis=0)
    return Buckets(
        members_M=members,
        offsets_B1=offsets,
        new_P=pairs[:, 0],
        old_P=pairs[:, 1],
        num_skipped=sum(part.num_skipped for part in parts),
    )


def deal(buckets: Buckets, length_R: I64, characters: int = BATCH_CHARACTERS) -> Batches:
    """Whole components to batches of about `characters` of text, or less where that leaves some without work.

    Components that met old rows come first, in the order of those: so a batch reads one stretch of the old text. The
    others follow in the order of their own rows.
    """
    rows = np.unique(np.concatenate((buckets.members_M, buckets.new_P)))
    member, starts = np.searchsorted(rows, buckets.members_M), buckets.offsets_B1[:-1]
    label = components(len(rows), member, buckets.offsets_B1)
    weight = np.bincount(label, length_R[rows], minlength=label.max() + 1 if len(label) else 0)
    met = label[np.searchsorted(rows, buckets.new_P)]
    weight = weight + OLD_CHARACTERS * np.bincount(met, minlength=len(weight))
    first, first_old = (np.full(len(weight), np.iinfo(np.int64).max) for _ in range(2))
    np.minimum.at(first, label, np.arange(len(rows)))
    np.minimum.at(first_old, met, buckets.old_P)
    order = np.lexsort((first, first_old))
    batch = np.empty(len(order), np.int64)
    characters = min(characters, max(characters >> 6, int(weight.sum()) // LEAST_BATCHES))
    batch[order] = np.cumsum(weight[order]) // characters if len(order) else 0
    _, batch = np.unique(batch, return_inverse=True)
    num_batches = int(batch.max()) + 1 if len(batch) else 0
    of_bucket = batch[label[member[starts]]] if len(starts) else np.zeros(0, np.int64)
    by_batch = np.argsort(of_bucket, kind="stable")
    members, offsets = select(buckets.members_M, buckets.offsets_B1, by_batch)
    of_pair = batch[met] if len(rows) else np.zeros(0, np.int64)
    pair_order = np.argsort(of_pair, kind="stable")
    cut = np.arange(num_batches + 1)
    return Batches(
        members_M=members,
        offsets_B1=offsets,
        bucket_cuts_T1=np.searchsorted(of_bucket[by_batch], cut),
        new_P=buckets.new_P[pair_order],
        old_P=buckets.old_P[pair_order],
        pair_cuts_T1=np.searchsorted(of_pair[pair_order], cut),
    )


def grouped(names_E: U64, owners_E: I64) -> tuple[I64, I64]:
    """Owners under each name that two or more have, in the order in which they come, and where each bucket begins."""
    order = np.argsort(names_E, kind="stable")
    names = names_E[order]
    starts = np.flatnonzero(np.concatenate(([True], names[1:] != names[:-1]))) if len(names) else np.zeros(0, int)
    sizes = np.diff(np.concatenate((starts, [len(names)])))
    # Most names are met once: they go before anything else is looked at.
    shared = np.repeat(sizes > 1, sizes)
    return owners_E[order[shared]], np.concatenate(([0], np.cumsum(sizes[sizes > 1]))).astype(np.int64)


def joined(parts: Sequence[tuple[I64, I64]]) -> tuple[I64, I64]:
    """Buckets of several parts, those of the same members once, in an order of their own."""
    members_M = np.concatenate([np.zeros(0, np.int64), *(members for members, _ in parts)])
    sizes = np.concatenate([np.zeros(0, np.int64), *(np.diff(offsets) for _, offsets in parts)])
    offsets_B1 = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    if not len(sizes):
        return members_M, offsets_B1
    # Two sums of hashes name a set of members: 128 bits, so that no two sets of a corpus share a name.
    one = np.add.reduceat(mix_all(members_M.astype(np.uint64) + np.uint64(1)), offsets_B1[:-1])
    other = np.add.reduceat(mix_all(members_M.astype(np.uint64) ^ np.uint64(0xA5A5A5A5_5A5A5A5A)), offsets_B1[:-1])
    order = np.lexsort((other, one, members_M[offsets_B1[:-1]]))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (one[order][1:] != one[order][:-1]) | (other[order][1:] != other[order][:-1])
    return select(members_M, offsets_B1, order[fresh])


def components(num_documents: int, member_M: I64, offsets_B1: I64) -> NDArray[np.int32]:
    """The component of each document, where buckets join their members."""
    left, right = member_M[:-1], member_M[1:]
    inside = np.ones(max(0, len(member_M) - 1), bool)
    inside[offsets_B1[1:-1] - 1] = False
    ones = np.ones(int(inside.sum()), np.int8)
    graph = sparse.coo_matrix((ones, (left[inside], right[inside])), shape=(num_documents, num_documents))
    _, label = csgraph.connected_components(graph, directed=False)
    return np.asarray(label)


def select(members_M: NDArray[Member], offsets_B1: I64, chosen: I64) -> tuple[NDArray[Member], I64]:
    """Some buckets, in the order of `chosen`."""
    sizes = np.diff(offsets_B1)[chosen]
    place = np.repeat(offsets_B1[:-1][chosen], sizes) + _within(sizes)
    return members_M[place], np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)


def _within(sizes: I64) -> I64:
    """0, 1, …, size - 1 for each size, one after another."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
