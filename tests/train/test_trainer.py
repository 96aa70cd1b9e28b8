"""Training on Ray Train: two workers, the artifact that comes of it, and going on after a kill to the same bits."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_training import base, snapshot

from llmray import artifact
from llmray.artifact import Artifact
from llmray.errors import ConfigError, InputError
from llmray.train.checkpoint import steps_done
from llmray.train.spec import TrainSpec
from llmray.train.trainer import TrainResult, train

pytestmark = pytest.mark.ray

STEPS = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def spec(root: Path) -> TrainSpec:
    data = snapshot(root, validation=[21, 22, 23, 24])
    return TrainSpec(
        model=base(root, data).uri,
        data=data.uri,
        num_workers=2,
        max_length=96,
        micro_batch=2,
        max_steps=STEPS,
        checkpoint_every=2,
        eval_every=4,
        export="best",
        lr=1e-2,
    )


@pytest.fixture(scope="module")
def told() -> list[dict[str, Any]]:
    """What `on_report` was called with."""
    return []


@pytest.fixture(scope="module")
def undisturbed(
    ray_cluster: None, spec: TrainSpec, root: Path, told: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> TrainResult:
    run_dir, home = (tmp_path_factory.mktemp(name) for name in ("undisturbed", "home"))
    (home / "prices.yaml").write_text("{currency: EUR, core_hour: 36}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMRAY_HOME", str(home))
        return train(spec, run_dir=str(run_dir), root_uri=str(root), on_report=told.append)


def lines_of(result: TrainResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(result.metrics_path).read_text().splitlines()]


def weights_of(model: Artifact) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(Path(model.uri) / "model.safetensors"))


def test_two_workers_train_a_model_that_says_where_it_comes_from(
    undisturbed: TrainResult, spec: TrainSpec, told: list[dict[str, Any]]
) -> None:
    lines = lines_of(undisturbed)
    assert told == lines
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert undisturbed.train_loss == lines[-1]["loss"] < lines[0]["loss"] / 1.5
    assert [line["step"] for line in lines if "heldout_loss" in line] == [4, 8]
    assert undisturbed.heldout_loss < lines[3]["heldout_loss"]
    assert (undisturbed.steps, undisturbed.stopped_early) == (STEPS, False)
    assert undisturbed.tokens == lines[-1]["tokens"]
    assert undisturbed.core_seconds > lines[-1]["core_seconds"] > 0
    model = undisturbed.artifact
    assert model.kind == "model"
    assert model.parents == {"base": artifact.load(spec.model).digest, "data": artifact.load(spec.data).digest}
    assert model.config == {"train": spec.identity()}
    assert model.report["steps"] == undisturbed.exported_step == STEPS
    assert len(model.report["memory_bytes"]["peaks"]) == 2
    assert undisturbed.money == pytest.approx(undisturbed.core_seconds / 100, abs=1e-6)
    assert [line["money"] for line in lines] == pytest.approx([line["core_seconds"] / 100 for line in lines], abs=1e-6)
    assert "over 4 rows. It cost" in (Path(model.uri) / "README.md").read_text()
    assert len(list((Path(model.uri) / "tensorboard").glob("events.*"))) == 1


def test_the_artifact_loads_and_has_the_heldout_loss_that_it_claims(undisturbed: TrainResult, spec: TrainSpec) -> None:
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmray.train.blocks import heldout_blocks

    model, words = (kind.from_pretrained(undisturbed.artifact.uri) for kind in (AutoModelForCausalLM, AutoTokenizer))
    total, targets = 0.0, 0
    for block in heldout_blocks(spec, words):
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(block.input_ids)[None],
                position_ids=torch.from_numpy(block.position_ids)[None],
                use_cache=False,
            ).logits[0]
        total += float(cross_entropy(logits, torch.from_numpy(block.labels), reduction="sum"))
        targets += block.num_targets
    assert total / targets == pytest.approx(undisturbed.heldout_loss, abs=1e-5)
    assert model.config.use_cache


def test_the_same_call_again_runs_nothing_and_another_spec_is_refused(
    undisturbed: TrainResult, spec: TrainSpec, root: Path
) -> None:
    run_dir = str(Path(undisturbed.metrics_path).parent)
    written = Path(undisturbed.metrics_path).stat()
    assert train(spec, run_dir=run_dir, root_uri=str(root)) == undisturbed
    assert Path(undisturbed.metrics_path).stat() == written
    with pytest.raises(ConfigError, match=r"other settings \(lr, seed\): choose another run_dir"):
        train(replace(spec, lr=2e-2, seed=1), run_dir=run_dir, root_uri=str(root))
    with pytest.raises(ConfigError, match="must be a local or mounted folder"):
        train(spec, run_dir="memory://runs/1", root_uri=str(root))


def test_lora_stops_at_its_deadline_goes_on_when_called_again_and_its_best_weights_are_merged(
    ray_cluster: None, spec: TrainSpec, root: Path, tmp_path: Path
) -> None:
    import torch

    adapters = replace(
        spec, method="lora", lora_rank=4, zero=3, num_workers=1, max_steps=4, eval_every=1, patience=1, lr=0.9,
        schedule="constant", keep_checkpoints=1,
    )  # fmt: skip
    before = weights_of(artifact.load(spec.model))
    stopped = train(adapters, run_dir=str(tmp_path), root_uri=str(root), deadline_s=0.0)
    assert (stopped.steps, stopped.stopped_early) == (0, True)
    untouched = weights_of(stopped.artifact)
    assert all(torch.equal(untouched[name], before[name]) for name in before)
    result = train(adapters, run_dir=str(tmp_path), root_uri=str(root))
    assert (result.steps, result.exported_step, result.stopped_early) == (3, 2, False)
    kept = [steps_done(folder) for folder in sorted((tmp_path / "ray").glob("step_*/"))]
    assert kept == [2, 3], "the best and the newest"
    assert result.heldout_loss == lines_of(result)[1]["heldout_loss"]
    assert (Path(result.artifact.uri) / "adapter" / "adapter_config.json").is_file()
    merged = weights_of(result.artifact)
    assert merged.keys() == before.keys()
    changed = {name for name in before if not torch.equal(merged[name], before[name])}
    assert changed == {name for name in before if "proj" in name}


def test_texts_longer_than_the_model_can_place_are_refused(spec: TrainSpec) -> None:
    from llmray.train.engine import load_model
    from llmray.train.template import load_tokenizer

    with pytest.raises(InputError, match=r"train\.max_length \(4096\) exceeds the model's 128 positions"):
        load_model(replace(spec, max_length=4096), load_tokenizer(spec.model))


KILLED = """
import json, os, signal, sys
from pathlib import Path
import ray
from llmray.train.spec import TrainSpec
from llmray.train.trainer import train

spec, run_dir, root = TrainSpec(**json.loads(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]

def die_after_a_checkpoint(line):
    state = run_dir / "ray" / "checkpoint_manager_snapshot.json"
    if state.exists() and "checkpoint_" in state.read_text():
        os.kill(os.getpid(), signal.SIGKILL)

ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)
train(spec, run_dir=str(run_dir), root_uri=root, on_report=die_after_a_checkpoint)
"""


def test_killed_and_called_again_it_goes_on_from_its_checkpoint_to_the_same_losses(
    undisturbed: TrainResult, spec: TrainSpec, root: Path, tmp_path: Path
) -> None:
    import ray

    settings = json.dumps(asdict(spec))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, settings, str(tmp_path), str(root)],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert not (tmp_path / "result.json").exists()
    before = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    result = train(spec, run_dir=str(tmp_path), root_uri=str(root))
    lines = lines_of(result)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[:2] == before[:2]  # with their seconds: these steps were not taken again
    assert [line["loss"] for line in lines] == [line["loss"] for line in lines_of(undisturbed)]
    assert result.heldout_loss == undisturbed.heldout_loss
    assert result.artifact.digest == undisturbed.artifact.digest


STOPPED = """
import json, os, signal, sys
import ray
from llmray.errors import StoppedError
from llmray.train.spec import TrainSpec
from llmray.train.trainer import train

def end(line):
    if line["step"] == 1:
        os.kill(os.getpid(), signal.SIGTERM)

ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)
try:
    train(TrainSpec(**json.loads(sys.argv[1])), run_dir=sys.argv[2], root_uri=sys.argv[3], on_report=end)
except StoppedError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_told_to_end_it_saves_and_goes_on_with_one_worker_to_the_same_losses(
    undisturbed: TrainResult, spec: TrainSpec, root: Path, tmp_path: Path
) -> None:
    import ray

    stopped = subprocess.run(
        [sys.executable, "-c", STOPPED, json.dumps(asdict(spec)), str(tmp_path), str(root)],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert stopped.returncode == 75, stopped.stderr[-3000:]
    before = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    step = before[-1]["step"]  # a quick machine is at the end before it is told
    said = f"goes on from step {step} of {STEPS}" if step < STEPS else "returns the model at once"
    assert said in stopped.stdout
    alone = replace(spec, num_workers=1, accumulation=2)
    lines = lines_of(train(alone, run_dir=str(tmp_path), root_uri=str(root)))
    assert lines[: len(before)] == before
    expected = [line["loss"] for line in lines_of(undisturbed)]
    assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-5)
