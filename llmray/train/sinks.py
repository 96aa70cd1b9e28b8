"""Where the figures of a run go beside its `metrics.jsonl`: TensorBoard, MLflow, Weights & Biases, or a sink of your own.

The driver reads them from that file and feeds each sink in a thread of its own, so that neither workers nor the
progress line wait for a server. A sink that fails is told of once and left alone; the training goes on, and the file
has everything. What an earlier call of the same run gave is not given again: a sink says which step it has. Rejected:
writing from rank 0, whose step would wait; and Ray Tune's logger callbacks, which know trials and no Ray Train.
"""

import contextlib
import importlib.util
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from llmray import storage
from llmray.code_names import is_code_name, load_named
from llmray.errors import ConfigError
from llmray.ticking import ticking
from llmray.train.run_folder import METRICS, Line, Tail

log = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
"""Inside a run folder, and in the model: TensorBoard's events."""
_POLL_S = 2.0
_ID = "run_id"


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """The run that is told of."""

    option: str
    """`train` or `align`: figures are called `train/loss` and so on."""
    run_id: str
    """The same in every call with the same run folder."""
    folder: Path
    """The run folder."""
    settings: Mapping[str, Any]
    """What can change the weights."""


class Sink(Protocol):
    last_step: int
    """Step up to which it has the figures from an earlier call; 0 for none."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step; steps come in order, each once, and at the end the last with what came of the run."""

    def close(self, *, done: bool) -> None:
        """Send what is still on its way.

        Args:
            done: whether something came of the run, and neither an error nor a stop.
        """


def check_sinks(names: Sequence[str], *, option: str) -> None:
    """Raise ConfigError where a sink is unknown, or its package is not installed."""
    for name in names:
        if is_code_name(name):
            load_named(name, f"{option}.report_to (module:attribute)")
        elif name not in _SINKS:
            raise ConfigError(
                f"{option}.report_to ({name!r}) must be {', '.join(_SINKS)} or a module:attribute of your own"
            )
        elif importlib.util.find_spec(_SINKS[name].package) is None:
            raise ConfigError(f"{option}.report_to {name} needs its extra: pip install 'llmray[{name}]'")


@contextlib.contextmanager
def feeding(
    names: Sequence[str], *, folder: Path, option: str, settings: Mapping[str, Any]
) -> Iterator[Callable[[Line], None]]:
    """Feed these sinks with the lines of metrics in a run folder until the block ends, and then with the rest.

    Yields a function that takes what came of the run, with its last step, for the end.
    """
    about = About(option=option, run_id=_run_id(folder), folder=folder, settings=settings)
    feeds = [_Feed(name, about) for name in names]
    came_of_it: list[Line] = []
    try:
        with contextlib.ExitStack() as stack:
            for feed in feeds:
                stack.enter_context(ticking(feed.poll, every_s=_POLL_S, name=f"sink-{feed.name}"))
            yield came_of_it.append
    finally:
        for feed in feeds:
            feed.close(came_of_it)


class _Feed:
    """One sink, as long as it works."""

    def __init__(self, name: str, about: About) -> None:
        self.name, self._about = name, about
        self._sink: Sink | None = None
        self._tail = Tail(about.folder / METRICS)
        self._broken = False

    def poll(self) -> None:
        self._try(self._feed)

    def close(self, came_of_it: Sequence[Line]) -> None:
        self.poll()
        if self._sink is not None:
            for line in came_of_it:
                self._try(partial(self._sink.write, line["step"], _figures(line, f"{self._about.option}/final")))
            self._try(partial(self._sink.close, done=bool(came_of_it)))

    def _feed(self) -> None:
        lines = self._tail.read()
        if self._sink is None and lines:
            open_sink = _SINKS[self.name] if self.name in _SINKS else load_named(self.name, "report_to")
            self._sink = open_sink(self._about)
        for line in lines:
            assert self._sink is not None
            if line["step"] > self._sink.last_step:
                self._sink.write(line["step"], _figures(line, self._about.option))

    def _try(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:
            self._broken = True
            log.warning(
                "%s: %s failed and gets no more figures (%s: %s); %s has them all",
                self._about.option, self.name, type(error).__name__, error, self._about.folder / METRICS,
            )  # fmt: skip


class TensorBoard:
    """Event files in the run folder, written whole by each call."""

    package = "tensorboardX"
    last_step = 0

    def __init__(self, about: About) -> None:
        from tensorboardX import SummaryWriter

        shutil.rmtree(about.folder / TENSORBOARD, ignore_errors=True)
        self._writer = SummaryWriter(str(about.folder / TENSORBOARD), flush_secs=10)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, done: bool) -> None:  # noqa: ARG002
        self._writer.close()


class MLflow:
    """A run on the server that `MLFLOW_TRACKING_URI` names, in the experiment `MLFLOW_EXPERIMENT_NAME` or `llmray`."""

    package = "mlflow"

    def __init__(self, about: About) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, with minutes between: the end waits
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "llmray")
        experiment = self._client.get_experiment_by_name(name)
        at = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = self._client.search_runs([at], filter_string=f"tags.llmray_run = '{about.run_id}'", max_results=1)
        self.last_step = 0
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            history = self._client.get_metric_history(self._run, f"{about.option}/loss")
            self.last_step = max((metric.step for metric in history), default=0)
        else:
            tags = {"llmray_run": about.run_id}
            self._run = self._client.create_run(at, run_name=about.run_id, tags=tags).info.run_id
            settings = [Param(key, str(value)) for key, value in about.settings.items()]
            self._client.log_batch(self._run, params=settings)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in figures.items()])

    def close(self, *, done: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if done else "FAILED")


class Wandb:
    """A run of the project `WANDB_PROJECT` or `llmray`."""

    package = "wandb"

    def __init__(self, about: About) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "llmray"),
            id=about.run_id,
            dir=str(about.folder),
            config=dict(about.settings),
            resume="allow",
        )
        self.last_step = self._run.step - 1 if self._run.resumed else 0

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, *, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)


_SINKS: Mapping[str, Any] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": Wandb}


def _figures(line: Line, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}/{name}": float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float)
    }


def _run_id(folder: Path) -> str:
    """The id that the first call gave the run."""
    if not (folder / _ID).exists():
        storage.write_bytes(str(folder / _ID), uuid.uuid4().hex[:12].encode())
    return (folder / _ID).read_text()
