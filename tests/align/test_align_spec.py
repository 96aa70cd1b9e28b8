"""An alignment spec refuses what cannot work, and names the fix."""

from dataclasses import replace

import pytest

from llmray.align.spec import AlignSpec
from llmray.errors import ConfigError
from llmray.train.model_run import changed

SPEC = AlignSpec(model="m", data="d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, r"align\.beta \(0\.0\) must be above zero"),
        ({"beta": float("nan")}, r"align\.beta \(nan\)"),
        ({"max_steps": 0}, r"align\.max_steps \(0\)"),
        ({"micro_batch": -1}, r"align\.micro_batch \(-1\)"),
        ({"lora_alpha": 0.0}, r"align\.lora_alpha"),
        ({"checkpoint_every": 0}, r"align\.checkpoint_every"),
        ({"sft_weight": -0.5}, r"align\.sft_weight \(-0\.5\) must be zero or more"),
        ({"gpus_per_worker": -1.0}, r"align\.gpus_per_worker"),
        ({"clip_norm": -1.0}, r"align\.clip_norm"),
        ({"method": "dora"}, r"align\.method \('dora'\) must be one of full, lora, qlora"),
        ({"method": "qlora"}, r"use align\.method lora"),
        ({"dtype": "float16"}, r"align\.dtype \('float16'\) must be one of float32, bfloat16"),
        ({"zero": 4}, r"align\.zero \(4\) must be 0, 1, 2 or 3"),
        ({"zero": 3, "method": "lora", "dtype": "bfloat16"}, "use align.zero 2, or align.dtype float32"),
        ({"lr": 1.0}, r"align\.lr \(1\.0\) must lie between 0 and 1: try"),
        ({"lr": 0.0}, r"align\.lr"),
        ({"lr": float("nan")}, r"align\.lr"),
        ({"warmup_fraction": 1.0}, "at least 0 and below 1: try"),
    ],
)
def test_an_impossible_option_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AlignSpec(**options)  # type: ignore[arg-type]


def test_what_changes_weights_is_the_identity_and_where_it_runs_is_not() -> None:
    there = replace(SPEC, model="n", data="e", zero=3, cpus_per_worker=2.0, gpus_per_worker=1.0, checkpoint_every=7)
    assert there.identity() == SPEC.identity()
    for other in (replace(SPEC, beta=0.2), replace(SPEC, sft_weight=0.0), replace(SPEC, num_workers=1)):
        assert other.identity() != SPEC.identity()


def test_a_run_begun_on_some_workers_goes_on_only_there() -> None:
    """TRL's trainer cannot do more, so its run folder is held to it."""
    assert changed(SPEC.settings(), replace(SPEC, checkpoint_every=7, cpus_per_worker=2.0).settings()) == []
    elsewhere = replace(SPEC, num_workers=1, accumulation=2, zero=1)
    assert elsewhere.identity() == SPEC.identity()
    assert changed(SPEC.settings(), elsewhere.settings()) == ["accumulation", "num_workers", "zero"]


def test_a_global_batch_is_the_pairs_of_all_workers_and_passes() -> None:
    assert replace(SPEC, num_workers=3, micro_batch=4, accumulation=5).global_batch == 60
