"""Who met whom, by shards and by brute force; batches, and their verdicts in slices."""

import itertools
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.data import buckets as module
from llmray.data import verify as verify_module
from llmray.data.buckets import Buckets, between, deal, meet, meet_old, shard_bounds, unite
from llmray.data.config import CurateConfig, Dedup
from llmray.data.minhash import Shingling
from llmray.data.verify import verify_batch

TOP = 2**64 - 1
NAMES = st.sampled_from([0, 1, 7, 2**63 - 1, 2**63, TOP - 1, TOP])
ENTRIES = st.lists(st.tuples(NAMES, st.integers(0, 9)), max_size=30, unique=True)
NONE = np.zeros(0, np.int64)


def met(entries: list[tuple[int, int]], rank: np.ndarray[Any, Any]) -> Buckets:
    names = np.array([name for name, _ in entries], np.uint64)
    members, offsets = meet(names, np.array([row for _, row in entries], np.int64), rank)
    return Buckets(members_M=members, offsets_B1=offsets, new_P=NONE, old_P=NONE, num_skipped=0)


def plain(buckets: Buckets) -> list[tuple[int, ...]]:
    cuts = buckets.offsets_B1.tolist()
    return [tuple(buckets.members_M[low:high].tolist()) for low, high in itertools.pairwise(cuts)]


@given(ENTRIES, st.permutations(range(10)), st.integers(1, 5))
def test_shards_find_what_one_finds(entries: list[tuple[int, int]], order: list[int], shards: int) -> None:
    rank = np.array(order)
    parts = []
    for shard in range(shards):
        low, high = shard_bounds(shard, shards)
        parts.append(met([entry for entry in entries if low <= entry[0] <= high], rank))
    united = plain(unite(parts))
    assert united == plain(unite([met(entries, rank)]))
    by_name: dict[int, list[int]] = {}
    for name, row in entries:
        by_name.setdefault(name, []).append(row)
    truth = {tuple(sorted(rows, key=lambda row: order[row])) for rows in by_name.values() if len(rows) > 1}
    assert set(united) == truth
    assert len(united) == len(truth)


@given(st.lists(NAMES, max_size=20), st.integers(1, 5))
def test_the_last_name_of_a_shard_belongs_to_it(names: list[int], shards: int) -> None:
    ordered = np.sort(np.array(names, np.uint64))
    found = [ordered[between(ordered, *shard_bounds(shard, shards))].tolist() for shard in range(shards)]
    assert [name for some in found for name in some] == sorted(names)


def test_the_bounds_of_shards_leave_nothing_out() -> None:
    for shards in (1, 2, 3, 7):
        bounds = [shard_bounds(shard, shards) for shard in range(shards)]
        assert bounds[0][0] == 0
        assert bounds[-1][1] == TOP
        assert all(low == high + 1 for (_, high), (low, _) in itertools.pairwise(bounds))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=15, unique=True),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=15, unique=True),
    st.sampled_from([1, 2, 64]),
)
def test_new_rows_meet_the_first_old_rows_of_their_buckets(
    new: list[tuple[int, int]], old: list[tuple[int, int]], most: int
) -> None:
    old = sorted(old)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "OLD_MEMBERS", most)
        rows, owners, skipped = meet_old(
            np.array([name for name, _ in new], np.uint64),
            np.array([row for _, row in new], np.int64),
            np.array([name for name, _ in old], np.uint64),
            np.array([row for _, row in old], np.uint32),
        )
    truth, left_out = [], 0
    for name, row in new:
        there = [owner for other, owner in old if other == name]
        truth += [(row, owner) for owner in there[:most]]
        left_out += len(there[most:])
    assert sorted(zip(rows.tolist(), owners.tolist(), strict=True)) == sorted(truth)
    assert skipped == left_out


@given(ENTRIES, st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=6, unique=True), st.integers(1, 40))
def test_batches_hold_whole_components_and_all_there_is(
    entries: list[tuple[int, int]], pairs: list[tuple[int, int]], characters: int
) -> None:
    found = met(entries, np.arange(10))
    new, old = (np.array([pair[at] for pair in pairs], np.int64) for at in (0, 1))
    whole = unite(
        [Buckets(members_M=found.members_M, offsets_B1=found.offsets_B1, new_P=new, old_P=old, num_skipped=0)]
    )
    batches = deal(whole, np.full(10, 10), characters)
    parts = [batches.of(batch) for batch in range(len(batches))]
    assert sorted(bucket for part in parts for bucket in plain(part)) == sorted(plain(whole))
    assert sorted((a, b) for part in parts for a, b in zip(part.new_P, part.old_P, strict=True)) == sorted(pairs)
    rows = [set(part.members_M.tolist()) | set(part.new_P.tolist()) for part in parts]
    assert sum(map(len, rows)) == len(set().union(*rows))
    assert all(rows)


WORDS = [f"word{number}" for number in range(60)]
CONFIG = CurateConfig(dedup=Dedup(threshold=0.5, shingling=Shingling(size=2)))


def world(seed: int) -> tuple[list[str], list[str], Buckets]:
    """New texts, old texts, and everybody in one bucket."""
    chance = random.Random(seed)
    bases = [chance.choices(WORDS, k=12) for _ in range(5)]

    def say() -> str:
        words = list(chance.choice(bases))
        for _ in range(chance.randrange(6)):
            words[chance.randrange(12)] = chance.choice(WORDS)
        return " ".join(words)

    new, old = [say() for _ in range(24)], [say() for _ in range(6)]
    pairs = np.array([(row, other) for row in range(0, 24, 2) for other in range(6)])
    everyone = Buckets(
        members_M=np.concatenate([np.arange(24), np.arange(5, 15)]),
        offsets_B1=np.array([0, 24, 34]),
        new_P=pairs[:, 0],
        old_P=pairs[:, 1],
        num_skipped=0,
    )
    return new, old, everyone


def verdicts(seed: int) -> tuple[Any, list[str], list[str]]:
    new, old, everyone = world(seed)
    made = verify_batch(
        everyone,
        CONFIG,
        rank_R=np.arange(24),
        length_R=np.array([len(text) for text in new]),
        texts=lambda rows: pa.array([new[row] for row in rows]),
        old_texts=lambda rows: pa.array([old[row] for row in rows], pa.string()),
    )
    return made, new, old


def jaccard(one: str, other: str) -> float:
    a, b = (set(zip(text.split(), text.split()[1:], strict=False)) for text in (one, other))
    return len(a & b) / len(a | b)


@given(st.integers(0, 200))
@settings(deadline=None, max_examples=40)
def test_old_rows_stay_and_what_goes_repeats_what_stays(seed: int) -> None:
    made, new, old = verdicts(seed)
    kept_for = dict(zip(made.rows_C.tolist(), made.kept_for_C.tolist(), strict=True))
    similarity = dict(zip(made.rows_C.tolist(), made.similarity_C.tolist(), strict=True))
    for row, kept in kept_for.items():
        if kept == row:
            continue
        other = new[kept] if kept < 24 else old[kept - 24]
        assert similarity[row] == pytest.approx(jaccard(new[row], other))
        assert similarity[row] >= 0.5
        assert kept >= 24 or kept_for[kept] == kept
    for row in range(0, 24, 2):
        best = max(jaccard(new[row], text) for text in old)
        assert (kept_for[row] >= 24) == (best >= 0.5)
    left = [row for row, kept in kept_for.items() if kept == row]
    assert not [(a, b) for a in left for b in left if a < b and jaccard(new[a], new[b]) >= 0.5]


@given(st.integers(0, 200), st.sampled_from([1, 300, 900]))
@settings(deadline=None, max_examples=30)
def test_slices_say_what_the_whole_says(seed: int, characters: int) -> None:
    whole, _, _ = verdicts(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "SLICE_CHARACTERS", characters)
        sliced, _, _ = verdicts(seed)
    for name in ("rows_C", "kept_for_C", "similarity_C", "cluster_C"):
        assert np.array_equal(getattr(whole, name), getattr(sliced, name)), name
