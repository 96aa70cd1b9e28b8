"""The learning rate, and the meter."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.train.checkpoint import Progress
from llmray.train.meter import Gauge, Meter
from llmray.train.schedule import learning_rate

SCHEDULES = st.sampled_from(["cosine", "linear", "constant", "wsd"])


@given(SCHEDULES, st.integers(1, 300), st.floats(0, 0.95), st.floats(1e-6, 0.9))
def test_it_rises_to_the_peak_and_never_again(schedule: str, max_steps: int, warmup: float, peak: float) -> None:
    rates = [
        learning_rate(step, peak=peak, max_steps=max_steps, warmup_fraction=warmup, schedule=schedule)
        for step in range(max_steps)
    ]
    top = max(0, math.ceil(warmup * max_steps) - 1)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert rates[top] == pytest.approx(peak)
    assert all(later > earlier for earlier, later in pairwise(rates[: top + 1]))
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(rates[top:]))


def rate(step: int, schedule: str, warmup_fraction: float = 0.1) -> float:
    return learning_rate(step, peak=1e-2, max_steps=100, warmup_fraction=warmup_fraction, schedule=schedule)  # type: ignore[arg-type]


def test_where_the_schedules_end() -> None:
    assert rate(0, "cosine") == pytest.approx(1e-3)
    assert rate(10, "cosine") == pytest.approx(1e-2)
    assert rate(55, "cosine") == pytest.approx(5.5e-3)
    assert rate(100, "cosine") == pytest.approx(1e-3)
    assert rate(55, "linear") == pytest.approx(5e-3)
    assert rate(100, "linear") == 0.0
    assert rate(99, "constant") == 1e-2
    assert rate(0, "constant", warmup_fraction=0.0) == 1e-2


def test_wsd_stays_at_the_peak_and_falls_by_a_root_in_the_last_steps() -> None:
    assert [rate(step, "wsd") for step in (9, 10, 50, 89, 90)] == [1e-2] * 5
    assert rate(91, "wsd") == pytest.approx(1e-2 * (1 - math.sqrt(0.1)))
    assert rate(95, "wsd") == pytest.approx(1e-2 * (1 - math.sqrt(0.5)))
    assert rate(100, "wsd") == 0.0


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 0.5), st.floats(0.01, 0.5))
def test_until_it_falls_wsd_is_the_same_for_every_length(short: int, long: int, warmup: float, decay: float) -> None:
    """So a run can branch off a checkpoint of a longer one."""
    steps = range(math.ceil(warmup * short), short - math.ceil(decay * short) + 1)
    rates = {
        learning_rate(
            step,
            peak=0.5,
            max_steps=total,
            warmup_fraction=warmup * short / total,
            schedule="wsd",
            decay_fraction=min(1.0, decay * short / total),
        )
        for step in steps
        for total in (short, max(short, long))
    }
    assert rates <= {0.5}


GAUGE = Gauge(
    num_blocks=8, max_length=60, device="cpu", num_devices=2, cores=4, gpus=0.5, flops_per_token=1e6, peak_flops_per_s=1e9
)  # fmt: skip


def test_a_line_of_metrics_says_how_full_the_blocks_were_and_how_busy_the_devices() -> None:
    meter = Meter(tokens=200, targets=80, seconds=1.0, core_seconds=4.0, gpu_seconds=0.5)
    line = GAUGE.line(Progress(step=2, next_index=4, meter=meter, train_loss=1.5), lr=0.1, grad_norm=2.0)
    assert line.pop("peak_bytes") > 0
    assert line == {
        "step": 2, "loss": 1.5, "lr": 0.1, "grad_norm": 2.0, "epoch": 0.5, "tokens": 200, "tokens_per_s": 200.0,
        "packing_efficiency": 0.8333, "core_seconds": 4.0, "gpu_seconds": 0.5, "mfu": 0.1,
    }  # fmt: skip


def test_a_meter_adds_up() -> None:
    meter = Meter()
    assert meter.tokens_per_s == 0.0
    for _ in range(2):
        meter = GAUGE.add(meter, tokens=100, targets=40, seconds=0.5)
    assert meter == Meter(tokens=200, targets=80, seconds=1.0, core_seconds=4.0, gpu_seconds=0.5)
    assert meter.tokens_per_s == 200.0
