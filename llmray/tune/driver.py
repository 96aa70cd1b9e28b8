"""One trial inside its Ray Tune actor: report, keep the deadline, hand back plain values.

The actor only drives; the trial's own workers hold the cores. Its clock starts when the trial was paid for, not when
this process came up, so that start-up counts. A trial that ignores its deadline ends this process, and with it the
workers that it owns: the reservation then still covers it.

A trial's reports and its end come through one queue, and one thread hands them to Tune. Rejected: Tune's own
`TuneReportCallback`, whose queue is emptied by the thread that also takes what the trial function returns: with a report
on its way when the function returns, that thread waits for itself for ever (Ray 2.60).
"""

import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray import tune as ray_tune
from ray.train import UserCallback
from ray.util.queue import Queue

from llmray.code_names import load_named
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


class TrialReporter(UserCallback):
    """Puts a trial's reports into a queue, from Train's controller or from the trial itself."""

    def __init__(self, metric: str, queue: Queue) -> None:
        self._metric = metric
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Ray Train's controller calls this after all workers reported."""
        self(metrics[0])

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Report; a mapping without the metric is no report."""
        if self._metric in metrics:
            self._queue.put({REPORTED: float(metrics[self._metric])})


def resolve_trial(trial: str | TrialFunction) -> TrialFunction:
    """A trial function from `module:attribute`, or itself.

    Raises:
        ConfigError: it cannot be loaded or called.
    """
    if not isinstance(trial, str):
        return trial
    found = load_named(trial, "trial (module:attribute)")
    if not callable(found):
        raise ConfigError(f"trial {trial!r} is not callable")
    function: TrialFunction = found
    return function


def make_driver(
    trial: str | TrialFunction, *, metric: str, report_metric: str, max_trial_s: float, teardown_s: float
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that Tune runs for each point."""

    def drive(task: dict[str, Any]) -> dict[str, Any]:
        ends_at = task["started_at"] + max_trial_s
        overdue = threading.Timer(max(0.0, ends_at - time.time()), os._exit, [_EXIT_OVERDUE])
        overdue.daemon = True
        overdue.start()
        folder = Path(task["trial_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        queue = Queue(maxsize=1, actor_options={"num_cpus": 0})

        def attempt() -> None:
            try:
                result = resolve_trial(trial)(
                    dict(task["point"]),
                    trial_dir=str(folder),
                    deadline_s=max(0.0, ends_at - teardown_s - time.time()),
                    callbacks=[TrialReporter(report_metric, queue)],
                )
                value = float(result[metric])
                end = {OUTCOME: {"metric": value, "result": _plain(result)}, REPORTED: value}
            except (Exception, SystemExit) as error:  # any trial may fail in any way; the search goes on and tells
                (folder / "error.txt").write_text(traceback.format_exc())
                end = {OUTCOME: {"error": _describe(error, metric)}}
            queue.put(end)

        threading.Thread(target=attempt, daemon=True).start()
        while OUTCOME not in (report := dict(queue.get())):
            ray_tune.report(report)
        overdue.cancel()
        return report

    return drive


def _describe(error: BaseException, metric: str) -> str:
    if isinstance(error, KeyError) and error.args == (metric,):
        return f"the trial's result has no {metric!r}"
    return str(error) if isinstance(error, LLMRayError) else f"{type(error).__name__}: {error}"


def _plain(result: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in result.items() if isinstance(value, str | int | float | bool | None)}
