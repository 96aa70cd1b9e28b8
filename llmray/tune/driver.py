"""One trial inside its Ray Tune actor: report, keep the deadline, hand back plain values.

The actor only drives; the trial's own workers hold the cores. Its clock starts when the trial was paid for, not when
this process came up, so that start-up counts. A trial that ignores its deadline ends this process, and with it the
workers that it owns: the reservation then still covers it.
"""

import importlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray.tune.integration.ray_train import TuneReportCallback

from llmray.errors import ConfigError, LLMRayError

REPORTED = "llmray_reported"
OUTCOME = "llmray_outcome"
_EXIT_OVERDUE = 75


class TrialFunction(Protocol):
    """What a search drives."""

    def __call__(
        self, config: dict[str, Any], *, trial_dir: str, deadline_s: float, callbacks: list[Any]
    ) -> Mapping[str, Any]:
        """Try a point.

        Args:
            config: the point.
            trial_dir: folder of this point, the same when the search is taken up again.
            deadline_s: seconds from now within which to return.
            callbacks: for `ray.train.RunConfig(callbacks=…)`; each may also be called with a mapping of metrics.
        """
        ...


class TrialReporter(TuneReportCallback):
    """Hands a trial's reports to Tune, from Train's controller or from the trial itself."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self._metric = metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Ray Train's controller calls this after all workers reported."""
        self(metrics[0])

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Report; a mapping without the metric is no report."""
        if self._metric in metrics:
            self._training_actor_item_queue.put({REPORTED: float(metrics[self._metric])})


def resolve_trial(trial: str | TrialFunction) -> TrialFunction:
    """A trial function from `module:attribute`, or itself.

    Raises:
        ConfigError: it cannot be imported or called.
    """
    if not isinstance(trial, str):
        return trial
    module, _, attribute = trial.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"trial {trial!r} cannot be imported: {error}; write module:attribute") from error
    if not callable(found):
        raise ConfigError(f"trial {trial!r} is not callable")
    function: TrialFunction = found
    return function


def make_driver(
    trial: str | TrialFunction, *, metric: str, report_metric: str, max_trial_s: float, teardown_s: float
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that Tune runs for each point."""

    def drive(task: dict[str, Any]) -> dict[str, Any]:
        started = task["started_at"]
        overdue = threading.Timer(max(0.0, started + max_trial_s - time.time()), os._exit, [_EXIT_OVERDUE])
        overdue.daemon = True
        overdue.start()
        folder = Path(task["trial_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        try:
            result = resolve_trial(trial)(
                dict(task["point"]),
                trial_dir=str(folder),
                deadline_s=max(0.0, started + max_trial_s - teardown_s - time.time()),
                callbacks=[TrialReporter(report_metric)],
            )
            value = float(result[metric])
        except Exception as error:  # any trial may fail in any way; the search goes on and tells
            (folder / "error.txt").write_text(traceback.format_exc())
            return {OUTCOME: {"error": _describe(error, metric)}, REPORTED: None}
        finally:
            overdue.cancel()
        return {OUTCOME: {"metric": value, "result": _plain(result)}, REPORTED: value}

    return drive


def _describe(error: Exception, metric: str) -> str:
    if isinstance(error, KeyError) and error.args == (metric,):
        return f"the trial's result has no {metric!r}"
    return str(error) if isinstance(error, LLMRayError) else f"{type(error).__name__}: {error}"


def _plain(result: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in result.items() if isinstance(value, str | int | float | bool | None)}
