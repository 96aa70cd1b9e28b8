"""Whole searches on a cluster: budget, early stops that leave nothing, failures, and going on after a kill."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import trials
from ray import cloudpickle

from llmray.errors import BudgetExhaustedError, ConfigError, LLMRayError
from llmray.tune.ledger import Budget, Ledger
from llmray.tune.search import tune
from llmray.tune.spec import TuneSpec

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(trials)  # workers cannot import what lies beside a test
PLENTY = Budget(core_seconds=10_000)


def spec(xs: list[float], **more: object) -> TuneSpec:
    options = {"max_trial_s": 60.0, "num_trials": len(xs), "grace_reports": 0, **more}
    return TuneSpec(space={"x": xs}, **options)  # type: ignore[arg-type]


def test_the_best_point_wins_and_a_second_call_runs_nothing(ray_cluster: None, tmp_path: Path) -> None:
    search = spec([1, 3, 5])
    result = tune(trials.parabola, search, budget=PLENTY, run_dir=str(tmp_path))
    assert (result.best_config, result.best_metric) == ({"x": 3}, 0.0)
    assert [trial.status for trial in result.trials] == ["done"] * 3
    assert result.best_trial.result == {"heldout_loss": 0.0, "steps": 3}
    assert result.spent["core_seconds"] == pytest.approx(sum(trial.core_seconds for trial in result.trials))
    assert 0 < result.spent["core_seconds"] < 180
    assert tune(trials.parabola, search, budget=PLENTY, run_dir=str(tmp_path)) == result
    assert {path.read_text() for path in tmp_path.glob("trials/*/starts")} == {"1"}


def test_no_trial_starts_that_is_not_paid_for(ray_cluster: None, tmp_path: Path) -> None:
    """The budget holds two worst cases at a time; what a trial gives back pays for another, and then it is spent."""
    budget = Budget(core_seconds=30)
    result = tune(trials.parabola, spec([1, 2, 3, 4, 5, 6], max_trial_s=28.0), budget=budget, run_dir=str(tmp_path))
    assert 1 <= len(result.trials) < 6
    lines = [json.loads(line) for line in (tmp_path / "budget.jsonl").read_text().splitlines()]
    open_amounts: dict[str, float] = {}
    spent = 0.0
    for line in lines:
        if "reserve" in line:
            open_amounts[line["reserve"]] = line["amounts"]["core_seconds"]
        else:
            open_amounts.pop(line["settle"])
            spent += line["amounts"]["core_seconds"]
            assert "overrun" not in line
        assert spent + sum(open_amounts.values()) <= 30
    assert not open_amounts


def test_a_budget_too_small_for_one_trial_is_refused_before_anything_runs(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(BudgetExhaustedError, match="not even one trial"):
        tune(trials.parabola, spec([1, 2]), budget=Budget(core_seconds=5), run_dir=str(tmp_path))
    assert not (tmp_path / "trials").exists()


def test_money_is_held_by_the_price_list(ray_cluster: None, tmp_path: Path, llmray_home: Path) -> None:
    budget = Budget(money=0.5)
    with pytest.raises(ConfigError, match=r"budget\.money needs the prices"):
        tune(trials.parabola, spec([1, 2]), budget=budget, run_dir=str(tmp_path))
    llmray_home.mkdir(exist_ok=True)
    (llmray_home / "prices.yaml").write_text("{currency: EUR, core_hour: 60}")
    with pytest.raises(BudgetExhaustedError, match=r"0\.5 money are left and one may take 1: raise budget\.money"):
        tune(trials.parabola, spec([1, 2]), budget=budget, run_dir=str(tmp_path))


def test_a_trial_that_fails_or_dies_does_not_end_the_search(ray_cluster: None, tmp_path: Path) -> None:
    result = tune(trials.broken, spec([1, 2.5, 9], grace_reports=1), budget=PLENTY, run_dir=str(tmp_path))
    by_x = {trial.config["x"]: trial for trial in result.trials}
    assert by_x[1].status == "done"
    assert (by_x[2.5].status, by_x[2.5].error) == ("failed", "ValueError: x is too large")
    assert by_x[9].status == "failed"
    assert "too large" in (Path(by_x[2.5].trial_dir) / "error.txt").read_text()


def test_every_trial_failing_is_an_error_that_names_the_first(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(LLMRayError, match="x is too large"):
        tune(trials.broken, spec([2.5, 2.6]), budget=PLENTY, run_dir=str(tmp_path))


def test_a_trial_that_waits_for_cores_in_vain_is_ended_within_its_reservation(
    ray_cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(others.ready())
    search = spec([1, 2], max_trial_s=6.0, teardown_s=1.0, num_trials=1)
    try:
        with caplog.at_level(logging.INFO, logger="llmray.tune"), pytest.raises(LLMRayError, match="overran"):
            tune(trials.nested, search, budget=PLENTY, run_dir=str(tmp_path))
    finally:
        ray.util.remove_placement_group(others)
    assert "others hold the cluster" in caplog.text
    balance = Ledger(tmp_path / "budget.jsonl", PLENTY).balance()
    assert (balance.spent["core_seconds"], balance.reserved["core_seconds"]) == (6.0, 0.0)


def test_trials_stopped_early_leave_no_worker_and_no_placement_group(
    ray_cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    total = ray.cluster_resources()["CPU"]
    with caplog.at_level(logging.WARNING, logger="llmray.tune"):
        result = tune(
            trials.nested,
            spec([1, 60], grace_reports=1, max_concurrent=1, seed=1),  # the good one first, which the other is held to
            budget=PLENTY,
            run_dir=str(tmp_path),
        )
    assert [(trial.config["x"], trial.status) for trial in result.trials] == [(1, "done"), (60, "stopped")]
    assert result.trials[1].core_seconds < 60
    assert not caplog.records
    live = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    assert live == []
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU") != total and time.monotonic() < deadline:
        ray.get(ray.remote(num_cpus=0)(lambda: None).remote())
    assert ray.available_resources()["CPU"] == total


def test_another_search_in_the_same_folder_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    tune(trials.parabola, spec([3, 4], num_trials=1), budget=PLENTY, run_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="another search"):
        tune(trials.parabola, spec([7, 8]), budget=PLENTY, run_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        tune("no.module:trial", spec([1, 2]), budget=PLENTY, run_dir=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="the cluster has"):
        tune(trials.parabola, spec([1, 2], cpus_per_trial=99), budget=PLENTY, run_dir=str(tmp_path / "big"))


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
import ray, trials
ray.cloudpickle.register_pickle_by_value(trials)
from llmray.tune.ledger import Budget
from llmray.tune.search import tune
from llmray.tune.spec import TuneSpec

def trial(config, *, trial_dir, deadline_s, callbacks):
    if trial_dir.endswith("2"):
        os.kill(int(open({pid!r}).read()), signal.SIGKILL)
        signal.pause()
    return trials.parabola(config, trial_dir=trial_dir, deadline_s=deadline_s, callbacks=callbacks)

open({pid!r}, "w").write(str(os.getpid()))
ray.init("local", num_cpus=2, include_dashboard=True, log_to_driver=False)
tune(trial, TuneSpec(space={{"x": [1, 3, 4]}}, max_trial_s=50.0, num_trials=3, grace_reports=0, max_concurrent=1),
     budget=Budget(core_seconds=10_000), run_dir={run_dir!r})
"""


@pytest.mark.slow
def test_killed_and_called_again_it_repeats_no_finished_trial(ray_cluster: None, tmp_path: Path) -> None:
    run_dir, here = tmp_path / "run", str(Path(__file__).parent)
    script = KILLED.format(here=here, pid=str(tmp_path / "pid"), run_dir=str(run_dir))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    killed = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    header, *lines = [json.loads(line) for line in (run_dir / "trials.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    search = TuneSpec(space={"x": [1, 3, 4]}, max_trial_s=50.0, num_trials=3, grace_reports=0, max_concurrent=1)
    header["search"] = search.identity("trials:parabola")
    (run_dir / "trials.jsonl").write_text("\n".join(json.dumps(line) for line in [header, *lines]) + "\n")
    result = tune(trials.parabola, search, budget=PLENTY, run_dir=str(run_dir))
    assert {trial.status for trial in result.trials} == {"done"}
    starts = {int(path.parent.name): path.read_text() for path in run_dir.glob("trials/*/starts")}
    assert starts == {0: "1", 1: "1", 2: "1"}
    assert result.spent["core_seconds"] > 50
