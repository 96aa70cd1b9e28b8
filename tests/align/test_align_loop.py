"""The loop on one process: a kill and a resume, adapters, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from preferences import base, records, snapshot

from llmray.align.spec import AlignSpec
from llmray.digest import digest_file
from llmray.train.run_folder import EXPORT, METRICS, read_metrics

ODD = "Ω"
"""Its first byte is in one pair alone, the twenty-fifth."""
SPIKE_AND_RISE = {20: -30.0, **{step: 1.0 - 2 * (step - 23) for step in range(24, 33)}}
"""Factors of the last hidden states, by step."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    folder: Path
    results: Mapping[str, Mapping[str, Any]]
    before: Mapping[str, list[dict[str, Any]]]
    """Lines of metrics that the killed runs left."""

    def lines(self, name: str) -> list[dict[str, Any]]:
        return read_metrics(self.folder / name / METRICS)

    def weights(self, name: str) -> str:
        return digest_file(self.folder / name / EXPORT / "model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("align")
    model, data = base(root), snapshot(root, records())
    spec = AlignSpec(
        model=model.uri, data=data.uri, num_workers=1, max_length=96, max_steps=10, lr=1e-2, checkpoint_every=3
    )
    patient = replace(spec, max_steps=32, lr=1e-4, checkpoint_every=4, divergence_steps=5)
    odd = snapshot(root, [*records(), {"prompt": f"What does {ODD} do?", "chosen": "Good.", "rejected": "Bad."}])
    poisoned = root / "poisoned_model"
    shutil.copytree(model.uri, poisoned)
    poison(poisoned)
    jobs: dict[str, dict[str, Any]] = {
        "undisturbed": {"spec": spec},
        "killed": {"spec": spec, "kill_at_line": 8},
        "torn": {"spec": spec, "kill_at_line": 8},
        "lora": {"spec": replace(spec, method="lora", zero=3)},
        "without_sft": {"spec": replace(spec, sft_weight=0.0, accumulation=2, micro_batch=2)},
        "poisoned": {"spec": replace(spec, model=str(poisoned))},
        "zero0": {"spec": replace(spec, zero=0)},
        **{
            f"gradient_{method}_zero{zero}": {
                "spec": replace(spec, data=odd.uri, method=method, zero=zero, checkpoint_every=1, seed=1),
                "trouble": {"nan_gradient_of": ODD},
            }
            for method, zero in (("full", 0), ("lora", 3))
        },
        "rise": {"spec": patient, "trouble": {"scale": SPIKE_AND_RISE}},
    }
    results = in_another_process(root, jobs)
    # As a kill in the middle of writing the checkpoint of step 6 leaves it: everything may be there but the mark.
    (root / "torn" / "checkpoints" / "checkpoint-6" / "llmray.json").unlink()
    before = {name: sign(root / name / METRICS) for name in ("killed", "torn")}
    shutil.copytree(root / "rise", root / "rise_again")
    resumed = {"spec": patient, "trouble": {"scale": SPIKE_AND_RISE, "passes": 24}}
    again = {"rise_again": resumed, **{f"{name}_again": {"spec": spec, "run_dir": name} for name in before}}
    return Runs(folder=root, results=results | in_another_process(root, again), before=before)


def sign(metrics: Path) -> list[dict[str, Any]]:
    """The lines of a killed run, each now naming it: a line without the name was written later."""
    lines = [line | {"run": "killed"} for line in read_metrics(metrics)]
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return lines


def in_another_process(root: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    said = {
        name: {**job, "spec": asdict(job["spec"]), "run_dir": str(root / job.get("run_dir", name))}
        for name, job in jobs.items()
    }
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("align_alone.py")), str(root / "results.json")],
        input=json.dumps(said),
        text=True,
        check=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
            ),
        },
        timeout=240,
    )
    results: dict[str, Any] = json.loads((root / "results.json").read_text())
    return results


def poison(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_margin_rises_and_the_chosen_answers_become_likelier(runs: Runs) -> None:
    lines = runs.lines("undisturbed")
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert lines[0]["rewards/margins"] == 0.0
    assert lines[-1]["rewards/margins"] > 1.0
    assert lines[-1]["rewards/accuracies"] == 1.0
    assert lines[-1]["logps/chosen"] > lines[0]["logps/chosen"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(later["tokens"] > earlier["tokens"] for earlier, later in pairwise(lines))


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_weights(runs: Runs) -> None:
    assert runs.results["killed"]["exit"] == -signal.SIGKILL
    assert runs.results["killed_again"]["steps"] == 10
    assert runs.weights("killed") == runs.weights("undisturbed")
    figures = ("step", "loss", "rewards/margins", "lr", "tokens")
    resumed, straight = ([[line[f] for f in figures] for line in runs.lines(n)] for n in ("killed", "undisturbed"))
    assert resumed == straight


@pytest.mark.parametrize(("name", "kept"), [("killed", 6), ("torn", 3)])
def test_only_whole_checkpoints_count_and_what_came_after_is_done_again(runs: Runs, name: str, kept: int) -> None:
    before, after = runs.before[name], runs.lines(name)
    assert len(before) == 8
    assert after[:kept] == before[:kept]
    assert [line["step"] for line in after[kept:]] == list(range(kept + 1, 11))
    assert not [line for line in after[kept:] if "run" in line]
    assert runs.weights(name) == runs.weights("undisturbed")


def test_time_before_the_kill_stays_on_the_bill(runs: Runs) -> None:
    used = [line["core_seconds"] for line in runs.lines("killed")]
    assert used == sorted(used)
    assert used[6] > runs.before["killed"][5]["core_seconds"] > 0


def test_adapters_are_merged_and_learn(runs: Runs) -> None:
    from transformers import AutoModelForCausalLM

    folder = runs.folder / "lora" / EXPORT
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert (folder / "adapter" / "adapter_config.json").exists()
    assert runs.lines("lora")[-1]["rewards/margins"] > 0.1
    assert runs.weights("lora") != runs.weights("undisturbed")


def test_without_the_sft_term_the_loss_begins_at_log_2(runs: Runs) -> None:
    assert runs.lines("without_sft")[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert runs.lines("undisturbed")[0]["loss"] > 1


def test_a_loss_that_is_no_number_ends_the_run(runs: Runs) -> None:
    result = runs.results["poisoned"]
    assert result["error"] == "DivergedError"
    assert "at step 1" in result["message"]
    assert "every row of the batch gives it" in result["message"]
    assert "lower align.lr" in result["message"]
    assert not (runs.folder / "poisoned" / EXPORT).exists()


def test_without_sharding_the_gradient_norm_is_told_and_clipped_as_with_it(runs: Runs) -> None:
    figures = ("loss", "grad_norm", "rewards/margins")
    apart, sharded = ([[line[f] for f in figures] for line in runs.lines(name)] for name in ("zero0", "undisturbed"))
    assert len(apart) == 10
    assert all(one == pytest.approx(other, rel=1e-4) for one, other in zip(apart, sharded, strict=True))
    assert max(line[1] for line in apart) > 1.0


@pytest.mark.parametrize("name", ["gradient_full_zero0", "gradient_lora_zero3"])
def test_a_gradient_that_is_no_number_ends_the_run_and_names_the_pair(runs: Runs, name: str) -> None:
    result, lines = runs.results[name], runs.lines(name)
    assert result["error"] == "DivergedError"
    assert 0 < len(lines) < 10
    assert f"at step {len(lines) + 1}," in result["message"]
    assert "the norm of the gradient is" in result["message"]
    assert "it comes from row 25. To mend it, look at row 25" in result["message"]
    assert f"the last good checkpoint is that of step {len(lines)}, in {runs.folder / name}" in result["message"]


def test_a_spike_puts_a_checkpoint_off_and_a_rise_ends_the_run_also_when_resumed(runs: Runs) -> None:
    lines = runs.lines("rise")
    high = [line["step"] for line in lines if "high_for" in line]
    assert high[0] == 20
    assert high[1:] == list(range(high[1], len(lines) + 1))
    assert len(high) == 1 + 4
    message = runs.results["rise"]["message"]
    assert f"at step {len(lines) + 1}," in message
    assert "for 5 steps; the batch held rows " in message
    # That of step 20 was put off; two are kept.
    kept = sorted(path.name for path in (runs.folder / "rise" / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-21", "checkpoint-24"]
    assert runs.results["rise_again"]["message"] == message.replace("/rise/", "/rise_again/")
