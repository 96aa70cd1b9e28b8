"""The detector keeps its promise about false alarms, finds changes, and is a state machine that can be moved."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from usual_traffic import SHAKESPEARE, questions

from llmray.errors import ConfigError, InputError
from llmray.monitor.detector import _BETS, Detector, _payoff
from llmray.monitor.reference import make_reference

GRID = (np.arange(20_000) + 0.5) / 20_000


def uniforms(generator: np.random.Generator, n: int) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in generator.random((n, 2))]


def test_every_bet_is_fair_and_the_mixture_is_whole() -> None:
    assert sum(share for share, _, _, _ in _BETS) == pytest.approx(1)
    for _, exponent, stake, _ in _BETS:
        # the integral over p in [0, 1], with p = t^8 to tame the pole at 0
        assert np.mean([_payoff(t**8, exponent, stake) * 8 * t**7 for t in GRID]) == pytest.approx(1, abs=0.02)
        assert _payoff(0.9, exponent, stake) > 0


def run_length(generator: np.random.Generator, arl: float, *, max_scores: int = 4096) -> int:
    scores = generator.normal(size=30 + int(arl * 60))
    detector = Detector(scores[:30], average_run_length=arl, max_scores=max_scores)
    return detector.update(scores[30:], uniforms(generator, len(scores) - 30)).n


@pytest.mark.parametrize("max_scores", [4096, 30])
def test_mean_run_length_without_a_change_is_at_least_the_threshold(max_scores: int) -> None:
    """Few calibration scores, and a pool so small that it evicts at every step: the promise holds all the same."""
    generator = np.random.default_rng(0)
    lengths = [run_length(generator, 40, max_scores=max_scores) for _ in range(300)]
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert np.mean(lengths) + 2 * error > 40
    assert np.mean(lengths) < 40 * 6


def test_an_early_false_alarm_is_as_rare_as_promised() -> None:
    generator = np.random.default_rng(1)
    early = np.mean([run_length(generator, 100) <= 20 for _ in range(300)])
    assert early <= 20 / 100


def test_the_statistic_has_mean_n() -> None:
    """E[R_n] = n under exchangeability: the identity that the promise rests on."""
    generator = np.random.default_rng(2)
    values = []
    for _ in range(3000):
        scores = generator.exponential(size=25)
        detector = Detector(scores[:20], average_run_length=1e12)
        values.append(detector.update(scores[20:], uniforms(generator, 5)).statistic)
    assert np.mean(values) == pytest.approx(5, abs=4 * np.std(values) / np.sqrt(len(values)))


def test_real_usual_questions_stay_quiet_and_shakespeare_alarms_within_ten() -> None:
    quiet, delays = 0, []
    for seed in range(10):
        texts = questions(seed)
        reference = make_reference(texts[:300])
        generator = np.random.default_rng(seed)
        detector = Detector(reference.calibration, average_run_length=10_000)
        quiet += detector.update(reference.score.scores(texts[300:500]), uniforms(generator, 200)).state == "quiet"
        before = detector.verdict().n
        after = detector.update(reference.score.scores(SHAKESPEARE), uniforms(generator, len(SHAKESPEARE)))
        assert after.state == "alarm"
        delays.append(after.n - before)
    assert quiet >= 9
    assert max(delays) <= 10


def test_traffic_that_becomes_too_much_alike_alarms_too() -> None:
    generator = np.random.default_rng(3)
    detector = Detector(generator.normal(size=200), average_run_length=1000)
    assert detector.update([-3.0] * 100, uniforms(generator, 100)).state == "alarm"


def test_an_alarm_is_latched_until_a_reset_with_a_reason() -> None:
    generator = np.random.default_rng(4)
    detector = Detector(generator.normal(size=100), average_run_length=100)
    alarm = detector.update([9.0] * 50, uniforms(generator, 50))
    assert alarm.state == "alarm"
    assert alarm.statistic >= 100
    assert detector.update([0.0] * 50, uniforms(generator, 50)) == alarm
    with pytest.raises(InputError, match="reason"):
        detector.reset(" ")
    detector.reset("retrained")
    assert detector.verdict() == type(alarm)(state="quiet", statistic=0.0, n=0)


scores_strategy = st.lists(st.floats(-5, 5), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(scores_strategy, st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_batches_and_restarts_change_nothing(scores: list[float], cut: int, seed: int) -> None:
    draws = uniforms(np.random.default_rng(seed), len(scores))
    calibration = np.random.default_rng(0).normal(size=25).tolist()
    whole = Detector(calibration, average_run_length=50, max_scores=40)
    whole.update(scores, draws)
    first = Detector(calibration, average_run_length=50, max_scores=40)
    first.update(scores[:cut], draws[:cut])
    moved = Detector.from_dict(json.loads(json.dumps(first.to_dict())))
    moved.update(scores[cut:], draws[cut:])
    assert moved.to_dict() == whole.to_dict()


@settings(max_examples=60, deadline=None)
@given(scores_strategy, st.floats(0.1, 10))
def test_only_the_order_of_scores_counts_not_their_scale(scores: list[float], scale: float) -> None:
    draws = uniforms(np.random.default_rng(1), len(scores))
    scores = [round(score, 3) for score in scores]
    calibration = [round(value, 3) for value in np.random.default_rng(0).normal(size=25).tolist()]
    one = Detector(calibration, average_run_length=1e9)
    other = Detector([scale * value + 1 for value in calibration], average_run_length=1e9)
    assert other.update([scale * score + 1 for score in scores], draws) == one.update(scores, draws)


def test_state_stays_bounded() -> None:
    generator = np.random.default_rng(5)
    detector = Detector(generator.normal(size=50), average_run_length=1e12, max_scores=60)
    detector.update(generator.normal(size=2000), uniforms(generator, 2000))
    assert len(detector.to_dict()["pool"]) == 60


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="average_run_length"):
        Detector([0.0] * 30, average_run_length=1)
    with pytest.raises(ConfigError, match="max_scores"):
        Detector([0.0] * 30, average_run_length=100, max_scores=20)
    with pytest.raises(InputError, match="20 calibration"):
        Detector([0.0] * 5, average_run_length=100)
