"""What a training run may ask for, and whose a checkpoint is."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmray.errors import ConfigError
from llmray.train.checkpoint import Progress, read_progress, steps_done, write_progress
from llmray.train.early_stopping import HeldoutWatch
from llmray.train.meter import Meter
from llmray.train.model_run import changed
from llmray.train.spec import TrainSpec

BAD: list[tuple[dict[str, Any], str]] = [
    *(({name: 0}, rf"train\.{name} \(0\) must be above zero") for name in ("num_workers", "max_length", "max_steps")),
    *(({name: 0}, rf"train\.{name} \(0\) must be above zero") for name in ("micro_batch", "accumulation", "lora_rank")),
    ({"cpus_per_worker": 0.0}, r"train\.cpus_per_worker"),
    ({"gpus_per_worker": -1.0}, r"train\.gpus_per_worker \(-1\.0\) must be zero or more"),
    ({"weight_decay": -0.1}, r"train\.weight_decay \(-0\.1\) must be zero or more"),
    ({"clip_norm": -1.0}, r"train\.clip_norm"),
    ({"eval_rows": -1}, r"train\.eval_rows"),
    ({"eval_every": -1}, r"train\.eval_every"),
    ({"zero": 4}, r"train\.zero \(4\) must be 0, 1, 2 or 3"),
    ({"lr": 0.0}, r"train\.lr \(0\.0\) must lie between 0 and 1: try"),
    ({"lr": 1.0}, r"train\.lr \(1\.0\)"),
    ({"lr": math.nan}, r"train\.lr \(nan\)"),
    ({"warmup_fraction": 1.0}, r"train\.warmup_fraction \(1\.0\) must be at least 0 and below 1: try"),
    ({"warmup_fraction": -0.1}, r"train\.warmup_fraction"),
    ({"beta2": 1.0}, r"train\.beta2 \(1\.0\) must lie between 0 and 1: try"),
    ({"decay_fraction": 0.0}, r"train\.decay_fraction \(0\.0\) must be above 0 and at most 1: try"),
    ({"schedule": "wsd", "warmup_fraction": 0.3, "decay_fraction": 0.8}, r"try train\.decay_fraction 0\.7 or less"),
    ({"mix": 1.0}, r"train\.mix \(1\.0\) must be at least 0 and below 1: try"),
    ({"checkpoint_every": 0}, r"train\.checkpoint_every"),
    ({"divergence_sigmas": -1.0}, r"train\.divergence_sigmas \(-1\.0\) must be zero or more"),
    ({"min_workers": -1}, r"train\.min_workers \(-1\) must be zero or more"),
    ({"min_workers": 3}, r"train\.min_workers \(3\) must be at most train\.num_workers \(2\)"),
    (
        {"min_workers": 1, "num_workers": 4, "micro_batch": 2},
        r"allows 3 workers, .* \(8\) evenly: set it to 4 or more, or choose another train\.accumulation",
    ),
    ({"divergence_steps": 0}, r"train\.divergence_steps \(0\) must be above zero"),
    ({"keep_checkpoints": 0}, r"train\.keep_checkpoints"),
    ({"objective": "pretrain", "method": "lora"}, r"use train\.method full"),
    ({"objective": "dpo"}, r"train\.objective \('dpo'\) must be one of sft, pretrain"),
    ({"method": "dora"}, r"train\.method \('dora'\) must be one of full, lora, qlora"),
    ({"objective": "pretrain", "method": "qlora"}, r"use train\.method full"),
    ({"offload": "nvme"}, r"train\.offload \('nvme'\) must be one of none, optimizer, all"),
    ({"zero": 0, "offload": "optimizer"}, r"use train\.zero 1 or higher"),
    ({"zero": 2, "offload": "all"}, r"only train\.zero 3 gathers.*use that, or train\.offload optimizer"),
    ({"patience": -1}, r"train\.patience \(-1\) must be zero or more"),
    ({"patience": 2}, r"set train\.eval_every to the steps between"),
    ({"export": "best", "eval_every": 5, "eval_rows": 0}, r"leave train\.eval_rows above zero"),
    ({"export": "first"}, r"train\.export \('first'\) must be one of last, best"),
    ({"schedule": "step"}, r"train\.schedule \('step'\) must be one of cosine, linear, constant, wsd"),
    ({"too_long": "drop"}, r"train\.too_long \('drop'\) must be one of by_shape, truncate, split, refuse"),
    ({"template": "alpaca"}, r"train\.template \('alpaca'\) must be one of plain, chatml, llama3, gemma, or empty"),
    ({"max_length": 1}, r"train\.max_length \(1\) must be 2 or more"),
    ({"dtype": "float16"}, r"train\.dtype \('float16'\) must be one of float32, bfloat16"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_value_names_its_option_and_the_fix(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSpec(**options)


def test_a_global_batch_is_all_workers_and_passes() -> None:
    assert TrainSpec(num_workers=3, micro_batch=4, accumulation=5).global_batch == 60


def test_the_identity_is_what_can_change_the_weights() -> None:
    spec = TrainSpec(model="/m", data="/d")
    elsewhere = replace(
        spec,
        model="/n",
        data="/e",
        zero=3,
        offload="all",
        gradient_checkpointing=True,
        cpus_per_worker=2.0,
        checkpoint_every=7,
        keep_checkpoints=9,
    )
    assert elsewhere.identity() == spec.identity()
    for name, value in (
        ("lr", 2e-3),
        ("seed", 1),
        ("max_steps", 7),
        ("num_workers", 1),
        ("mix", 0.5),
        ("too_long", "split"),
        ("template", "plain"),
    ):
        assert replace(spec, **{name: value}).identity() != spec.identity()
    assert "model" not in spec.identity()


def test_how_a_global_batch_is_shared_out_is_no_identity_and_its_size_is() -> None:
    spec = TrainSpec(num_workers=2, micro_batch=8, accumulation=1)
    assert replace(spec, num_workers=1, micro_batch=4, accumulation=4).identity() == spec.identity()
    assert spec.identity()["global_batch"] == 16
    assert not {"num_workers", "micro_batch", "accumulation"} & spec.identity().keys()


def test_a_run_may_change_its_place_and_not_its_inputs() -> None:
    spec = TrainSpec(model="/m", data="/d")
    elsewhere = replace(spec, zero=3, num_workers=4, micro_batch=4, gpus_per_worker=1.0, checkpoint_every=7)
    assert changed(spec.settings(), elsewhere.settings()) == []
    other = replace(spec, model="/n", lr=2e-3, accumulation=2)
    assert changed(spec.settings(), other.settings()) == ["global_batch", "lr", "model"]


def test_a_number_written_as_an_integer_is_the_same_spec() -> None:
    """`TrainSpec(clip_norm=1)` equals `TrainSpec(clip_norm=1.0)`, so it may go on from its checkpoint."""
    assert TrainSpec(clip_norm=1) == TrainSpec(clip_norm=1.0)
    assert changed(TrainSpec(clip_norm=1).settings(), TrainSpec(clip_norm=1.0).settings()) == []


def test_another_number_of_workers_shares_the_same_global_batch() -> None:
    spec = TrainSpec(num_workers=4, min_workers=1, micro_batch=6, accumulation=2)
    shared = {count: spec.on_workers(count) for count in range(1, 5)}
    assert {count: (one.num_workers, one.micro_batch, one.accumulation) for count, one in shared.items()} == {
        1: (1, 6, 8),
        2: (2, 6, 4),
        3: (3, 4, 4),
        4: (4, 6, 2),
    }
    assert all(changed(one.settings(), spec.settings()) == [] for one in shared.values())
    assert spec.worker_range == (1, 4)
    assert replace(spec, min_workers=0).worker_range == (4, 4)


def test_a_checkpoint_tells_where_the_run_stood(tmp_path: Path) -> None:
    spec = TrainSpec(model="/m", data="/d")
    progress = Progress(step=4, next_index=64, meter=Meter(tokens=9, seconds=0.25), train_loss=1.5)
    progress = replace(progress, heldout=HeldoutWatch(lowest=1.25, lowest_step=2, since=1))
    write_progress(tmp_path, progress, spec, world_size=2)
    assert read_progress(tmp_path, spec) == progress
    assert read_progress(tmp_path, replace(spec, num_workers=1, accumulation=2)) == progress
    assert steps_done(tmp_path) == 4


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    spec = TrainSpec(model="/m", data="/d")
    write_progress(tmp_path, Progress(), spec, world_size=2)
    with pytest.raises(ConfigError, match=r"other settings \(global_batch, lr\): choose another run folder"):
        read_progress(tmp_path, replace(spec, lr=2e-3, num_workers=4))


def test_whole_and_sharded_optimizer_state_do_not_follow_one_another(tmp_path: Path) -> None:
    sharded = TrainSpec(zero=2)
    known = Progress(train_loss=1.5)
    write_progress(tmp_path, known, sharded, world_size=2)
    for zero in (1, 3):
        assert read_progress(tmp_path, replace(sharded, zero=zero)) == known
    with pytest.raises(ConfigError, match=r"train\.zero 0 cannot go on .* wrote: set it to 1, 2 or 3, or choose"):
        read_progress(tmp_path, replace(sharded, zero=0))
    write_progress(tmp_path, Progress(), replace(sharded, zero=0), world_size=2)
    with pytest.raises(ConfigError, match=r"train\.zero 2 cannot go on .* train\.zero 0 wrote: set it to 0, or"):
        read_progress(tmp_path, sharded)
