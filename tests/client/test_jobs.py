"""Jobs on the cluster, with their true exit codes."""

from pathlib import Path

import pytest

from llmray.client import jobs
from llmray.errors import InputError, UnavailableError


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text("import sys\nprint('hello', *sys.argv[2:])\nsys.exit(int(sys.argv[1]))\n")
    return tmp_path


@pytest.mark.ray
@pytest.mark.parametrize("code", [0, 3, 75])
def test_exit_code_and_log_come_back(ray_cluster: None, dashboard: str, working_dir: Path, code: int) -> None:
    log: list[str] = []
    args = [str(code), "two words", "it's"]
    assert jobs.submit("job.py", args, address=dashboard, working_dir=str(working_dir), on_log=log.append) == code
    assert "hello two words it's" in "".join(log)


@pytest.mark.ray
def test_same_submission_id_runs_once(ray_cluster: None, dashboard: str, working_dir: Path) -> None:
    ran = working_dir / "ran"
    (working_dir / "once.py").write_text(f"open({str(ran)!r}, 'a').write('x')\nraise SystemExit(4)\n")
    for _ in range(2):
        code = jobs.submit("once.py", address=dashboard, submission_id="once", working_dir=str(working_dir))
        assert code == 4
    assert ran.read_text() == "x"


@pytest.mark.ray
def test_unknown_job_is_an_input_error(ray_cluster: None, dashboard: str) -> None:
    with pytest.raises(InputError, match="no job"):
        jobs.follow("never-submitted", address=dashboard)


def test_missing_script_and_missing_cluster_name_the_fix(working_dir: Path) -> None:
    with pytest.raises(InputError, match="below working_dir"):
        jobs.submit("absent.py", working_dir=str(working_dir))
    with pytest.raises(UnavailableError, match="ray start --head"):
        jobs.submit("job.py", address="http://127.0.0.1:9", working_dir=str(working_dir))


def test_a_job_waits_for_the_agents_of_a_new_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    answers: list[str | Exception] = [RuntimeError("status code 500: No available agent to submit job"), "job-1"]

    class Cluster:
        def submit_job(self, entrypoint: str) -> str:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    assert jobs._start(Cluster(), entrypoint="true") == "job-1"
    answers[:] = [RuntimeError("status code 500: No available agent to submit job")]
    monkeypatch.setattr(jobs, "_AGENT_WAIT_S", -1.0)
    with pytest.raises(UnavailableError, match="no node takes the job"):
        jobs._start(Cluster(), entrypoint="true")
