"""Learned limits: what they are by definition, what cannot move them, and what they say when they know nothing."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmray.data.robust import EVERYTHING, TO_SIGMA, Axis, Transform, learn, limits, outside, usual

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine fails no test."""
VALUES = st.lists(st.floats(-1e6, 1e6), min_size=20, max_size=40)


def test_against_the_definition() -> None:
    values = np.arange(101.0)
    assert limits(values, 2) == pytest.approx((50 - 2 * 1.4826 * 25, 50 + 2 * 1.4826 * 25))
    assert limits(values, 2, side="high") == (-math.inf, pytest.approx(50 + 2 * 1.4826 * 25))
    assert limits(values, 2, side="low") == (pytest.approx(50 - 2 * 1.4826 * 25), math.inf)


def test_a_normal_sample_keeps_its_own() -> None:
    values = np.random.default_rng(0).normal(3, 2, 100_000)
    found = usual(values)
    assert found is not None
    assert found.scale == pytest.approx(2, rel=0.02)
    # Beyond 3 standard deviations lie 0.27% of a normal distribution.
    assert outside(values, found.limits(3)).mean() == pytest.approx(0.0027, abs=0.0006)


def test_on_a_logarithmic_axis_limits_are_factors() -> None:
    values = np.exp(np.random.default_rng(0).normal(7, 1, 20_001))
    low, high = limits(values, 2, transform="log")
    middle = np.median(values) + 1
    assert (high + 1) / middle == pytest.approx(middle / (low + 1))
    assert low > 0


def test_on_an_axis_of_roots_shares_near_zero_have_room() -> None:
    shares = np.random.default_rng(0).beta(0.6, 40, 20_001)
    low, high = limits(shares, 3, transform="root")
    middle, root = np.sqrt(np.median(shares)), np.sqrt(shares)
    assert high == pytest.approx((middle + 3 * 1.4826 * np.median(np.abs(root - middle))) ** 2)
    assert low == 0
    assert outside(shares, (low, high)).mean() < 0.01 < 0.05 < outside(shares, limits(shares, 3)).mean()


@RELAXED
@given(VALUES, st.randoms(use_true_random=False), st.sampled_from(["linear", "log", "root"]))
def test_the_order_of_values_does_not_matter(values: list[float], random: object, transform: Transform) -> None:
    shuffled = list(np.abs(values) if transform != "linear" else values)
    before = limits(shuffled, 3, transform=transform)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert limits(shuffled, 3, transform=transform) == before


@RELAXED
@given(VALUES, st.floats(0.7, 10))
def test_at_least_half_of_the_values_are_usual(values: list[float], mads: float) -> None:
    low, high = limits(values, mads)
    slack = 1e-9 * max(map(abs, values))
    assert sum(low - slack <= value <= high + slack for value in values) >= len(values) // 2


@RELAXED
@given(st.lists(st.integers(0, 100), min_size=20, max_size=40, unique=True), st.floats(1e3, 1e12))
def test_a_minority_of_junk_moves_nothing_far(values: list[int], junk: float) -> None:
    spoilt = limits(values + [junk] * (len(values) // 2 - 1), 5)
    assert spoilt[1] <= 100 + 5 * TO_SIGMA * 100


def test_with_more_than_half_alike_the_rest_is_judged_among_itself() -> None:
    rest = np.linspace(0.1, 0.3, 41)
    values = np.concatenate((np.zeros(400), rest, [9.0]))
    low, high = limits(values, 5)
    assert high == pytest.approx(5 * TO_SIGMA * np.median([*rest, 9.0]))
    assert outside(values, (low, high)).tolist() == [False] * 441 + [True]
    # One absurd value among few moves the mean deviation without bound; here it teaches nothing.
    assert limits([0.0] * 400 + [9.0], 5) == EVERYTHING


def test_too_little_teaches_nothing() -> None:
    assert limits([], 5) == EVERYTHING
    assert limits([1.0] * 100, 5) == EVERYTHING
    assert limits(np.arange(19), 5) == EVERYTHING
    assert limits(np.arange(19), 5, min_values=19) != EVERYTHING
    assert limits([math.nan] * 50 + [math.inf], 5, min_values=1) == EVERYTHING


def test_a_measure_that_does_not_apply_is_neither_learned_from_nor_judged() -> None:
    values = np.concatenate((np.arange(101.0), [math.nan] * 500))
    assert limits(values, 2) == limits(np.arange(101.0), 2)
    assert outside([math.nan, 5.0, -1.0], (0, 1)).tolist() == [False, True, True]


def test_distance_is_in_scales() -> None:
    found = usual(np.arange(101.0))
    assert found is not None
    assert found.distance([50 - 3 * found.scale], "low") == pytest.approx([3])
    assert found.distance([50 - 3 * found.scale], "high") == pytest.approx([-3])
    assert found.distance([50 - 3 * found.scale, math.nan]) == pytest.approx([3, math.nan], nan_ok=True)


def test_each_kind_has_limits_of_its_own_from_rows_that_passed() -> None:
    kinds = np.array(["text"] * 100 + ["messages"] * 100)
    values = np.concatenate((np.arange(100.0), np.arange(1000.0, 1100.0)))
    passed = np.ones(200, bool)
    passed[:10] = False
    found = learn({"length": values}, {"length": Axis(mads=3, transform="log")}, kinds, passed)
    assert found == {
        ("text", "length"): limits(values[10:100], 3, transform="log"),
        ("messages", "length"): limits(values[100:], 3, transform="log"),
    }
    assert (
        learn({"length": values}, {"length": Axis(mads=3)}, kinds, passed, min_values=95)["text", "length"]
        == EVERYTHING
    )
