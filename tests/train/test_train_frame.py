"""The frame of a run around work that needs no training: one process of this machine stands for the group on Ray."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llmray import artifact
from llmray.errors import ConfigError, InputError, LLMRayError
from llmray.train import frame
from llmray.train.model_run import ModelRun
from llmray.train.run_folder import EXPORT, METRICS


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeSpec(ModelRun):
    option: ClassVar[str] = "fake"


SPEC = FakeSpec(model="nowhere", data="nowhere", num_workers=2, cpus_per_worker=3.0, max_steps=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    steps: int
    counts: dict[str, int]
    seconds: dict[str, float]
    stopped_early: bool = False


def write_a_model(spec: FakeSpec, place: Any, folder: Path, deadline: float | None) -> Outcome:
    """A line of metrics a step, as far as the deadline allows, and a model."""
    lines: list[dict[str, int]] = []
    stopped = deadline is not None and deadline <= time.time()
    for step in range(len(lines) + 1, 3 if stopped else spec.max_steps + 1):
        lines.append({"step": step})
    (folder / METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / EXPORT).mkdir(exist_ok=True)
    (folder / EXPORT / "weights").write_text(f"{len(lines)} steps")
    return Outcome(steps=len(lines), counts={"rows": 7}, seconds={"steps": 0.0}, stopped_early=stopped)


def refuse(*_: Any) -> Outcome:
    raise InputError("the data is empty")


def worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    return frame.in_worker(config, FakeSpec, write_a_model)


def refusing_worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    return frame.in_worker(config, FakeSpec, refuse)


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
    assert (Path(made.uri) / "weights").read_text() == "4 steps"
    assert (Path(made.uri) / METRICS).read_text() == Path(done.metrics_path).read_text()
    assert (made.kind, made.config, made.parents) == ("model", {"fake": SPEC.identity()}, {})
    assert made.report == done.report
    assert {"steps": 4, "of": 4, "lines": 4, "data": {"rows": 7}, "gpu_seconds": 0}.items() <= made.report.items()
    seconds = made.report["seconds"]
    assert set(seconds) == {"startup", "imports", "steps", "rest"}
    assert made.report["core_seconds"] == pytest.approx(6 * sum(seconds.values()), abs=0.03)


def test_metrics_lie_outside_the_digest(group: Group, tmp_path: Path) -> None:
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
