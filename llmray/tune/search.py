"""Run trials with Ray Tune inside a budget, and take an interrupted search up where it stopped.

All decisions are made in this process, by the searcher that Tune asks for points: it reserves a trial's worst case
before it hands a point out, hands none out while nothing fits, and settles when the trial ends. So no trial starts
unpaid, and no worker touches the ledger. Trials that do worse than others at the same number of reports are stopped by
asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), Tune's own. After the last trial the placement
groups that were made meanwhile are waited for, and taken down if they stay: a stopped trial's trainer gives its own
back only when Ray's dashboard sees it die.

Rejected: `Tuner.restore`, which restores Tune's state but not the account; synchronous rounds of successive halving,
which pay for every survivor's start-up again in each round (10 s of each 20 s trial here).
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_placement_groups

from llmray.errors import BudgetExhaustedError, ConfigError, LLMRayError
from llmray.prices import PriceList, price_list
from llmray.storage import disk_errors
from llmray.tune.driver import OUTCOME, REPORTED, TrialFunction, make_driver, resolve_trial
from llmray.tune.ledger import Budget, Ledger
from llmray.tune.space import sample
from llmray.tune.spec import Trial, TuneResult, TuneSpec

log = logging.getLogger(__name__)

_KILL_LAG_S = 2.0
"""Seconds that a trial stopped early goes on computing until its workers are gone; charged."""
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def tune(trial: str | TrialFunction, spec: TuneSpec, *, budget: Budget | Ledger, run_dir: str) -> TuneResult:
    """Search a space.

    Killed and called again with the same `run_dir`, it does not repeat finished trials; what ran when it was killed is
    charged in full and started again in its old folder.

    Args:
        trial: a `TrialFunction`, or `module:attribute` of one.
        spec: the space and how to search it.
        budget: what may be spent; a `Ledger` shares one account among searches.
        run_dir: local folder of this search.

    Raises:
        BudgetExhaustedError: not even one trial fits.
        ConfigError: `run_dir` belongs to another search, or the cluster is too small for one trial.
        LLMRayError: every trial failed.
    """
    resolve_trial(trial)
    folder = Path(run_dir).expanduser().absolute()
    name = (
        trial
        if isinstance(trial, str)
        else f"{trial.__module__}:{getattr(trial, '__qualname__', type(trial).__name__)}"
    )
    journal = _Journal(folder, spec.identity(name))
    ledger = budget if isinstance(budget, Ledger) else Ledger(folder / "budget.jsonl", budget)
    points = sample(spec.space, count=spec.num_trials, seed=spec.seed)
    todo = [index for index in range(len(points)) if index not in journal.finished]
    if todo:
        log.info("tune: %d of %d trials to run, %s", len(todo), len(points), _left(ledger))
        prices = price_list()
        _check_fits(spec, ledger, journal, prices)
        searcher = _PaidSearcher(
            spec, points=points, todo=todo, ledger=ledger, journal=journal, folder=folder, prices=prices
        )
        with _environment(), _cleaned_up():
            _run(trial, spec, searcher, folder)
    return _result(spec, journal, ledger, folder)


def _run(trial: str | TrialFunction, spec: TuneSpec, searcher: "_PaidSearcher", folder: Path) -> None:
    driver = make_driver(
        trial,
        metric=spec.metric,
        report_metric=spec.report_metric,
        max_trial_s=spec.max_trial_s,
        teardown_s=spec.teardown_s,
    )
    scheduler = (
        AsyncHyperBandScheduler(
            time_attr="training_iteration",
            metric=REPORTED,
            mode=spec.mode,
            max_t=1_000_000,
            grace_period=spec.grace_reports,
            reduction_factor=spec.reduction_factor,
        )
        if spec.grace_reports
        else FIFOScheduler()
    )
    # the driver computes nothing: a little memory stands for it, so that every core is left to the trials' own workers
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(driver, {"CPU": 0, "memory": 1 << 20}),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=len(searcher.todo),
            max_concurrent_trials=_concurrent(spec),
            reuse_actors=False,
        ),
        run_config=ray_tune.RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder / "ray"),
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()


class _PaidSearcher(Searcher):
    """Gives Tune points that are paid for."""

    def __init__(
        self,
        spec: TuneSpec,
        *,
        points: list[dict[str, Any]],
        todo: list[int],
        ledger: Ledger,
        journal: "_Journal",
        folder: Path,
        prices: PriceList,
    ) -> None:
        super().__init__(metric=REPORTED, mode=spec.mode)
        self._spec, self._prices = spec, prices
        self._points = points
        self.todo = list(todo)
        self._ledger = ledger
        self._journal = journal
        self._folder = folder
        self._running: dict[str, tuple[int, str, float]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next point; None to be asked again when a running trial has given something back."""
        if not self.todo:
            return str(Searcher.FINISHED)
        index = self.todo[0]
        try:
            reservation = self._ledger.reserve(self._spec.reservation(self._prices), note=f"trial {index}")
        except BudgetExhaustedError as error:
            if self._running:
                return None
            log.info("tune: %d trials are not started: %s", len(self.todo), error)
            self.todo.clear()
            return str(Searcher.FINISHED)
        self.todo.pop(0)
        self._running[trial_id] = (index, reservation, time.monotonic())
        log.info("tune: trial %d starts: %s", index, _show(self._points[index]))
        return {"point": self._points[index], "trial_dir": _trial_dir(self._folder, index), "started_at": time.time()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing is learnt from a report."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Settle and write down how a trial ended."""
        if trial_id not in self._running:
            return
        index, reservation, started = self._running.pop(trial_id)
        died = {"error": f"the trial died, or overran its {self._spec.max_trial_s:g} s (tune.max_trial_s)"}
        outcome: dict[str, Any] = died if error else _outcome(result or {})
        stopped = not outcome
        elapsed = time.monotonic() - started + (_KILL_LAG_S if stopped else 0.0)
        elapsed = min(elapsed, self._spec.max_trial_s)
        cost = self._spec.cost(elapsed, self._prices)
        self._ledger.settle(reservation, cost, note=f"trial {index}")
        value = outcome.get("metric", (result or {}).get(REPORTED))
        metric = float(value) if value is not None and math.isfinite(value) else None
        failure = outcome.get("error") or (None if stopped or metric is not None else f"its metric is {value}")
        trial = Trial(
            index=index,
            config=self._points[index],
            status="failed" if failure else "stopped" if stopped else "done",
            metric=None if failure else metric,
            core_seconds=cost["core_seconds"],
            gpu_seconds=cost["gpu_seconds"],
            trial_dir=_trial_dir(self._folder, index),
            result=dict(outcome.get("result", {})),
            error=failure,
        )
        self._journal.add(trial)
        measured = self._spec.metric if trial.status == "done" else self._spec.report_metric
        shown = trial.error or f"{measured} {'unknown' if trial.metric is None else f'{trial.metric:.4g}'}"
        log.info("tune: trial %d %s after %.1f s: %s; %s", index, trial.status, elapsed, shown, _left(self._ledger))

    def save(self, checkpoint_path: str) -> None:
        """The journal and the ledger are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """The journal and the ledger are the state."""


class _Journal:
    """Trials that ended, one JSON line each, under the identity of the search."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._path = folder / "trials.jsonl"
        self.finished: dict[int, Trial] = {}
        self.failed: dict[int, Trial] = {}
        with disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            if not self._path.exists() or not self._path.read_bytes().endswith(b"\n"):
                whole = self._path.read_bytes().rpartition(b"\n")[0] if self._path.exists() else b""
                self._path.write_bytes(whole + b"\n" if whole else json.dumps({"search": identity}).encode() + b"\n")
        first, *lines = self._path.read_text().splitlines()
        if json.loads(first)["search"] != identity:
            raise ConfigError(f"{folder} belongs to another search: give this one a folder of its own")
        for line in lines:
            self._keep(Trial(**json.loads(line)))

    def add(self, trial: Trial) -> None:
        with disk_errors(str(self._path)), self._path.open("a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(trial)

    def _keep(self, trial: Trial) -> None:
        (self.failed if trial.status == "failed" else self.finished)[trial.index] = trial


def _outcome(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the driver returned; empty for a trial that Tune stopped. Tune flattens nested results."""
    if isinstance(result.get(OUTCOME), dict):
        return dict(result[OUTCOME])
    outcome: dict[str, Any] = {}
    for key, value in result.items():
        if key.startswith(f"{OUTCOME}/result/"):
            outcome.setdefault("result", {})[key.removeprefix(f"{OUTCOME}/result/")] = value
        elif key.startswith(f"{OUTCOME}/"):
            outcome[key.removeprefix(f"{OUTCOME}/")] = value
    return outcome


def _result(spec: TuneSpec, journal: _Journal, ledger: Ledger, folder: Path) -> TuneResult:
    done = [trial for trial in journal.finished.values() if trial.status == "done" and trial.metric is not None]
    if not done:
        failures = [trial for trial in journal.failed.values() if trial.index not in journal.finished]
        if failures:
            first = min(failures, key=lambda trial: trial.index)
            raise LLMRayError(
                f"no trial finished; trial {first.index} failed: {first.error} (see {first.trial_dir}/error.txt)"
            )
        raise LLMRayError(f"no trial finished in {folder}")
    sign = 1.0 if spec.mode == "min" else -1.0
    best = min(done, key=lambda trial: (sign * float(trial.metric or 0.0), trial.index))
    trials = {**journal.failed, **journal.finished}
    return TuneResult(
        best_config=best.config,
        best_metric=float(best.metric or 0.0),
        best_trial=best,
        trials=[trials[index] for index in sorted(trials)],
        spent=ledger.balance().spent,
    )


def _check_fits(spec: TuneSpec, ledger: Ledger, journal: _Journal, prices: PriceList) -> None:
    """One trial must fit the cluster, and the budget unless there is a result already."""
    _concurrent(spec)
    free = ray.available_resources()
    if free.get("CPU", 0.0) < spec.cpus_per_trial or free.get("GPU", 0.0) < spec.gpus_per_trial:
        log.info(
            "tune: others hold the cluster, %g CPUs and %g GPUs are free: trials wait for theirs, tune.max_trial_s at most",
            free.get("CPU", 0.0),
            free.get("GPU", 0.0),
        )
    left, wanted = ledger.balance().left, spec.reservation(prices)
    if "money" in left and "money" not in wanted:
        raise ConfigError(
            "budget.money needs the prices of what a trial takes: write currency, core_hour and gpu_hour into prices.yaml "
            "in $LLMRAY_HOME"
        )
    for name, amount in wanted.items():
        if name in left and amount > left[name] and not journal.finished:
            raise BudgetExhaustedError(
                f"not even one trial fits the budget: {left[name]:g} {name} are left and one may take {amount:g}: "
                f"raise budget.{name} or lower tune.max_trial_s"
            )


def _concurrent(spec: TuneSpec) -> int:
    """Trials that the cluster holds at the same time, at most as many as wanted."""
    total = ray.cluster_resources()
    fits = spec.max_concurrent
    for name, amount in (("CPU", spec.cpus_per_trial), ("GPU", spec.gpus_per_trial)):
        if amount:
            fits = min(fits, int(total.get(name, 0.0) / amount + 1e-9))
    if fits < 1:
        raise ConfigError(
            f"a trial needs {spec.cpus_per_trial:g} CPUs and {spec.gpus_per_trial:g} GPUs, and the cluster has "
            f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}: lower tune.cpus_per_trial"
        )
    return fits


def _trial_dir(folder: Path, index: int) -> str:
    return str(folder / "trials" / f"{index:04}")


def _left(ledger: Ledger) -> str:
    return ", ".join(f"{left:,.0f} {name.replace('_', '-')} left" for name, left in ledger.balance().left.items())


def _show(point: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()
    )


@contextmanager
def _environment() -> Iterator[None]:
    """Tune reads these when it starts; what the user set stays."""
    added = {key: value for key, value in _ENVIRONMENT.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def _cleaned_up(patience_s: float = 30.0) -> Iterator[None]:
    """Leave no placement group behind that this process's job made inside the block.

    A trial that was killed while its group waited for cores leaves it waiting, and one that was stopped early may take
    seconds to hand its group back: cores that the next step waits for.
    """
    before = _our_groups()
    try:
        yield
    finally:
        for group in _our_groups() - before:
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
        deadline = time.monotonic() + patience_s
        while (left := _our_groups() - before) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            log.warning("tune: %d placement groups of stopped trials stay", len(left))


def _our_groups() -> set[str]:
    """Live placement groups of this job; other jobs on the cluster have theirs."""
    context = ray.get_runtime_context()
    # without an address it looks for a cluster on this machine, and fails where there are two
    groups = list_placement_groups(
        context.gcs_address, filters=[("creator_job_id", "=", context.get_job_id())], limit=10_000
    )
    return {group.placement_group_id for group in groups if group.state != "REMOVED"}
