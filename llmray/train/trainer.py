"""Run the loop on Ray Train: workers, checkpoints, resume, and the model artifact at the end.

A run folder belongs to one spec. Calling again with the same folder goes on from the last checkpoint, or returns at
once where the run was finished; a killed worker restarts the group by itself. Figures come back through the workers'
`metrics.jsonl`, which the driver follows: `ray.train.report` would make every step wait for the controller's poll.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmray import artifact, storage
from llmray.artifact import Artifact
from llmray.errors import ConfigError, InputError, LLMRayError, NotFoundError
from llmray.train.spec import TrainSpec

logger = logging.getLogger(__name__)

_RESULT, _METRICS, _SPEC, _EXPORT = "result.json", "metrics.jsonl", "spec.json", "export"


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
    folder = _claim(run_dir, spec)
    if (folder / _RESULT).exists():
        with contextlib.suppress(NotFoundError):
            return _read_result(folder)
    with _following(folder / _METRICS, spec, on_report):
        outcome = _fit(spec, folder, None if deadline_s is None else began + deadline_s, callbacks, max_failures)
    progress = outcome["progress"]
    wall = time.time() - began
    seconds = {"startup": outcome["started"] - began, **outcome["seconds"]}
    seconds["rest"] = wall - sum(seconds.values())
    report = {
        "steps": progress["step"],
        "train_loss": _finite(progress["train_loss"]),
        "heldout_loss": _finite(outcome["heldout_loss"]),
        "tokens": progress["meter"]["tokens"],
        "targets": progress["meter"]["targets"],
        "core_seconds": round(wall * spec.num_workers * spec.cpus_per_worker, 3),
        "gpu_seconds": round(wall * spec.num_workers * spec.gpus_per_worker, 3),
        "data": outcome["counts"],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "stopped_early": outcome["stopped_early"],
    }
    with artifact.draft("model", root_uri=root_uri) as draft:
        shutil.copytree(folder / _EXPORT, draft.folder, dirs_exist_ok=True)
        model = draft.seal(parents=_parents(spec), config={"train": spec.identity()}, report=report)
    if not outcome["stopped_early"]:
        storage.write_bytes(str(folder / _RESULT), json.dumps({"uri": model.uri, "report": report}).encode())
    return _result(model, report, folder)


def _fit(
    spec: TrainSpec, folder: Path, deadline: float | None, callbacks: Sequence[Any], max_failures: int
) -> dict[str, Any]:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": spec.cpus_per_worker}
    if spec.gpus_per_worker:
        resources["GPU"] = spec.gpus_per_worker
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"spec": asdict(spec), "folder": str(folder), "deadline": deadline},
        torch_config=TorchConfig(backend="nccl" if spec.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.num_workers, use_gpu=bool(spec.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=spec.keep_checkpoints),
            callbacks=list(callbacks),
        ),
    )
    try:
        value = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise LLMRayError(
            f"training failed after {max_failures} restarts: {error}; "
            f"the last checkpoint is in {folder}, and the same call goes on from it"
        ) from error
    if isinstance(value, LLMRayError):
        raise value
    return dict(value)


def _worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    """What every worker runs. What a user must mend comes back as a value: raised, Ray would try it again."""
    started = time.time()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import ray.train
    import torch

    from llmray.train import loop
    from llmray.train.engine import Place

    spec, folder = TrainSpec(**config["spec"]), Path(config["folder"])
    torch.set_num_threads(max(1, int(spec.cpus_per_worker)))
    context = ray.train.get_context()
    place = Place(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=str(ray.train.torch.get_device()) if spec.gpus_per_worker else "cpu",
    )
    imports = time.time() - started
    checkpoint = ray.train.get_checkpoint()
    try:
        with contextlib.ExitStack() as stack:
            resume_from = None if checkpoint is None else Path(stack.enter_context(checkpoint.as_directory()))
            hooks = _RayHooks(folder, place.rank, resume_from)
            outcome = loop.run(
                spec, place, hooks, resume_from=resume_from, export_to=folder / _EXPORT, deadline=config["deadline"]
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
            shutil.rmtree(folder / _EXPORT, ignore_errors=True)
            done = json.loads((resume_from / "llmray.json").read_text())["step"] if resume_from else 0
            self._file = _reopen_metrics(folder / _METRICS, done)

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


def _reopen_metrics(path: Path, steps_done: int) -> Any:
    """The file with the lines of the steps that the checkpoint knows; later ones will be written again."""
    kept = []
    if path.exists():
        with contextlib.suppress(json.JSONDecodeError):  # a line cut off by a kill, which is the last one
            for text in path.read_text().splitlines():
                if json.loads(text)["step"] <= steps_done:
                    kept.append(text + "\n")
    storage.write_bytes(str(path), "".join(kept).encode())
    return path.open("a")


@contextlib.contextmanager
def _following(path: Path, spec: TrainSpec, on_report: Callable[[dict[str, Any]], None] | None) -> Iterator[None]:
    """Log progress and call `on_report` for each new line of metrics, from a thread, until the block ends."""
    follower = _Follower(path, spec, on_report)
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.25):
            follower.poll()

    thread = threading.Thread(target=follow, name="train-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        follower.poll()


class _Follower:
    def __init__(self, path: Path, spec: TrainSpec, on_report: Callable[[dict[str, Any]], None] | None) -> None:
        self._path, self._spec, self._on_report = path, spec, on_report
        self._step, self._logged_at = 0, 0.0

    def poll(self) -> None:
        try:
            complete = self._path.read_text().rpartition("\n")[0]
        except FileNotFoundError:
            return
        for text in complete.splitlines():
            line = json.loads(text)
            if line["step"] <= self._step:
                continue
            self._step = line["step"]
            if self._on_report is not None:
                self._on_report(line)
            now = time.monotonic()
            if now - self._logged_at >= 2 or line["step"] == self._spec.max_steps:
                self._logged_at = now
                logger.info("train: %s", progress_text(line, self._spec))


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


def _claim(run_dir: str, spec: TrainSpec) -> Path:
    if not storage.is_local(run_dir):
        raise ConfigError(f"run_dir ({run_dir}) must be a local or mounted folder that every worker sees")
    folder = storage.local_path(run_dir).absolute()
    with storage.disk_errors(run_dir):
        folder.mkdir(parents=True, exist_ok=True)
    owner = folder / _SPEC
    if owner.exists():
        theirs = json.loads(owner.read_text())
        ours = json.loads(json.dumps(asdict(spec)))
        if theirs != ours:
            changed = sorted(name for name in ours if theirs.get(name) != ours[name])
            raise ConfigError(
                f"{run_dir} belongs to a run with other settings ({', '.join(changed)}): choose another run_dir, "
                f"or the settings that it was begun with"
            )
    else:
        storage.write_bytes(str(owner), json.dumps(asdict(spec), indent=1).encode())
    return folder


def _parents(spec: TrainSpec) -> dict[str, str]:
    parents = {}
    for role, uri in (("base", spec.model), ("data", spec.data)):
        with contextlib.suppress(InputError):
            parents[role] = artifact.load(uri).digest
    return parents


def _read_result(folder: Path) -> TrainResult:
    saved = json.loads((folder / _RESULT).read_text())
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
        metrics_path=str(folder / _METRICS),
        seconds=report["seconds"],
        stopped_early=report["stopped_early"],
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
