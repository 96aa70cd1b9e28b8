"""The frame of a run around work that needs no training: one process of this machine stands for the group on Ray."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llmray import artifact
from llmray.errors import ConfigError, InputError, LLMRayError, StoppedError
from llmray.prices import PriceList
from llmray.train import frame
from llmray.train.card import CARD
from llmray.train.model_run import ModelRun
from llmray.train.run_folder import EXPORT, METRICS, STOP, stopping_on_sigterm


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeSpec(ModelRun):
    option: ClassVar[str] = "fake"


SPEC = FakeSpec(model="nowhere", data="nowhere", num_workers=2, cpus_per_worker=3.0, max_steps=4, report_to=())


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    steps: int
    counts: dict[str, int]
    seconds: dict[str, float]
    stopped_early: bool = False
    resumes_at: int | None = None


def write_a_model(spec: FakeSpec, place: Any, folder: Path, deadline: float | None, _: PriceList) -> Outcome:
    """A line of metrics a step, as far as the deadline allows, and a model."""
    lines: list[dict[str, int]] = []
    stopped = deadline is not None and deadline <= time.time()
    for step in range(len(lines) + 1, 3 if stopped else spec.max_steps + 1):
        lines.append({"step": step})
    (folder / METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / EXPORT).mkdir(exist_ok=True)
    (folder / EXPORT / "weights").write_text(f"{len(lines)} steps")
    return Outcome(steps=len(lines), counts={"rows": 7}, seconds={"steps": 0.0}, stopped_early=stopped)


def told_to_end(spec: FakeSpec, place: Any, folder: Path, deadline: float | None, _: PriceList) -> Outcome:
    """SIGTERM comes to the driver, and the workers see it."""
    assert not (folder / STOP).exists(), "what an earlier call was told is over"
    os.kill(os.getpid(), signal.SIGTERM)
    assert (folder / STOP).exists()
    return Outcome(steps=3, counts={"rows": 7}, seconds={"steps": 0.0}, stopped_early=True, resumes_at=2)


def told_too_late(spec: FakeSpec, place: Any, folder: Path, deadline: float | None, prices: PriceList) -> Outcome:
    outcome = write_a_model(spec, place, folder, deadline, prices)
    os.kill(os.getpid(), signal.SIGTERM)
    return outcome


def refuse(*_: Any) -> Outcome:
    raise InputError("the data is empty")


def worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    return frame.in_worker(config, FakeSpec, write_a_model)


def refusing_worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    return frame.in_worker(config, FakeSpec, refuse)


def stopping_worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    return frame.in_worker(config, FakeSpec, told_to_end)


def late_worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    return frame.in_worker(config, FakeSpec, told_too_late)


def report(outcome: Mapping[str, Any], folder: Path, spec: FakeSpec) -> dict[str, Any]:
    return {"steps": outcome["steps"], "of": spec.max_steps, "lines": len((folder / METRICS).read_text().splitlines())}


WORK: frame.Work[FakeSpec] = frame.Work(worker=worker, describe=lambda line, _: f"step {line['step']}", report=report)


class Group:
    """`run_workers` with rank 0 alone, in this process."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, worker: Any, config: dict[str, Any], spec: FakeSpec, **options: Any) -> dict[str, Any]:
        self.calls.append(options)
        value = worker(config)
        if isinstance(value, LLMRayError):
            raise value
        return dict(value)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    made = Group()
    monkeypatch.setattr(frame, "run_workers", made)
    monkeypatch.setattr(frame, "begin_worker", lambda _: None)
    return made


def test_a_run_ends_in_a_model_that_says_what_it_cost_and_what_it_was_made_of(group: Group, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    options = {"callbacks": ("a callback",), "max_failures": 5}
    done = frame.run(
        WORK, SPEC, run_dir=str(tmp_path / "run"), root_uri=str(tmp_path), on_report=told.append, **options
    )
    assert told == [{"step": step} for step in (1, 2, 3, 4)]
    assert done.metrics_path == str(tmp_path / "run" / METRICS)
    assert group.calls == [{"folder": tmp_path / "run", **options}]
    made = artifact.load(done.artifact.uri)
    assert "Made by `llmray` (fake) in 4 steps." in (Path(made.uri) / CARD).read_text()
    assert (Path(made.uri) / "weights").read_text() == "4 steps"
    assert (Path(made.uri) / METRICS).read_text() == Path(done.metrics_path).read_text()
    assert (made.kind, made.config, made.parents) == ("model", {"fake": SPEC.identity()}, {})
    assert made.report == done.report
    assert {"steps": 4, "of": 4, "lines": 4, "data": {"rows": 7}, "gpu_seconds": 0}.items() <= made.report.items()
    seconds = made.report["seconds"]
    assert set(seconds) == {"startup", "imports", "steps", "rest"}
    assert made.report["core_seconds"] == pytest.approx(6 * sum(seconds.values()), abs=0.03)


def test_what_it_cost_is_said_in_money_where_there_is_a_price_list(
    group: Group, tmp_path: Path, llmray_home: Path
) -> None:
    llmray_home.mkdir(exist_ok=True)
    (llmray_home / "prices.yaml").write_text("{currency: EUR, core_hour: 3600}")
    report = frame.run(WORK, SPEC, run_dir=str(tmp_path / "run"), root_uri=str(tmp_path)).report
    assert (report["money"], report["currency"]) == (pytest.approx(report["core_seconds"]), "EUR")


def test_metrics_and_the_card_lie_outside_the_digest(group: Group, tmp_path: Path) -> None:
    one, two = (frame.run(WORK, SPEC, run_dir=str(tmp_path / name), root_uri=str(tmp_path)) for name in "ab")
    assert one.artifact == two.artifact


def test_a_finished_run_is_not_run_again_unless_its_model_is_gone(group: Group, tmp_path: Path) -> None:
    where = {"run_dir": str(tmp_path / "run"), "root_uri": str(tmp_path / "artifacts")}
    done = frame.run(WORK, SPEC, **where)
    assert frame.run(WORK, SPEC, **where) == done
    assert len(group.calls) == 1
    for path in Path(done.artifact.uri).iterdir():
        path.unlink()
    assert frame.run(WORK, SPEC, **where).artifact.digest == done.artifact.digest
    assert len(group.calls) == 2


def test_a_folder_belongs_to_one_spec(group: Group, tmp_path: Path) -> None:
    frame.run(WORK, SPEC, run_dir=str(tmp_path / "run"), root_uri=str(tmp_path))
    with pytest.raises(ConfigError, match=r"other settings \(lr\)"):
        frame.run(WORK, replace(SPEC, lr=0.5), run_dir=str(tmp_path / "run"), root_uri=str(tmp_path))


def test_a_folder_may_go_on_with_other_workers(group: Group, tmp_path: Path) -> None:
    where = {"run_dir": str(tmp_path / "run"), "root_uri": str(tmp_path)}
    frame.run(WORK, SPEC, deadline_s=0.0, **where)
    assert frame.run(WORK, replace(SPEC, num_workers=1, accumulation=2), **where).report["steps"] == 4
    with pytest.raises(ConfigError, match=r"other settings \(global_batch\)"):
        frame.run(WORK, replace(SPEC, num_workers=1), **where)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Signals that reach the handler of the process outside of runs."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def test_told_to_end_it_says_from_which_step_the_same_call_goes_on(
    group: Group, tmp_path: Path, heard: list[int]
) -> None:
    where = {"run_dir": str(tmp_path / "run"), "root_uri": str(tmp_path)}
    for _ in range(2):
        with pytest.raises(StoppedError, match=rf"run_dir {tmp_path}/run goes on from step 2 of 4"):
            frame.run(replace(WORK, worker=stopping_worker, stops=True), SPEC, **where)
    assert heard == []
    assert not (tmp_path / "model").exists()
    assert frame.run(replace(WORK, stops=True), SPEC, **where).report["steps"] == 4


def test_told_at_its_end_it_publishes_and_ends_all_the_same(group: Group, tmp_path: Path, heard: list[int]) -> None:
    where = {"run_dir": str(tmp_path / "run"), "root_uri": str(tmp_path)}
    with pytest.raises(StoppedError, match="returns the model at once"):
        frame.run(replace(WORK, worker=late_worker, stops=True), SPEC, **where)
    assert frame.run(replace(WORK, stops=True), SPEC, **where).report["steps"] == 4
    assert len(group.calls) == 1


def test_a_second_signal_and_those_after_the_run_are_heard_as_before(tmp_path: Path, heard: list[int]) -> None:
    with stopping_on_sigterm(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
        assert (heard, (tmp_path / STOP).exists()) == ([], True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(heard) == 1
    os.kill(os.getpid(), signal.SIGTERM)
    assert len(heard) == 2


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path, heard: list[int]) -> None:
    (tmp_path / STOP).touch()

    def work() -> None:
        with stopping_on_sigterm(tmp_path):
            assert not (tmp_path / STOP).exists()
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [signal.SIGTERM]
    assert not (tmp_path / STOP).exists()


def test_a_run_that_met_its_deadline_is_published_and_goes_on_when_called_again(group: Group, tmp_path: Path) -> None:
    where = {"run_dir": str(tmp_path / "run"), "root_uri": str(tmp_path)}
    stopped = frame.run(WORK, SPEC, deadline_s=0.0, **where)
    assert (Path(stopped.artifact.uri) / "weights").read_text() == "2 steps"
    assert not (tmp_path / "run" / "result.json").exists()
    assert frame.run(WORK, SPEC, **where).report["steps"] == 4


def test_what_the_user_must_mend_comes_back_from_a_worker_and_nothing_is_published(
    group: Group, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the data is empty"):
        frame.run(replace(WORK, worker=refusing_worker), SPEC, run_dir=str(tmp_path / "run"), root_uri=str(tmp_path))
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "model").exists()
