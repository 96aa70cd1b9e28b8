"""Align a model with preferences on Ray Train: workers, resume, and the model artifact at the end.

A run folder belongs to one spec, as in `llmray.train.trainer`: calling again with the same one goes on from the last
checkpoint, or returns at once where the run was finished.
"""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmray import artifact, storage
from llmray.align.spec import AlignSpec
from llmray.artifact import Artifact
from llmray.errors import LLMRayError, NotFoundError
from llmray.train.run_folder import EXPORT, METRICS, RESULT, Line, OnReport, claim, following, parents_of, read_metrics
from llmray.train.workers import begin_worker, run_workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignResult:
    artifact: Artifact
    """The model."""
    steps: int
    """Optimizer steps done."""
    pairs: int
    """Pairs trained on."""
    train_loss: float
    """Mean loss over the last pass through the pairs (the last `max_steps` where there was less than one)."""
    reward_accuracy: float
    """Share of pairs with the higher reward for the chosen answer, over the same steps, before each learned from them."""
    reward_margin: float
    """Mean reward of the chosen answer less that of the rejected one, over the same steps, in nats times beta."""
    core_seconds: float
    """Cores set aside times seconds, startup included."""
    gpu_seconds: float
    """GPUs set aside times seconds, startup included."""
    metrics_path: str
    """The `metrics.jsonl` with a line a step."""
    seconds: dict[str, float]
    """Where the time went: startup, imports, data, engine, steps and so on."""


def align(
    spec: AlignSpec,
    *,
    run_dir: str,
    root_uri: str | None = None,
    on_report: OnReport | None = None,
    max_failures: int = 2,
) -> AlignResult:
    """Run DPO on Ray Train and publish the model; Ray must be connected.

    Args:
        run_dir: local folder, seen by every worker, for checkpoints and metrics; the same one resumes.
        root_uri: where the artifact goes; `<home>/artifacts` by default.
        on_report: called in this process with every line of metrics (a dict with step, loss, rewards/accuracies …).
        max_failures: how often dead workers are replaced.

    Raises:
        ConfigError: the folder belongs to another spec, or an option does not fit the model.
        InputError: the data or the model cannot be used.
        DivergedError: the loss became NaN.
        LLMRayError: workers died more often than allowed.
    """
    began = time.time()
    folder = claim(run_dir, asdict(spec))
    if (folder / RESULT).exists():
        with contextlib.suppress(NotFoundError):
            saved = json.loads((folder / RESULT).read_text())
            return _result(artifact.load(saved["uri"]), saved["report"], folder)
    with following(
        folder / METRICS,
        on_report=on_report,
        log=logger,
        describe=lambda line: f"align: {progress_text(line, spec)}",
        max_steps=spec.max_steps,
    ):
        config = {"spec": asdict(spec), "folder": str(folder)}
        outcome = run_workers(_worker, config, spec, folder=folder, max_failures=max_failures)
    wall = time.time() - began
    seconds = {"startup": outcome["started"] - began, **outcome["seconds"]}
    seconds["rest"] = wall - sum(seconds.values())
    report = {
        "steps": outcome["steps"],
        "pairs": outcome["counts"]["pairs"],
        **_at_the_end(read_metrics(folder / METRICS), outcome["counts"]["pairs"], spec),
        "core_seconds": round(wall * spec.num_workers * spec.cpus_per_worker, 3),
        "gpu_seconds": round(wall * spec.num_workers * spec.gpus_per_worker, 3),
        "data": outcome["counts"],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    with artifact.draft("model", root_uri=root_uri) as draft:
        shutil.copytree(folder / EXPORT, draft.folder, dirs_exist_ok=True)
        shutil.copy(folder / METRICS, draft.folder / METRICS)
        model = draft.seal(
            parents=parents_of({"base": spec.model, "data": spec.data}),
            config={"align": spec.identity()},
            report=report,
            outside_digest=(METRICS,),
        )
    storage.write_bytes(str(folder / RESULT), json.dumps({"uri": model.uri, "report": report}).encode())
    return _result(model, report, folder)


def progress_text(line: Line, spec: AlignSpec) -> str:
    """A line of metrics for a person."""
    return (
        f"step {line['step']}/{spec.max_steps}, loss {line['loss']:.3f}, "
        f"chosen preferred {line['rewards/accuracies']:.0%}, margin {line['rewards/margins']:+.3f}"
    )


def _worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    """What every worker runs."""
    started = time.time()
    spec, folder = AlignSpec(**config["spec"]), Path(config["folder"])
    place = begin_worker(spec)
    from llmray.align import loop

    imports = time.time() - started
    try:
        outcome = asdict(loop.run(spec, place, folder=folder, export_to=folder / EXPORT))
    except LLMRayError as error:
        return error
    return {**outcome, "started": started, "seconds": {"imports": imports, **outcome["seconds"]}}


def _at_the_end(lines: Sequence[Line], pairs: int, spec: AlignSpec) -> dict[str, float]:
    """Means over the last pass through the pairs: single steps see only a few of them."""
    last = lines[-math.ceil(pairs / spec.global_batch) :]

    def mean(name: str) -> float:
        return round(sum(line[name] for line in last) / len(last), 6)

    return {
        "train_loss": mean("loss"),
        "reward_accuracy": mean("rewards/accuracies"),
        "reward_margin": mean("rewards/margins"),
    }


def _result(model: Artifact, report: dict[str, Any], folder: Path) -> AlignResult:
    return AlignResult(
        artifact=model,
        steps=report["steps"],
        pairs=report["pairs"],
        train_loss=report["train_loss"],
        reward_accuracy=report["reward_accuracy"],
        reward_margin=report["reward_margin"],
        core_seconds=report["core_seconds"],
        gpu_seconds=report["gpu_seconds"],
        metrics_path=str(folder / METRICS),
        seconds=report["seconds"],
    )
