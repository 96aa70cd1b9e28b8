"""What sinks are given: each step once, whatever happens; and a sink that fails costs no run."""

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmray.errors import ConfigError
from llmray.train.run_folder import METRICS, Tail, reopen_metrics
from llmray.train.sinks import TENSORBOARD, About, check_sinks, feeding
from llmray.train.spec import TrainSpec

LINES = [{"step": step, "loss": 4.0 - step, "lr": 0.5, "currency": "EUR"} for step in (1, 2, 3)]
GIVEN: dict[str, list[tuple[int, dict[str, float]]]] = {}


class Memory:
    """Remembers by run what it was given, as a server does."""

    def __init__(self, about: About) -> None:
        self._mine = GIVEN.setdefault(about.run_id, [])
        self.last_step = self._mine[-1][0] if self._mine else 0

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._mine.append((step, dict(figures)))

    def close(self, *, done: bool) -> None:
        self._mine.append((1000, {"done": done}))


class Broken(Memory):
    def write(self, step: int, figures: Mapping[str, float]) -> None:
        raise OSError("no route to host")


MEMORY, BROKEN = f"{__name__}:Memory", f"{__name__}:Broken"


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    with (folder / METRICS).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def fed(folder: Path, names: list[str], lines: list[dict[str, Any]]) -> None:
    with feeding(names, folder=folder, option="train", settings={"lr": 0.5}) as tell:
        write(folder, lines)
        tell({"step": lines[-1]["step"], "heldout_loss": 1.5, "memory_bytes": {"peak": 1}})


def test_a_run_that_was_told_to_stop_is_not_done(tmp_path: Path) -> None:
    GIVEN.clear()
    with feeding([MEMORY], folder=tmp_path, option="train", settings={}):
        write(tmp_path, LINES)
    [given] = GIVEN.values()
    assert given.pop() == (1000, {"done": False})


def test_a_sink_gets_every_number_of_every_step_once_over_two_calls(tmp_path: Path) -> None:
    GIVEN.clear()
    fed(tmp_path, [MEMORY], LINES[:2])
    [given] = GIVEN.values()
    assert given.pop() == (1000, {"done": True})
    assert given.pop() == (2, {"train/final/heldout_loss": 1.5})
    with pytest.raises(ZeroDivisionError), feeding([MEMORY], folder=tmp_path, option="train", settings={}):
        write(tmp_path, LINES[2:])
        raise ZeroDivisionError
    assert given.pop() == (1000, {"done": False})
    assert given == [(step, {"train/loss": 4.0 - step, "train/lr": 0.5}) for step in (1, 2, 3)]


def test_a_sink_that_fails_is_told_of_once_and_the_others_get_theirs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    GIVEN.clear()
    with caplog.at_level(logging.WARNING, "llmray.train.sinks"):
        fed(tmp_path, [BROKEN, "tensorboard"], LINES)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"train: {BROKEN} failed and gets no more figures (OSError: no route to host)")
    assert said.endswith(f"{tmp_path / METRICS} has them all")
    assert curve(tmp_path / TENSORBOARD, "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_tensorboard_has_each_step_once_also_after_a_second_call(tmp_path: Path) -> None:
    fed(tmp_path, ["tensorboard"], LINES[:2])
    fed(tmp_path, ["tensorboard"], LINES[2:])
    assert curve(tmp_path / TENSORBOARD, "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What the event files hold."""
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401 - its protocol buffers
    from tensorboardX.proto.event_pb2 import Event

    points = []
    for file in sorted(folder.glob("events.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):  # TFRecord: length, its checksum, the record, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            points += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return points


def test_a_file_that_a_restart_wrote_again_gives_each_step_once(tmp_path: Path) -> None:
    tail = Tail(tmp_path / METRICS)
    assert tail.read() == []
    write(tmp_path, LINES[:2])
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 3, "lo')
    assert tail.read() == LINES[:2]
    with reopen_metrics(tmp_path / METRICS, 1) as file:
        file.writelines(json.dumps(line) + "\n" for line in LINES[1:])
    assert (tail.read(), tail.read()) == (LINES[2:], [])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_sink_whose_package_is_missing_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"train\.report_to {name} needs its extra: pip install 'llmray\[{name}\]'"):
        check_sinks([name], option="train")


def test_an_unknown_sink_is_refused() -> None:
    check_sinks(TrainSpec().report_to, option="train")
    check_sinks([MEMORY], option="train")
    with pytest.raises(ConfigError, match=r"train\.report_to \('csv'\) must be tensorboard, mlflow, wandb or a module"):
        check_sinks(["csv"], option="train")
    with pytest.raises(ConfigError, match=r"train\.report_to \(module:attribute\): nowhere:sink cannot be loaded"):
        check_sinks(["nowhere:sink"], option="train")


def test_mlflow_has_each_step_once_over_two_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for lines in (LINES[:2], LINES[2:]):
        fed(tmp_path, ["mlflow"], lines)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("llmray").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert (run.data.params, run.info.status) == ({"lr": "0.5"}, "FINISHED")


def test_wandb_takes_all_steps_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fed(tmp_path, ["wandb"], LINES)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
