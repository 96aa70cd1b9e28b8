"""Run the loop on Ray Train: checkpoints and metrics out of the workers, and what the model's manifest reports.

The frame of a run (folder, resume, cost, artifact) is `frame.py`. Figures come back through the workers'
`metrics.jsonl`, which the driver follows: `ray.train.report` would make every step wait for the controller's poll.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmray import storage
from llmray.artifact import Artifact
from llmray.errors import LLMRayError
from llmray.prices import PriceList
from llmray.prices import text as money_text
from llmray.train import frame
from llmray.train.checkpoint import steps_done
from llmray.train.run_folder import EXPORT, GROUP, METRICS, STOP, Line, OnReport, finite, reopen_metrics, too_high
from llmray.train.spec import TrainSpec
from llmray.train.streamed import prepare_if_large
from llmray.train.workers import SCORE, score

if TYPE_CHECKING:
    from llmray.train.engine import Place
    from llmray.train.loop import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    artifact: Artifact
    """The model."""
    steps: int
    """Optimizer steps done."""
    train_loss: float
    """Loss of the last step, in nats per trained token."""
    heldout_loss: float
    """The same over held-out rows, of the weights in the artifact; NaN where the snapshot has none."""
    exported_step: int
    """Step whose weights the artifact has; an earlier one than `steps` where `train.export` best found it."""
    tokens: int
    """Tokens trained on, padding left out."""
    core_seconds: float
    """Cores set aside times seconds, startup included."""
    gpu_seconds: float
    """GPUs set aside times seconds, startup included."""
    money: float | None
    """What both cost by the price list of the home; None without one."""
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
    on_report: OnReport | None = None,
    deadline_s: float | None = None,
    callbacks: Sequence[Any] = (),
    max_failures: int = 2,
) -> TrainResult:
    """Train on Ray Train and publish the model; Ray must be connected.

    Args:
        run_dir: local folder, seen by every worker, for checkpoints and metrics; the same one resumes, also with other
            `num_workers`, `micro_batch` and `accumulation` of the same product.
        root_uri: where the artifact goes; `<home>/artifacts` by default.
        on_report: called in this process with every line of metrics (a dict with step, loss, tokens_per_s and so on).
        deadline_s: seconds from now after which no step begins; what was learned is saved and published.
        callbacks: Ray Train's, for example `TuneReportCallback()` inside a trial.
        max_failures: how often dead workers are replaced.

    Raises:
        ConfigError: the folder belongs to another spec, an option does not fit the model, or the run does not fit into
            memory.
        InputError: the data or the model cannot be used.
        DivergedError: the loss, its gradient or the weights became NaN or infinite, or the loss stayed too high.
        StoppedError: SIGTERM came; a checkpoint was written, and the same call goes on from it.
        LLMRayError: workers died more often than allowed.
    """
    done = frame.run(
        WORK,
        spec,
        run_dir=run_dir,
        root_uri=root_uri,
        on_report=on_report,
        deadline_s=deadline_s,
        callbacks=callbacks,
        max_failures=max_failures,
    )
    report = done.report
    return TrainResult(
        artifact=done.artifact,
        steps=report["steps"],
        train_loss=math.nan if report["train_loss"] is None else report["train_loss"],
        heldout_loss=math.nan if report["heldout_loss"] is None else report["heldout_loss"],
        exported_step=report["exported_step"],
        tokens=report["tokens"],
        core_seconds=report["core_seconds"],
        gpu_seconds=report["gpu_seconds"],
        money=report.get("money"),
        metrics_path=done.metrics_path,
        seconds=report["seconds"],
        stopped_early=report["stopped_early"],
    )


def progress_text(line: Line, spec: TrainSpec) -> str:
    """A line of metrics for a person."""
    heldout = f", held-out {line['heldout_loss']:.3f}" if line.get("heldout_loss") else ""
    left = ""
    if line["tokens_per_s"]:
        per_step = line["tokens"] / line["tokens_per_s"] / line["step"]
        left = f", {per_step * (spec.max_steps - line['step']):.0f} s left"
    spent = f", {paid} so far" if (paid := money_text(line)) else ""
    return (
        f"step {line['step']}/{spec.max_steps}, loss {line['loss']:.3f}{too_high(line)}{heldout}, "
        f"{line['tokens_per_s']:,.0f} tokens/s{left}{spent}"
    )


def _report(outcome: Mapping[str, Any], _: Path, __: TrainSpec) -> dict[str, Any]:
    progress = outcome["progress"]
    return {
        "steps": progress["step"],
        "train_loss": finite(progress["train_loss"]),
        "heldout_loss": finite(outcome["heldout_loss"]),
        "exported_step": outcome["exported_step"],
        "tokens": progress["meter"]["tokens"],
        "targets": progress["meter"]["targets"],
        "memory_bytes": outcome["memory"],
        "stopped_early": outcome["stopped_early"],
    }


def _worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    """What every worker runs."""
    return frame.in_worker(config, TrainSpec, _train)


WORK = frame.Work(worker=_worker, describe=progress_text, report=_report, prepare=prepare_if_large, stops=True)


def _train(spec: TrainSpec, place: "Place", folder: Path, deadline: float | None, prices: PriceList) -> "Outcome":
    import ray.train

    from llmray.train import loop
    from llmray.train.engine import from_first_rank

    checkpoint = ray.train.get_checkpoint()
    with contextlib.ExitStack() as stack:
        resume_from = None if checkpoint is None else Path(stack.enter_context(checkpoint.as_directory()))
        hooks = _RayHooks(folder, prices)
        from_first_rank(partial(hooks.begin, steps_done(resume_from) if resume_from else 0), place)
        return loop.run(
            spec.on_workers(place.world_size),
            place,
            hooks,
            resume_from=resume_from,
            export_to=folder / EXPORT,
            keep_data_in=folder,
            deadline=deadline,
        )


class _RayHooks:
    """Checkpoints through Ray Train, metrics to a file by rank 0; see `hooks.Hooks`."""

    def __init__(self, folder: Path, prices: PriceList) -> None:
        self._folder, self._prices, self.checkpoints = folder, prices, f"{folder}/{GROUP}"
        self._watched = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"  # see cluster.LOCAL_ENV
        self._file, self._leaving = None, None

    def begin(self, done: int) -> None:
        """On rank 0: take away what steps after that one left, and open the file of metrics."""
        with storage.disk_errors(self.checkpoints):
            shutil.rmtree(self._folder / EXPORT, ignore_errors=True)
            for begun in self._checkpoints_after(done):
                shutil.rmtree(begun)
            self._file = reopen_metrics(self._folder / METRICS, done)

    def stop_wanted(self) -> bool:
        return self._file is not None and (self._folder / STOP).exists()

    def leave_wanted(self) -> bool:
        if not self._watched:
            return False
        import ray.train

        before, self._leaving = self._leaving, ray.train.get_preemption_info()
        return self._leaving not in (None, before)

    def metrics(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        paid = self._prices.figures(core_seconds=line["core_seconds"], gpu_seconds=line["gpu_seconds"])
        self._file.write(json.dumps({**line, **paid}) + "\n")
        self._file.flush()

    def checkpoint_folder(self, step: int) -> Path:
        return self._folder / GROUP / f"step_{step:08d}"

    def report(self, line: dict[str, Any], checkpoint: Path | None) -> None:
        import ray.train

        if checkpoint is None:
            ray.train.report(line)
            return
        ray.train.report(
            {**line, SCORE: score(line)},
            checkpoint=ray.train.Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=checkpoint.name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,  # it is in its place
        )

    def _checkpoints_after(self, step: int) -> list[Path]:
        """Folders of checkpoints that were begun and never reported: a kill came first."""
        newest = self.checkpoint_folder(step).name
        return [found for found in (self._folder / GROUP).glob("step_*") if found.name > newest]
