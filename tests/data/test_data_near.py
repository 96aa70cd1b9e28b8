"""Repeats and clusters against brute force, on documents small enough for it."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.data import near
from llmray.data.components import resolve
from llmray.data.near import Shingled, candidates, verify

SETS = st.lists(st.frozensets(st.integers(0, 9), max_size=7), min_size=1, max_size=14)


def shingled(sets: Sequence[frozenset[int]]) -> Shingled:
    flat = np.array([number for one in sets for number in sorted(one)], np.uint64)
    return Shingled(flat, np.concatenate(([0], np.cumsum([len(one) for one in sets]))).astype(np.int64))


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / max(1, len(one | other))


def everyone(sets: Sequence[frozenset[int]]) -> list[np.ndarray]:
    return [np.arange(len(sets))] if len(sets) > 1 else []


@given(SETS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
@settings(deadline=None)
def test_verified_edges_are_the_pairs_above_the_threshold(sets: list[frozenset[int]], threshold: float) -> None:
    edges = verify(everyone(sets), shingled(sets), threshold)
    found = {(a, b): s for a, b, s in zip(edges.left.tolist(), edges.right.tolist(), edges.similarity, strict=True)}
    truth = {
        (a, b): jaccard(sets[a], sets[b])
        for a, b in itertools.combinations(range(len(sets)), 2)
        if jaccard(sets[a], sets[b]) >= threshold
    }
    assert found == pytest.approx(truth)


@given(SETS, st.sampled_from([0.3, 0.5, 0.8]), st.booleans())
@settings(deadline=None)
def test_what_goes_repeats_what_stays(sets: list[frozenset[int]], threshold: float, hot: bool) -> None:
    documents = shingled(sets)
    with pytest.MonkeyPatch.context() as patch:
        if hot:
            patch.setattr(near, "HOT_BUCKET", 1)
        edges = verify(everyone(sets), documents, threshold)
    made = resolve(len(sets), edges, documents, threshold)
    kept = [number for number in range(len(sets)) if made.kept_for[number] == number]
    for number, kept_for in enumerate(made.kept_for.tolist()):
        assert kept_for in kept
        assert kept_for <= number  # Ranks: the better one stays.
        if kept_for != number:
            assert made.similarity[number] == pytest.approx(jaccard(sets[number], sets[kept_for]))
            assert made.similarity[number] >= threshold
        assert made.cluster[number] == made.cluster[kept_for] <= kept_for
    if not hot:
        for one, other in itertools.combinations(kept, 2):
            assert jaccard(sets[one], sets[other]) < threshold


def test_the_far_end_of_a_chain_stays() -> None:
    chain = [frozenset(range(start, start + 10)) for start in (1, 0, 2, 3)]
    documents = shingled(chain)
    made = resolve(4, verify(everyone(chain), documents, 0.8), documents, 0.8)
    assert made.kept_for.tolist() == [0, 0, 0, 3]
    assert made.cluster.tolist() == [0, 0, 0, 0]


def test_members_of_a_hot_bucket_meet_one_another_when_their_hub_has_gone() -> None:
    # 0 is best and removes the hub 1; 2 and 3 are joined to the hub alone, yet repeat each other.
    sets = [frozenset(range(8)), frozenset(range(1, 10)), frozenset(range(2, 12)), frozenset(range(3, 12))]
    documents = shingled(sets)
    edges = near.Edges(
        left=np.array([0, 1, 1]),
        right=np.array([1, 2, 3]),
        similarity=np.array([0.7, 0.7, 0.7]),
        num_candidates=3,
        num_skipped=0,
    )
    made = resolve(4, edges, documents, 0.7)
    assert made.kept_for.tolist() == [0, 0, 2, 2]


def test_a_hot_bucket_is_not_quadratic_and_says_what_it_left_out() -> None:
    alike = [frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 100 + number}) for number in range(2000)]
    unlike = [frozenset(range(1000 * number, 1000 * number + 9)) for number in range(10, 600)]
    sets = alike + unlike
    edges = verify(everyone(sets), shingled(sets), 0.8)
    assert edges.num_candidates < near.HUB_ROUNDS * len(sets)
    assert edges.num_skipped > 0
    made = resolve(len(sets), edges, shingled(sets), 0.8)
    assert (made.kept_for == np.arange(len(sets))).sum() == 1 + len(unlike)


def test_empty_documents_are_like_nothing() -> None:
    sets = [frozenset[int](), frozenset[int](), frozenset({1})]
    assert len(verify(everyone(sets), shingled(sets), 0.1).left) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=20))
def test_buckets_hold_those_of_one_name_and_kind(rows: list[tuple[int, int]]) -> None:
    names = np.array([[name] for name, _ in rows], np.uint64)
    buckets = candidates(names, np.array([kind for _, kind in rows]))
    made = {tuple(bucket.tolist()) for bucket in buckets}
    truth = {
        tuple(number for number, row in enumerate(rows) if row == wanted)
        for wanted in set(rows)
        if rows.count(wanted) > 1
    }
    assert made == truth
