"""Several processes and one registry: a step is computed once, and the dead hold nothing up."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmray.registry.registry import Registry

PIPELINE = str(Path(__file__).with_name("pipeline.py"))


def start(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, PIPELINE, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_that_ask_for_the_same_compute_it_once(tmp_path: Path) -> None:
    with start("slow", str(tmp_path)) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "computing\n"
        with start("slow", str(tmp_path)) as other:
            assert other.stderr is not None
            assert any("waiting for its result" in line for line in other.stderr)
            first_answer, _ = one.communicate("go on\n")
            second_answer, _ = other.communicate()
    assert [json.loads(answer) for answer in (first_answer, second_answer)] == [7, 7]
    assert (tmp_path / "slow").read_text() == "x"
    with Registry.open() as registry:
        assert sorted(record.status for record in registry.last_steps("slow", 5)) == ["cached", "done"]


def test_a_pipeline_killed_half_way_goes_on_from_its_last_finished_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMRAY_RUN_ID", "tuesday")
    with start("killed", str(tmp_path)) as dead:
        _, errors = dead.communicate()
    assert dead.returncode == -signal.SIGKILL, errors
    with Registry.open() as registry:
        assert registry.run("tuesday").status == "running"
        key = registry.last_steps("second", 1)[0].key
        assert registry.lease_owner(key) is not None
    with start("killed", str(tmp_path), "--no-wait") as again:
        answer, errors = again.communicate()
    assert again.returncode == 0, errors
    assert json.loads(answer) == [2, "done before"]
    assert (tmp_path / "first").read_text() == "x"
    assert (tmp_path / "second").read_text() == "xx"
    with Registry.open() as registry:
        assert [run.status for run in registry.runs()] == ["done"]
        assert [(record.step, record.status) for record in registry.steps("tuesday")] == [
            ("first", "done"), ("second", "failed"), ("first", "cached"), ("second", "done"),
        ]  # fmt: skip
        assert registry.lease_owner(key) is None
        assert [(spent.step, spent.core_seconds) for spent in registry.spend()] == [("first", 2.0), ("second", 0.0)]
