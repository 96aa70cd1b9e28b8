"""Repeats and clusters against brute force, on documents small enough for it."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import plain_components
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_components import edges_of, jaccard

from llmray.data import components, near
from llmray.data.buckets import joined
from llmray.data.components import resolve
from llmray.data.minhash import I64
from llmray.data.near import Edges, Shingled, verify

Buckets = tuple[I64, I64]

SETS = st.lists(st.frozensets(st.integers(0, 9), max_size=7), min_size=1, max_size=14)
THRESHOLDS = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.8, 1.0])


def shingled(sets: Sequence[frozenset[int]]) -> Shingled:
    flat = np.array([hashed(number) for one in sets for number in sorted(one, key=hashed)], np.uint64)
    return Shingled(flat, np.concatenate(([0], np.cumsum([len(one) for one in sets]))).astype(np.int64))


def hashed(number: int) -> int:
    """Shingles are spread over all 64-bit numbers."""
    return number * 0x9E3779B97F4A7C15 % 2**64


def buckets_of(sets: Iterable[Sequence[int]]) -> Buckets:
    made = [sorted(one) for one in sets]
    members = np.array([number for one in made for number in one], np.int64)
    return members, np.concatenate(([0], np.cumsum([len(one) for one in made]))).astype(np.int64)


def everyone(sets: Sequence[frozenset[int]]) -> Buckets:
    return buckets_of([range(len(sets))] if len(sets) > 1 else [])


def pairs_of(edges: Edges) -> list[tuple[int, int]]:
    return list(zip(edges.left.tolist(), edges.right.tolist(), strict=True))


@contextmanager
def hot(size: int, *rounds: int) -> Iterator[None]:
    """Buckets of more than `size` documents are hot; with as many rounds of hubs, first and last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "HOT_BUCKET", size)
        for name, most in zip(("FIRST_ROUNDS", "HUB_ROUNDS"), rounds, strict=False):
            patch.setattr(near, name, most)
        yield


@given(SETS, THRESHOLDS)
@settings(deadline=None)
def test_jaccard_is_exact_at_the_threshold_and_above(sets: list[frozenset[int]], threshold: float) -> None:
    pairs = np.array(list(itertools.product(range(len(sets)), repeat=2)))
    made = shingled(sets).jaccard(pairs[:, 0], pairs[:, 1], threshold)
    truth = [jaccard(sets[one], sets[other]) for one, other in pairs.tolist()]
    assert made.tolist() == [alike if alike >= threshold else 0.0 for alike in truth]
    assert shingled(sets).jaccard(pairs[:, 0], pairs[:, 1]).tolist() == truth


def test_jaccard_of_large_sets_at_the_very_threshold() -> None:
    # 400 shared of 500: 0.8 exactly, and one fewer just below.
    sets = [frozenset(range(450)), frozenset(range(50, 500)), frozenset(range(51, 501))]
    assert shingled(sets).jaccard(np.array([0, 0]), np.array([1, 2]), 0.8).tolist() == [0.8, 0.0]


@given(SETS, THRESHOLDS, st.lists(st.lists(st.integers(0, 13), min_size=2, max_size=9, unique=True), max_size=6))
@settings(deadline=None)
def test_verified_edges_are_the_pairs_of_a_bucket_above_the_threshold(
    sets: list[frozenset[int]], threshold: float, buckets: list[list[int]]
) -> None:
    inside = [one for bucket in buckets if len(one := [number for number in bucket if number < len(sets)]) > 1]
    edges = verify(*joined([buckets_of(inside)]), shingled(sets), threshold)
    met = {pair for bucket in inside for pair in itertools.combinations(sorted(bucket), 2)}
    truth = {(a, b): jaccard(sets[a], sets[b]) for a, b in sorted(met) if jaccard(sets[a], sets[b]) >= threshold}
    found = list(zip(edges.left.tolist(), edges.right.tolist(), edges.similarity.tolist(), strict=True))
    assert found == [(a, b, alike) for (a, b), alike in truth.items()]
    assert (edges.num_candidates, len(edges.leavers), len(edges.crowds)) == (len(met), 0, 0)


@given(SETS, THRESHOLDS, st.lists(st.lists(st.integers(0, 13), min_size=2, max_size=9, unique=True), max_size=6))
@settings(deadline=None)
def test_who_was_not_compared_in_a_hot_bucket_is_named(
    sets: list[frozenset[int]], threshold: float, buckets: list[list[int]]
) -> None:
    inside = [one for bucket in buckets if len(one := [number for number in bucket if number < len(sets)]) > 1]
    with hot(2, 1, 1):
        made = verify(*joined([buckets_of(inside)]), shingled(sets), threshold)
    edges, leavers = set(pairs_of(made)), set(made.leavers.tolist())
    crowded = {pair for crowd in made.crowds for pair in itertools.combinations(crowd.tolist(), 2)}
    for bucket in inside:
        for one, other in itertools.combinations(sorted(bucket), 2):
            if jaccard(sets[one], sets[other]) >= threshold:
                assert (one, other) in edges | crowded or {one, other} & leavers
    assert all(jaccard(sets[one], sets[other]) >= threshold for one, other in edges)


@given(SETS, st.sampled_from([0.3, 0.5, 0.8]), st.booleans())
@settings(deadline=None)
def test_what_goes_repeats_what_stays(sets: list[frozenset[int]], threshold: float, crowded: bool) -> None:
    documents = shingled(sets)
    with hot(1 if crowded else 256):
        edges = verify(*everyone(sets), documents, threshold)
    made = resolve(len(sets), edges, documents, threshold)
    kept = [number for number in range(len(sets)) if made.kept_for[number] == number]
    for number, kept_for in enumerate(made.kept_for.tolist()):
        assert kept_for in kept
        assert kept_for <= number  # Ranks: the better one stays.
        if kept_for != number:
            assert made.similarity[number] == jaccard(sets[number], sets[kept_for]) >= threshold
        assert made.cluster[number] == made.cluster[kept_for] <= kept_for
    if not crowded:
        for one, other in itertools.combinations(kept, 2):
            assert jaccard(sets[one], sets[other]) < threshold


@given(SETS, THRESHOLDS, st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), max_size=30), st.integers(0, 3))
@settings(deadline=None)
def test_resolution_is_that_of_the_definition(
    sets: list[frozenset[int]], threshold: float, pairs: list[tuple[int, int]], max_looks: int
) -> None:
    edges = edges_of([pair for pair in pairs if max(pair) < len(sets) and jaccard(*(sets[i] for i in pair))], sets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "MAX_LOOKS", max_looks)
        made = resolve(len(sets), edges, shingled(sets), threshold)
    cluster, kept_for, similarity = plain_components.resolve(sets, edges, threshold, max_looks)
    assert made.cluster.tolist() == cluster
    assert made.kept_for.tolist() == kept_for
    assert made.similarity.tolist() == similarity
    stays = made.kept_for == np.arange(len(sets))
    assert not (stays[edges.left] & stays[edges.right] & (edges.similarity >= threshold)).any()


@given(SETS, st.sampled_from([0.3, 0.5, 0.8]))
@settings(deadline=None)
def test_rare_shingles_bring_all_repeats_together(sets: list[frozenset[int]], threshold: float) -> None:
    members, offsets = shingled(sets).by_rare_shingles(np.arange(len(sets)), threshold)
    made = [members[low:high].tolist() for low, high in itertools.pairwise(offsets)]
    met = {pair for bucket in made for pair in itertools.combinations(bucket, 2)}
    for one, other in itertools.combinations(range(len(sets)), 2):
        assert (one, other) in met or jaccard(sets[one], sets[other]) < threshold


@given(st.lists(st.tuples(SETS, st.booleans()), min_size=1, max_size=4), st.sampled_from([0.5, 0.8]))
@settings(deadline=None)
def test_components_are_verified_alike_together_and_apart(
    parts: list[tuple[list[frozenset[int]], bool]], threshold: float
) -> None:
    sets, buckets, apart = [], [], []
    with hot(3):
        for part, joined in parts:
            begin, numbers = len(sets), range(len(part))
            some = [numbers] if joined and len(part) > 1 else list(itertools.pairwise(numbers))
            own = verify(*buckets_of(some), shingled(part), threshold)
            apart += [(begin + a, begin + b) for a, b in pairs_of(own)]
            sets += part
            buckets += [[begin + number for number in one] for one in some]
        edges = verify(*buckets_of(buckets), shingled(sets), threshold)
    assert pairs_of(edges) == apart


def test_the_far_end_of_a_chain_stays() -> None:
    chain = [frozenset(range(start, start + 10)) for start in (1, 0, 2, 3)]
    documents = shingled(chain)
    made = resolve(4, verify(*everyone(chain), documents, 0.8), documents, 0.8)
    assert made.kept_for.tolist() == [0, 0, 0, 3]
    assert made.cluster.tolist() == [0, 0, 0, 0]


def test_members_of_a_hot_bucket_meet_one_another_when_their_hub_has_gone() -> None:
    # 0 is best and removes the hub 1; 2 and 3 are joined to the hub alone, yet repeat each other.
    sets = [frozenset(range(8)), frozenset(range(1, 10)), frozenset(range(2, 12)), frozenset(range(3, 12))]
    documents = shingled(sets)
    edges = Edges(left=np.array([0, 1, 1]), right=np.array([1, 2, 3]), similarity=np.array([0.7, 0.7, 0.7]))
    made = resolve(4, edges, documents, 0.7)
    assert made.kept_for.tolist() == [0, 0, 2, 2]


def test_whoever_removes_a_hub_takes_its_place_however_many_it_had() -> None:
    leaves = [frozenset([*range(5, 50), 1000 + number]) for number in range(6000)]
    sets = [frozenset(range(45)), frozenset(range(50)), *leaves]
    edges = edges_of([(0, 1), *((1, leaf) for leaf in range(2, len(sets)))], sets)
    made = resolve(len(sets), edges, shingled(sets), 0.8)
    assert made.kept_for.tolist() == [0, 0] + [2] * len(leaves)


def test_no_bound_lets_a_known_repeat_stay() -> None:
    sets = [frozenset([*range(50), 1000 + number]) for number in range(6000)]
    edges = verify(*everyone(sets), shingled(sets), 0.8)
    assert edges.left.tolist() == [0] * (len(sets) - 1)
    made = resolve(len(sets), edges, shingled(sets), 0.8)
    assert made.kept_for.tolist() == [0] * len(sets)
    assert made.similarity[1:].tolist() == [50 / 52] * (len(sets) - 1)
    assert plain_components.resolve(sets, edges, 0.8, components.MAX_LOOKS)[1] == [0] * len(sets)


def test_a_heap_of_copies_costs_one_round() -> None:
    alike = [frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 100 + number}) for number in range(2000)]
    unlike = [frozenset(range(1000 * number, 1000 * number + 9)) for number in range(10, 600)]
    sets = alike + unlike
    edges = verify(*everyone(sets), shingled(sets), 0.8)
    assert edges.num_candidates < near.FIRST_ROUNDS * len(sets)
    assert len(edges.crowds) == 0
    made = resolve(len(sets), edges, shingled(sets), 0.8)
    assert (made.kept_for == np.arange(len(sets))).sum() == 1 + len(unlike)


def test_repeats_are_found_among_documents_that_share_their_boilerplate() -> None:
    # 60% of each document is the same; every third is repeated, but for one shingle in fifty.
    boilerplate = range(30)
    sets = [frozenset([*boilerplate, *range(1000 * number, 1000 * number + 20)]) for number in range(1, 1501)]
    repeats = [one - {max(one)} | {10_000_000 + place} for place, one in enumerate(sets[::3])]
    edges = verify(*everyone(sets + repeats), shingled(sets + repeats), 0.8)
    assert len(edges.crowds) == 0
    assert edges.num_candidates < 2 * near.FIRST_ROUNDS * len(sets + repeats)
    assert (edges.right - 1500).tolist() == list(range(500))
    assert edges.left.tolist() == list(range(0, 1500, 3))


def test_a_bucket_that_stays_hot_is_not_quadratic_and_says_what_it_left_out() -> None:
    # 85% is the same, which makes them 0.74 alike: any rare shingle that two must share is boilerplate.
    sets = [frozenset([*range(85), *range(1000 * number, 1000 * number + 15)]) for number in range(1, 2001)]
    edges = verify(*everyone(sets), shingled(sets), 0.8)
    assert edges.num_candidates <= (near.FIRST_ROUNDS + near.HUB_ROUNDS) * len(sets)
    assert [crowd.tolist() for crowd in edges.crowds] == [list(range(near.FIRST_ROUNDS + near.HUB_ROUNDS, len(sets)))]
    assert len(edges.left) == 0


def test_empty_documents_are_like_nothing() -> None:
    sets = [frozenset[int](), frozenset[int](), frozenset({1})]
    assert len(verify(*everyone(sets), shingled(sets), 0.1).left) == 0
    with hot(1):
        assert len(verify(*everyone(sets), shingled(sets), 0.1).left) == 0
