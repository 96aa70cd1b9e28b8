"""Run the loop on Ray Train: workers, checkpoints, resume, and the model artifact at the end.

A run folder belongs to one spec. Calling again with the same folder goes on from the last checkpoint, or returns at
once where the run was finished; a killed worker restarts the group by itself. Figures come back through the workers'
`metrics.jsonl`, which the driver follows: `ray.train.report` would make every step wait for the controller's poll.
"""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmray import artifact, storage
from llmray.artifact import Artifact
from llmray.errors import LLMRayError, NotFoundError
from llmray.train.run_folder import EXPORT, METRICS, RESULT, claim, finite, following, parents_of, reopen_metrics
from llmray.train.spec import TrainSpec
from llmray.train.workers import begin_worker, run_workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    artifact: Artifact
    """The model."""
    steps: int
    """Optimizer steps done."""
    train_loss: float
    """Loss of the last step, in nats per trained token."""
    heldout_loss: float
    """The same over held-out rows; NaN where the snapshot has none."""
    tokens: int
    """Tokens trained on, padding left out."""
    core_seconds: float
    """Cores set aside times seconds, startup included."""
    gpu_seconds: float
    """GPUs set aside times seconds, startup included."""
    metrics_path: str
    """The `metrics.jsonl` with a line a step."""
    seconds: dict[str, float]
    """Where the time went: startup, data, engine, steps and so on."""
    stopped_early: bool = False
    """Whether the deadline came before the last step."""


def train(
    spec: TrainSpec,
    *,
    run_dir: str,
    root_uri: str | None = None,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    deadline_s: float | None = None,
    callbacks: Sequence[Any] = (),
    max_failures: int = 2,
) -> TrainResult:
    """Train on Ray Train and publish the model; Ray must be connected.

    Args:
        run_dir: local folder, seen by every worker, for checkpoints and metrics; the same one resumes.
        root_uri: where the artifact goes; `<home>/artifacts` by default.
        on_report: called in this process with every line of metrics (a dict with step, loss, tokens_per_s and so on).
        deadline_s: seconds from now after which no step begins; what was learned is saved and published.
        callbacks: Ray Train's, for example `TuneReportCallback()` inside a trial.
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
            return _read_result(folder)
    with following(
        folder / METRICS,
        on_report=on_report,
        log=logger,
        describe=lambda line: f"train: {progress_text(line, spec)}",
        max_steps=spec.max_steps,
    ):
        outcome = run_workers(
            _worker,
            {
                "spec": asdict(spec),
                "folder": str(folder),
                "deadline": None if deadline_s is None else began + deadline_s,
            },
            spec,
            folder=folder,
            max_failures=max_failures,
            keep_checkpoints=spec.keep_checkpoints,
            callbacks=callbacks,
        )
    progress = outcome["progress"]
    wall = time.time() - began
    seconds = {"startup": outcome["started"] - began, **outcome["seconds"]}
    seconds["rest"] = wall - sum(seconds.values())
    report = {
        "steps": progress["step"],
        "train_loss": finite(progress["train_loss"]),
        "heldout_loss": finite(outcome["heldout_loss"]),
        "tokens": progress["meter"]["tokens"],
        "targets": progress["meter"]["targets"],
        "core_seconds": round(wall * spec.num_workers * spec.cpus_per_worker, 3),
        "gpu_seconds": round(wall * spec.num_workers * spec.gpus_per_worker, 3),
        "data": outcome["counts"],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "stopped_early": outcome["stopped_early"],
    }
    with artifact.draft("model", root_uri=root_uri) as draft:
        shutil.copytree(folder / EXPORT, draft.folder, dirs_exist_ok=True)
        shutil.copy(folder / METRICS, draft.folder / METRICS)
        model = draft.seal(
            parents=parents_of({"base": spec.model, "data": spec.data}),
            config={"train": spec.identity()},
            report=report,
            outside_digest=(METRICS,),
        )
    if not outcome["stopped_early"]:
        storage.write_bytes(str(folder / RESULT), json.dumps({"uri": model.uri, "report": report}).encode())
    return _result(model, report, folder)


def _worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    """What every worker runs."""
    started = time.time()
    spec, folder = TrainSpec(**config["spec"]), Path(config["folder"])
    place = begin_worker(spec)
    import ray.train

    from llmray.train import loop

    imports = time.time() - started
    checkpoint = ray.train.get_checkpoint()
    try:
        with contextlib.ExitStack() as stack:
            resume_from = None if checkpoint is None else Path(stack.enter_context(checkpoint.as_directory()))
            hooks = _RayHooks(folder, place.rank, resume_from)
            outcome = loop.run(
                spec, place, hooks, resume_from=resume_from, export_to=folder / EXPORT, deadline=config["deadline"]
            )
    except LLMRayError as error:
        return error
    result = asdict(outcome)
    return {**result, "started": started, "seconds": {"imports": imports, **result["seconds"]}}


class _RayHooks:
    """Checkpoints through Ray Train, metrics to a file by rank 0; see `loop.Hooks`."""

    def __init__(self, folder: Path, rank: int, resume_from: Path | None) -> None:
        self._folder = folder
        self._file = None
        if rank == 0:
            shutil.rmtree(folder / EXPORT, ignore_errors=True)
            done = json.loads((resume_from / "llmray.json").read_text())["step"] if resume_from else 0
            self._file = reopen_metrics(folder / METRICS, done)

    def metrics(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def report(self, line: dict[str, Any], write: Callable[[Path], None] | None) -> None:
        import ray.train

        if write is None:
            ray.train.report(line)
            return
        with storage.draft_folder(str(self._folder)) as here:
            write(here)
            ray.train.report(line, checkpoint=ray.train.Checkpoint.from_directory(str(here)))


def progress_text(line: dict[str, Any], spec: TrainSpec) -> str:
    """A line of metrics for a person."""
    heldout = f", held-out {line['heldout_loss']:.3f}" if line.get("heldout_loss") else ""
    left = ""
    if line["core_seconds"]:
        per_step = line["core_seconds"] / (spec.num_workers * spec.cpus_per_worker) / line["step"]
        left = f", {per_step * (spec.max_steps - line['step']):.0f} s left"
    return (
        f"step {line['step']}/{spec.max_steps}, loss {line['loss']:.3f}{heldout}, "
        f"{line['tokens_per_s']:,.0f} tokens/s{left}"
    )


def _read_result(folder: Path) -> TrainResult:
    saved = json.loads((folder / RESULT).read_text())
    return _result(artifact.load(saved["uri"]), saved["report"], folder)


def _result(model: Artifact, report: dict[str, Any], folder: Path) -> TrainResult:
    return TrainResult(
        artifact=model,
        steps=report["steps"],
        train_loss=math.nan if report["train_loss"] is None else report["train_loss"],
        heldout_loss=math.nan if report["heldout_loss"] is None else report["heldout_loss"],
        tokens=report["tokens"],
        core_seconds=report["core_seconds"],
        gpu_seconds=report["gpu_seconds"],
        metrics_path=str(folder / METRICS),
        seconds=report["seconds"],
        stopped_early=report["stopped_early"],
    )
