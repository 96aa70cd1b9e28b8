"""What becomes of a batch whose buckets are hot, against brute force: no two rows that stay have met and are alike."""

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import comb

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_components import jaccard

from llmray.data import near, verify
from llmray.data.buckets import Buckets
from llmray.data.config import CurateConfig, Dedup
from llmray.data.minhash import Shingling
from llmray.data.verify import Verdicts, verify_batch

Sets = list[frozenset[int]]
NONE = np.zeros(0, np.int64)


def verdicts(sets: Sets, buckets: Sequence[Sequence[int]], threshold: float, rank: Sequence[int] = ()) -> Verdicts:
    """Documents of one word a number, best first or as ranked, that met in the buckets."""
    texts = [" ".join(f"w{number}" for number in sorted(one)) for one in sets]
    rank_R = np.array(rank if len(rank) else range(len(sets)), np.int64)
    by_rank = [sorted(bucket, key=lambda row: int(rank_R[row])) for bucket in buckets]
    return verify_batch(
        Buckets(
            members_M=np.concatenate([NONE, *(np.array(bucket, np.int64) for bucket in by_rank)]),
            offsets_B1=np.concatenate(([0], np.cumsum([len(bucket) for bucket in by_rank]))).astype(np.int64),
            new_P=NONE,
            old_P=NONE,
            num_skipped=0,
        ),
        CurateConfig(dedup=Dedup(threshold=threshold, shingling=Shingling(size=1))),
        rank_R=rank_R,
        length_R=np.array([len(text) for text in texts]),
        texts=lambda rows: pa.array([texts[row] for row in rows], pa.string()),
        old_texts=lambda rows: pa.array([], pa.string()),
    )


def fates(made: Verdicts) -> dict[int, tuple[int, float, int]]:
    columns = (made.rows_C, made.kept_for_C, made.similarity_C, made.cluster_C)
    return {row: (kept, alike, best) for row, kept, alike, best in zip(*map(np.ndarray.tolist, columns), strict=True)}


def both_stay(made: Verdicts, sets: Sets, buckets: Sequence[Sequence[int]], threshold: float) -> list[tuple[int, int]]:
    """Pairs that share a bucket and are alike, of which both stay."""
    stay = set(made.rows_C[made.rows_C == made.kept_for_C].tolist())
    met = {pair for bucket in buckets for pair in itertools.combinations(sorted(stay.intersection(bucket)), 2)}
    return sorted(pair for pair in met if jaccard(sets[pair[0]], sets[pair[1]]) >= threshold)


def run(start: int) -> frozenset[int]:
    """A run of numbers; shifted by one in ten, two are 0.82 alike."""
    return frozenset(range(start, start + 10))


def chance_world(seed: int) -> tuple[Sets, list[list[int]], float]:
    """Runs that overlap, some with a number of their own, and crowded buckets that overlap."""
    chance = random.Random(seed)
    size, length = chance.randrange(12, 50), chance.randrange(8, 14)
    starts = [chance.randrange(chance.randrange(12, 50)) for _ in range(size)]
    sets = [frozenset([*range(at, at + length), *chance.sample(range(100, 130), chance.randrange(2))]) for at in starts]
    most = size * 2 // 3
    buckets = [chance.sample(range(size), chance.randrange(2, most)) for _ in range(chance.randrange(1, 6))]
    return sets, buckets, chance.choice([0.6, 0.7, 0.8])


@contextmanager
def small(**values: int) -> Iterator[None]:
    """Buckets of more than three are hot, and bounds are small."""
    values = {"HOT_BUCKET": 3, "FIRST_ROUNDS": 2, "HUB_ROUNDS": 50, **values}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(near if hasattr(near, name) else verify, name, value)
        yield


def test_who_left_with_a_hub_that_went_meets_the_others() -> None:
    # K, H, L, Z: L leaves the large bucket with H, and K removes H in another; nobody has compared L with Z.
    sets = [run(0), run(1), run(2), run(3), *(run(1000 * number) for number in range(1, 301))]
    buckets = [[0, 1], [1, 2, 3, *range(4, 304)]]
    assert len(buckets[1]) > near.HOT_BUCKET
    made = verdicts(sets, buckets, 0.8)
    assert {row: kept for row, (kept, *_) in fates(made).items() if row < 4} == {0: 0, 1: 0, 2: 2, 3: 2}
    assert fates(made)[3] == (2, 9 / 11, 0)
    assert made.num_skipped == 0
    assert not both_stay(made, sets, buckets, 0.8)
    with small(MAX_ROUNDS=0):
        made = verdicts(sets, buckets, 0.8)
    assert both_stay(made, sets, buckets, 0.8) == [(2, 3)]
    assert made.num_skipped > 0


def test_copies_of_a_template_are_told_apart_when_the_template_went() -> None:
    # The template 1 is removed by 0, from elsewhere. Its 600 pages, as like it as they may be, are unlike each other,
    # but for every third, which has a copy among the last 200.
    template = range(80)
    pages = [frozenset([*template, *range(1000 * number, 1000 * number + 20)]) for number in range(1, 601)]
    copies = [one - {max(one)} | {10_000_000 + place} for place, one in enumerate(pages[::3])]
    sets = [frozenset([*template, *range(500, 510)]), frozenset(template), *pages, *copies]
    buckets = [[0, 1], range(1, 802)]
    made = verdicts(sets, buckets, 0.8)
    assert [row for row, (kept, *_) in fates(made).items() if kept == row] == [0, *range(2, 602)]
    assert [fates(made)[row][0] for row in range(602, 802)] == list(range(2, 602, 3))


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_no_two_that_met_and_are_alike_stay(seed: int) -> None:
    sets, buckets, threshold = chance_world(seed)
    with small():
        made = verdicts(sets, buckets, threshold)
    assert made.num_skipped == 0
    assert both_stay(made, sets, buckets, threshold) == []
    fate = fates(made)
    for row, (kept, similarity, cluster) in fate.items():
        assert fate[kept][0] == kept <= row
        assert cluster == fate[kept][2] <= kept
        assert similarity == (jaccard(sets[row], sets[kept]) if kept != row else 1.0) >= threshold


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 50]), st.sampled_from([0, 1, 16]), st.sampled_from([300, 1 << 20]))
@settings(deadline=None, max_examples=200)
def test_what_is_left_out_is_counted(seed: int, hub_rounds: int, max_rounds: int, characters: int) -> None:
    sets, buckets, threshold = chance_world(seed)
    with small(HUB_ROUNDS=hub_rounds, MAX_ROUNDS=max_rounds, SLICE_CHARACTERS=characters):
        made = verdicts(sets, buckets, threshold)
    assert len(both_stay(made, sets, buckets, threshold)) <= made.num_skipped
    if (max_rounds, characters) == (16, 1 << 20):
        assert made.num_skipped <= comb(int((made.rows_C == made.kept_for_C).sum()), 2)


def test_a_pair_that_was_left_out_counts_once() -> None:
    # 85% is the same: no rare shingle tells them apart. The first twenty leave one bucket with 1, which 0 removes, and
    # wait in the other with the last twenty; so both comparisons leave pairs of them out.
    sets = [frozenset([*range(85), *range(1000 * number, 1000 * number + 15)]) for number in range(1, 41)]
    sets = [frozenset([*range(85), *range(500, 520)]), frozenset(range(85)), *sets]
    buckets = [[0, 1], range(1, 22), range(2, 42)]
    with small(HUB_ROUNDS=1):
        made = verdicts(sets, buckets, 0.8)
    stay = [row for row, (kept, *_) in fates(made).items() if kept == row]
    assert stay == [0, *range(2, 42)]
    assert comb(20, 2) < made.num_skipped < comb(40, 2)


@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_fates_are_those_of_the_documents_in_whatever_order_they_come(seed: int, chance: random.Random) -> None:
    sets, buckets, threshold = chance_world(seed)
    order = list(range(len(sets)))
    chance.shuffle(order)  # Row r is document order[r]: its number is its rank.
    place = np.argsort(order).tolist()
    moved = [[place[number] for number in bucket] for bucket in buckets]
    chance.shuffle(moved)
    with small():
        before = verdicts(sets, buckets, threshold)
        after = verdicts([sets[number] for number in order], moved, threshold, rank=order)
    assert before.num_candidates == after.num_candidates
    assert {
        order[row]: (order[kept], alike, order[best]) for row, (kept, alike, best) in fates(after).items()
    } == fates(before)
