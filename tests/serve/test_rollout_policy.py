"""Counts that add up, and the policy that decides on them: what it rolls back, what it lets pass, and how often it errs."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.errors import ConfigError
from llmray.serve.rollout import (
    Advance,
    Hold,
    RollBack,
    RolloutPolicy,
    RolloutState,
    charges,
    decide,
    evidence,
    most,
)
from llmray.serve.tally import Shape, Tally, octave, quantile, shape_of, together

PROSE = "The function joins one or more path segments intelligently, and returns their concatenation as a string. "


def tally(
    answers: int,
    *,
    errors: int = 0,
    empty: int = 0,
    cut: int = 0,
    slower: float = 1.0,
    longer: float = 1.0,
    shape: Shape | None = None,
    seed: int = 0,
) -> Tally:
    """Answers as a usual model gives them, or not."""
    random = np.random.default_rng(seed)
    made = Tally()
    usual = shape_of(PROSE)
    assert usual is not None
    for number in range(answers + errors):
        made.begin()
        if number < errors:
            made.end("error", latency_s=0.1)
            continue
        tokens = 0 if number < errors + empty else max(1, round(longer * random.lognormal(3.5, 0.5)))
        ttft_s = slower * random.lognormal(-1.5, 0.5)
        look = shape or Shape(usual.compressed + random.normal(0, 0.03), usual.entropy + random.normal(0, 0.1))
        made.end(
            "length" if number < errors + cut else "stop",
            latency_s=ttft_s + 0.03 * slower * tokens,
            ttft_s=ttft_s if tokens else None,
            tokens=tokens,
            shape=look if tokens else None,
        )
    return made


def verdict(canary: Tally, stable: Tally | None = None, **more: int) -> Advance | Hold | RollBack:
    stable = tally(300, errors=1, cut=5, seed=1) if stable is None else stable
    state = RolloutState(stable=stable, canary=canary, at_step=more.pop("at_step", canary.requests), **more)
    return decide(state, RolloutPolicy(min_requests=15))


tallies = st.builds(
    Tally, requests=st.integers(0, 99), errors=st.integers(0, 9),
    first_token=st.dictionaries(st.integers(-9, 9), st.integers(1, 9)).map(Counter),
)  # fmt: skip


@given(tallies, tallies, tallies)
def test_tallies_add_up_in_any_order_and_come_apart_again(a: Tally, b: Tally, c: Tally) -> None:
    assert (a + b) + c == a + (c + b) == together([c, a, b])
    assert (a + b) - b == a


@given(st.lists(st.floats(1e-4, 1e3), min_size=1), st.floats(0.01, 1))
def test_quantile_of_a_histogram_is_the_bucket_of_the_quantile(values: Sequence[float], share: float) -> None:
    histogram = Counter(octave(value) for value in values)
    rank = next(n for n in range(1, len(values) + 1) if n >= share * len(values))
    assert quantile(histogram, share) == octave(sorted(values)[rank - 1])


def test_shapes_tell_prose_from_loops_and_noise() -> None:
    noise = "".join(chr(33 + int(n)) for n in np.random.default_rng(0).integers(0, 5000, 300))
    shapes = [shape_of(text) for text in (PROSE * 3, "the the " * 40, noise, "too short", "\ud800" * 40)]
    prose, loop, random, nothing, surrogate = shapes
    assert nothing is None
    assert surrogate is not None
    assert prose is not None
    assert loop is not None
    assert random is not None
    assert loop.compressed < prose.compressed < random.compressed
    assert loop.entropy < prose.entropy < random.entropy


def test_policy_advances_and_holds() -> None:
    assert verdict(tally(40)) == Advance()
    assert verdict(tally(40), at_step=14) == Hold("14 of 15 requests at this weight")
    assert verdict(Tally(requests=30, running=30), at_step=0) == Hold("0 of 15 requests at this weight")
    # both fail alike: the fault is elsewhere, unless the new model answers hardly anything
    assert verdict(tally(70, errors=30), tally(210, errors=90)) == Advance()
    assert isinstance(verdict(tally(40, errors=60), tally(120, errors=180)), RollBack)
    # all of the traffic at once leaves nothing to compare with
    assert isinstance(verdict(tally(0, errors=20), Tally()), RollBack)
    # somewhat slower and somewhat longer is what new models are
    assert verdict(tally(60, slower=1.4, longer=1.4)) == Advance()


@pytest.mark.parametrize(
    ("canary", "why"),
    [
        (tally(0, errors=4), "failed"),
        (tally(10, empty=8), "empty"),
        (tally(20, cut=20), "cut"),
        (tally(25, slower=4.0), "too long"),
        (tally(20, longer=20.0), "unusual length"),
        (tally(20, shape=shape_of("the the " * 40)), "unusual compressibility"),
    ],
)
def test_bad_models_go_back_within_a_few_answers(canary: Tally, why: str) -> None:
    back = verdict(canary, at_step=0)
    assert isinstance(back, RollBack)
    assert back.judged
    assert why in back.reason


@pytest.mark.parametrize(
    ("outcome", "why"), [("refused", "were refused"), ("deadline", "were given up"), ("cancelled", "were given up")]
)
def test_a_release_that_answers_nobody_goes_back_and_never_goes_on(outcome: str, why: str) -> None:
    canary = Tally()
    for _ in range(20):
        canary.begin()
        canary.end(outcome, latency_s=1.0)
    back = verdict(canary, at_step=canary.ended)
    assert isinstance(back, RollBack)
    assert why in back.reason
    assert isinstance(verdict(canary, Tally(), at_step=canary.ended), Hold)  # nothing to compare with
    # who leaves in the middle of an answer has had one, and a refused request does not excuse one that failed
    canary.begin()
    canary.end("cancelled", latency_s=1.0, ttft_s=0.5, tokens=3)
    assert canary.refused + canary.given_up == 20
    failed = tally(0, errors=4) + canary
    assert charges(failed, tally(300), RolloutPolicy())[2].requests == 5


def test_refusals_that_the_stable_model_has_too_are_nobodys_fault() -> None:
    canary, stable = tally(40), tally(300, seed=1)
    for counted, count in ((canary, 8), (stable, 60)):
        for number in range(count):
            counted.begin()
            counted.end("refused" if number % 2 else "cancelled", latency_s=0.1)
    assert verdict(canary, stable, at_step=canary.ended) == Advance()


def test_all_answers_to_one_request_are_one_request() -> None:
    counted = Tally()
    for another in (False, True, True):
        counted.begin(another=another)
    assert (counted.requests, counted.running) == (1, 3)
    for another in (True, False, True):
        counted.end("stop", latency_s=1.0, ttft_s=0.5, tokens=3, another=another)
    assert (counted.ended, counted.running, counted.length.total()) == (1, 0, 1)


def test_alarms_of_the_monitors_end_a_rollout_unless_they_are_ignored() -> None:
    state = RolloutState(stable=tally(300), canary=tally(40), at_step=40, alarms=1)
    assert decide(state, RolloutPolicy()) == RollBack("the monitors raised 1 alarms")
    assert decide(state, RolloutPolicy(ignore_alarms=True)) == Advance()
    unread = RolloutState(stable=tally(300), canary=tally(40), at_step=40, alarms=None)
    assert decide(unread, RolloutPolicy()) == Hold("no word from the monitors")


def test_what_still_runs_speaks_for_the_model() -> None:
    early = Tally(requests=40, running=37, errors=3)
    assert isinstance(verdict(early, tally(97, errors=3), at_step=0), Hold)
    assert isinstance(verdict(Tally(requests=4, errors=4), tally(97, errors=3), at_step=0), RollBack)


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 0.9))
def test_evidence_grows_with_what_is_bad_and_shrinks_with_what_is_good(bad: int, good: int, allowed: float) -> None:
    here = evidence(bad, bad + good, allowed)
    assert evidence(bad + 1, bad + good + 1, allowed) >= here * (1 - 1e-6)
    assert evidence(bad, bad + good + 1, allowed) <= here * (1 + 1e-6)


@pytest.mark.parametrize("allowed", [0.02, 0.3, 0.5])
def test_evidence_wins_nothing_in_the_mean_where_the_claim_is_true(allowed: float) -> None:
    from scipy.stats import binom

    for requests in (1, 7, 100):
        mean = sum(
            float(binom.pmf(bad, requests, allowed)) * evidence(bad, requests, allowed) for bad in range(requests + 1)
        )
        assert mean == pytest.approx(1.0, rel=1e-6)
    # looked at after each of 300 requests, it comes to a hundred in at most one run in a hundred
    runs = np.random.default_rng(0).random((200, 300)) < allowed
    ever = sum(
        any(evidence(int(bad), n + 1, allowed) >= 100 for n, bad in enumerate(run.cumsum()) if run[n]) for run in runs
    )
    assert ever <= 2 + 4


def test_every_charge_has_its_part_of_the_significance() -> None:
    policy = RolloutPolicy()
    assert len(charges(Tally(), Tally(), policy)) == len(charges(tally(9), tally(99), policy)) == 10
    assert most(0, 0) == 1.0
    assert most(0, 1000) < 0.01 < most(3, 100)


@pytest.mark.parametrize("steps", [(), (0, 100), (50, 25, 100), (5, 25), (5, 5, 100), (5, 120)])
def test_impossible_steps_are_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="try"):
        RolloutPolicy(steps=steps)


@pytest.mark.parametrize("option", [{"significance": 0.0}, {"max_slowdown": 0.5}, {"max_unusual": 0.0}])
def test_impossible_limits_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        RolloutPolicy(**option)  # type: ignore[arg-type]
