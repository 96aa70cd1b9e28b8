"""Closed forms where there are any, simulated error rates where there are none."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.errors import InputError
from llmray.evaluate.stats import (
    BootstrapMean,
    PairedProportions,
    holm,
    mcnemar,
    minimum_detectable_effect,
    wilson,
)


def test_wilson_matches_the_published_example() -> None:
    interval = wilson(81, 263)  # Newcombe 1998, table I, method 3
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize("successes", [0, 20])
def test_wilson_stays_inside_zero_and_one_and_has_width_at_the_ends(successes: int) -> None:
    interval = wilson(successes, 20)
    assert 0 <= interval.low < interval.high <= 1


def test_wilson_refuses_no_items() -> None:
    with pytest.raises(InputError, match="0 of 0"):
        wilson(0, 0)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_tail(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum((Fraction(math.comb(n, k), 2**n) for k in range(gained, n + 1)), Fraction(0))
    assert mcnemar(gained, lost) == pytest.approx(float(tail))
    assert mcnemar(gained, lost, two_sided=True) == mcnemar(lost, gained, two_sided=True)


def test_mcnemar_of_many_pairs_agrees_with_the_normal_limit() -> None:
    assert mcnemar(5100, 4900) == pytest.approx(1 - 0.5 * (1 + math.erf((199 / 100) / math.sqrt(2))), abs=2e-4)


def test_tango_is_symmetric_in_its_cells_and_has_width_where_wald_has_little() -> None:
    one = PairedProportions(gained=1, lost=0, n=44).interval(0.95)
    other = PairedProportions(gained=0, lost=1, n=44).interval(0.95)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    assert one.low < 1 / 44 < one.high
    assert one.high - one.low > 0.1


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 100), st.floats(-0.6, 0.6))
def test_tango_interval_and_test_agree(gained: int, lost: int, concordant: int, bound: float) -> None:
    pair = PairedProportions(gained=gained, lost=lost, n=gained + lost + concordant + 1)
    interval = pair.interval(0.9)
    if interval.low > bound + 1e-6:
        assert pair.p_above(bound) <= 0.05 + 1e-6
    if interval.low < bound - 1e-6:
        assert pair.p_above(bound) >= 0.05 - 1e-6


def test_tango_keeps_its_level_at_the_margin() -> None:
    generator = np.random.default_rng(1)
    n, margin, lost_share = 400, 0.03, 0.06
    draws = generator.multinomial(n, [lost_share - margin, lost_share, 1 - 2 * lost_share + margin], size=4000)
    rejected = np.mean([PairedProportions(gained=g, lost=w, n=n).p_above(-margin) <= 0.05 for g, w, _ in draws])
    assert 0.03 < rejected < 0.065


def test_bootstrap_mean_is_the_ratio_of_sums() -> None:
    mean = BootstrapMean([1.0, 2.0, 4.0], weights=[1, 1, 2], seed=0)
    assert mean.estimate == pytest.approx(11 / 4)


def test_bootstrap_standard_error_is_the_textbook_one_without_weights() -> None:
    values = np.random.default_rng(0).normal(size=200)
    mean = BootstrapMean(values, seed=0)
    assert mean.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(200))


def test_bootstrap_does_not_depend_on_the_order_of_items() -> None:
    generator = np.random.default_rng(0)
    values, clusters = generator.normal(size=60), [f"c{i % 20}" for i in range(60)]
    order = generator.permutation(60)
    straight = BootstrapMean(values, clusters=clusters, seed=3).interval(0.9)
    shuffled = BootstrapMean(values[order], clusters=[clusters[i] for i in order], seed=3).interval(0.9)
    assert (straight.low, straight.high) == pytest.approx((shuffled.low, shuffled.high))


def test_bootstrap_p_value_and_interval_agree() -> None:
    mean = BootstrapMean(np.random.default_rng(2).exponential(size=100) - 0.8, seed=0)
    low = mean.interval(0.9).low
    assert mean.p_above(low - 0.01) < 0.05 < mean.p_above(low + 0.01)


def _false_positives(*, clustered: bool, rounds: int = 400) -> float:
    generator = np.random.default_rng(7)
    rejected = 0
    for seed in range(rounds):
        shared = generator.exponential(size=60) - 1
        values = np.repeat(shared, 5) + 0.5 * (generator.exponential(size=300) - 1)
        clusters = [f"c{i // 5}" for i in range(300)] if clustered else None
        rejected += BootstrapMean(values, clusters=clusters, seed=seed, resamples=600).p_above(0.0) <= 0.05
    return rejected / rounds


def test_bootstrap_keeps_its_level_on_skewed_clustered_items() -> None:
    assert 0.025 < _false_positives(clustered=True) < 0.08


def test_ignoring_clusters_would_break_the_level() -> None:
    assert _false_positives(clustered=False, rounds=200) > 0.12


def test_bootstrap_of_identical_values_is_certain() -> None:
    mean = BootstrapMean([0.5] * 60, seed=0, resamples=999)
    assert mean.p_above(0.4) == pytest.approx(1 / 1000)
    assert mean.p_above(0.5) == 1.0
    assert mean.interval(0.95).low == mean.interval(0.95).high == 0.5


@pytest.mark.parametrize(
    ("values", "weights"), [([1.0], [1.0]), ([1.0, math.nan], [1.0, 1.0]), ([1.0, 2.0], [0.0, 0.0])]
)
def test_bootstrap_refuses_what_has_no_interval(values: list[float], weights: list[float]) -> None:
    with pytest.raises(InputError):
        BootstrapMean(values, weights=weights, seed=0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    by_p = [a for _, a in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)


def test_minimum_detectable_effect_is_found_with_the_promised_power() -> None:
    generator = np.random.default_rng(5)
    effect = minimum_detectable_effect(1 / math.sqrt(200), alpha=0.05, power=0.8)
    found = [
        BootstrapMean(generator.normal(effect, 1, size=200), seed=seed, resamples=600).p_above(0) <= 0.05
        for seed in range(300)
    ]
    assert 0.73 < np.mean(found) < 0.87
