"""Runs: how they end, what they are called, and who is dead."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmray.errors import GateRefusedError, InputError
from llmray.flow.run import current_run, is_dead, lease_owner, new_run_id, open_run
from llmray.registry.registry import Registry


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, "done", None),
        (GateRefusedError("not better"), "refused", "not better"),
        (KeyboardInterrupt(), "stopped", None),
        (InputError("no such file"), "failed", "no such file"),
        (ValueError("our bug"), "failed", "ValueError('our bug')"),
        (SystemExit(3), "failed", "SystemExit(3)"),
    ],
    ids=str,
)
def test_how_a_run_ends(error: BaseException | None, status: str, said: str | None) -> None:
    def work() -> None:
        with open_run("job", config={"lr": 0.1}) as run:
            assert current_run() is run
            assert run.registry.run(run.id).status == "running"
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert current_run() is None
    with Registry.open() as registry:
        [run] = registry.runs()
    assert (run.name, run.status, run.error, run.config) == ("job", status, said, {"lr": 0.1})
    assert run.finished_at is not None


def test_a_run_inside_a_run_is_that_run() -> None:
    with open_run("outer") as outer, open_run("inner", run_id="another") as inner:
        assert inner is outer
    with Registry.open() as registry:
        assert [run.name for run in registry.runs()] == ["outer"]


def test_the_submission_names_the_run_and_submitting_again_goes_on_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRAY_ACTOR", "ada")
    monkeypatch.setenv("LLMRAY_RUN_ID", "submitted-1")
    with pytest.raises(ValueError, match="first time"), open_run("job"):
        raise ValueError("first time")
    monkeypatch.setenv("LLMRAY_RUN_ID", "submitted-1")
    with open_run("job") as run:
        assert (run.id, run.actor) == ("submitted-1", "ada")
    with open_run("job", run_id="chosen") as run:
        assert run.id == "chosen"
    with Registry.open() as registry:
        assert {run.run_id: (run.status, run.error, run.actor) for run in registry.runs()} == {
            "submitted-1": ("done", None, "ada"),
            "chosen": ("done", None, "ada"),
        }
    monkeypatch.setenv("LLMRAY_RUN_ID", "submitted-1")
    with pytest.raises(InputError, match="choose another run id"), open_run("another job"):
        pass


def test_what_a_submission_does_besides_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRAY_RUN_ID", "submitted-2")
    with open_run("evaluate") as first:
        pass
    with open_run("promote") as second:
        pass
    assert first.id == "submitted-2"
    assert second.id != first.id


def test_a_run_whose_process_was_killed_is_lost_and_one_that_lives_is_not(llmray_home: Path) -> None:
    script = "import os, signal; from llmray.flow.run import open_run\nwith open_run('job', run_id='killed'): os.kill(os.getpid(), signal.SIGKILL)"
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    with Registry.open() as registry:
        registry.start_step("killed", "curate", key="k", fields={})
        assert registry.run("killed").status == "running"
        with open_run("next", run_id="alive"):
            assert {run.run_id: run.status for run in registry.runs()} == {"killed": "lost", "alive": "running"}
        assert [step.status for step in registry.steps("killed")] == ["failed"]


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) > 45
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", each) for each in ids)


def test_who_is_dead() -> None:
    host, pid, started = lease_owner().rsplit(":", 2)
    assert int(pid) == os.getpid()
    assert not is_dead(lease_owner())
    assert is_dead(f"{host}:{pid}:{int(started) + 1}")  # another process has its number now
    assert not is_dead(f"another-machine:{pid}:{int(started) + 1}")


def test_a_killed_process_is_dead_even_before_its_parent_has_noticed() -> None:
    code = "from llmray.flow.run import lease_owner; import sys; print(lease_owner(), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        owner = it.stdout.readline().strip()
        assert not is_dead(owner)
        it.kill()
        os.waitid(os.P_PID, it.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{it.pid}/stat").exists()
        assert is_dead(owner)
    assert is_dead(owner)
