"""What the watch over the loss makes of curves, and what a person is told."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.train.divergence import Blame, Diverged, Fine, Limits, LossWatch, Suspect, Verdict, diverged_error

LIMITS = Limits(guess=8.0, sigmas=8.0, steps=20)


def judged(
    losses: Sequence[float], limits: Limits = LIMITS, watch: LossWatch | None = None
) -> tuple[list[Verdict], LossWatch]:
    """Verdicts up to the one that ends the run."""
    verdicts: list[Verdict] = []
    watch = watch or LossWatch()
    for loss in losses:
        verdict, watch = watch.judge(loss, grad_norm=1.0, limits=limits)
        verdicts.append(verdict)
        if isinstance(verdict, Diverged):
            break
    return verdicts, watch


def sound(steps: int, seed: int = 0, noise: float = 0.05) -> list[float]:
    dice = np.random.default_rng(seed)
    curve = 1.5 + 6.5 * np.arange(1, steps + 1) ** -0.5
    return list(curve * (1 + dice.normal(0, noise, steps)))


def test_one_spike_is_suspect_and_the_next_step_is_fine() -> None:
    verdicts, watch = judged([*sound(100), 50.0, *sound(200)[100:]])
    assert [index for index, verdict in enumerate(verdicts) if not isinstance(verdict, Fine)] == [100]
    [spike] = verdicts[100:101]
    assert isinstance(spike, Suspect)
    assert 2 < spike.limit < 10
    assert spike.steps == 1
    assert watch.high_for == 0


def test_a_slow_rise_ends_the_run_though_no_step_stands_out() -> None:
    dice = np.random.default_rng(0)
    losses = 2 + 0.01 * np.maximum(0, np.arange(600) - 100) + dice.normal(0, 0.04, 600)
    verdicts, _ = judged(list(losses))
    last = verdicts[-1]
    assert isinstance(last, Diverged)
    assert (last.of, last.steps) == ("rise", 20)
    assert losses[len(verdicts) - 1] < 3
    assert all(isinstance(verdict, Suspect) for verdict in verdicts[-20:-1])


def test_a_loss_that_jumps_and_stays_ends_the_run_after_as_many_steps_as_asked() -> None:
    verdicts, _ = judged([*sound(100), *[7.0] * 50], replace(LIMITS, steps=7))
    assert len(verdicts) == 107
    assert isinstance(verdicts[-1], Diverged)


def test_a_loss_that_is_high_from_the_start_but_for_one_step_ends_the_run() -> None:
    verdicts, _ = judged([6.0, *[30.0] * 50])
    assert len(verdicts) == 21
    assert verdicts[-1] == Diverged(of="rise", value=30.0, limit=16.0, steps=20)


def test_a_run_may_begin_high_and_come_down() -> None:
    verdicts, _ = judged([300 / (1 + step / 10) for step in range(300)])
    assert all(isinstance(verdict, Fine) for verdict in verdicts)


@pytest.mark.parametrize("noise", [0.02, 0.2])
@pytest.mark.parametrize("kind", ["normal", "heavy", "skewed"])
def test_sound_runs_go_on(kind: str, noise: float) -> None:
    dice = np.random.default_rng(7)
    for _ in range(20):
        steps = 500
        curve = 1.0 + 2.0 * np.exp(-np.arange(steps) / 60)
        draws = {
            "normal": dice.normal(size=steps),
            "heavy": dice.standard_t(3, steps),
            "skewed": dice.lognormal(size=steps) - math.exp(0.5),
        }
        verdicts, _ = judged(list(np.maximum(0.0, curve * (1 + noise * draws[kind]))))
        assert len(verdicts) == steps


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_the_run_at_once(loss: float) -> None:
    _, watch = judged(sound(50))
    verdict, after = watch.judge(loss, grad_norm=1.0, limits=LIMITS)
    assert isinstance(verdict, Diverged)
    assert verdict.of == "loss"
    assert after == watch


@pytest.mark.parametrize(("norm", "applied"), [(math.nan, True), (math.inf, False), (1.0, False)])
def test_a_gradient_that_is_no_number_or_a_step_not_taken_ends_the_run(norm: float, applied: bool) -> None:
    verdict, _ = LossWatch().judge(2.0, grad_norm=norm, applied=applied, limits=LIMITS)
    assert isinstance(verdict, Diverged)
    assert verdict.of == "gradient"


def test_without_sigmas_only_what_is_no_number_ends_a_run() -> None:
    verdicts, watch = judged([*sound(100), *[1e6] * 100], replace(LIMITS, sigmas=0.0))
    assert all(isinstance(verdict, Fine) for verdict in verdicts)
    assert isinstance(watch.judge(math.nan, grad_norm=1.0, limits=replace(LIMITS, sigmas=0.0))[0], Diverged)


def test_high_losses_teach_nothing() -> None:
    _, before = judged(sound(100))
    _, after = judged([50.0] * 5, watch=before)
    assert after == replace(before, high_for=5)


@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=80),
    st.integers(0, 79),
)
def test_a_watch_that_was_written_down_judges_the_same(losses: list[float], cut: int) -> None:
    straight, _ = judged(losses)
    first, watch = judged(losses[:cut])
    if first and isinstance(first[-1], Diverged):
        return
    again = LossWatch(**json.loads(json.dumps(asdict(watch))))
    assert again == watch
    assert first + judged(losses[cut:], watch=again)[0] == straight


def told(verdict: Diverged, blame: Blame, **options: int) -> str:
    where = {"option": "train", "step": 12, "lr": 0.01, "saved_step": 9, "checkpoints": "/run/ray", **options}
    return str(diverged_error(verdict, blame, **where))  # type: ignore[arg-type]


def test_a_person_is_told_what_where_from_and_what_is_left() -> None:
    assert told(Diverged(of="loss", value=math.nan, limit=3.25), Blame(rows=[26], found=True)) == (
        "train diverged at step 12, learning rate 0.01: the loss is nan (up to 3.25 would be fine); it comes from "
        "row 26. To mend it, look at row 26, or lower train.lr, or raise train.warmup_fraction; the last good "
        "checkpoint is that of step 9, in /run/ray"
    )


def test_a_rise_names_the_batch_and_how_to_let_it_be() -> None:
    message = told(Diverged(of="rise", value=9.5, limit=3.25, steps=20), Blame(rows=list(range(30))), saved_step=0)
    assert (
        "the loss is 9.5, and above 3.25 for 20 steps; the batch held rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …. "
        in message
    )
    assert "train.divergence_sigmas 0" in message
    assert message.endswith("there is no checkpoint yet")


def test_no_row_is_accused_where_all_are_bad_or_none_is() -> None:
    all_bad = told(Diverged(of="loss", value=math.inf), Blame(rows=["a:1", "b:1"], found=True, all_bad=True))
    assert "every row of the batch gives it, so it is the weights that are lost" in all_bad
    assert "look at" not in all_bad
    none = told(Diverged(of="gradient", value=math.inf), Blame(rows=["a:1", "b:1"]))
    assert "no row gives it alone; the batch held rows a:1, b:1. " in none
    assert "look at" not in none
