"""Run a recipe on a running cluster, follow its log, and return its true exit code.

`ray job submit` exits 1 for any failure and 0 for a job that was stopped; the recipes' codes (2 input, 3 gate, 4
budget, 75 try again) are in the job's record. A submission id makes submitting idempotent: the same id again follows
the job that is there. Rejected: the Ray client (`ray://`), which dies with its connection.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmray.errors import ConfigError, InputError, UnavailableError

EXIT_STOPPED = 130
EXIT_FAILED = 1
_POLL_S = 0.5
_AGENT_WAIT_S = 30.0


def submit(
    job_script: str,
    args: Sequence[str] = (),
    *,
    address: str | None = None,
    submission_id: str | None = None,
    working_dir: str | None = ".",
    env: Mapping[str, str] | None = None,
    num_cpus: float = 0,
    on_log: Callable[[str], None] | None = None,
) -> int:
    """Run `python job_script *args` on a cluster and return its exit code.

    Args:
        job_script: path below `working_dir`: `jobs/curate.py`.
        address: the dashboard, `http://host:8265`; by default what `RAY_API_SERVER_ADDRESS` or `RAY_ADDRESS` names.
        submission_id: a job of this id that is there already is followed, and not started again; the run that it
            records has this id too.
        working_dir: folder that travels to the cluster; None where the script is there already.
        env: environment variables of the job.
        num_cpus: reserved for the script itself; what it starts reserves its own.
        on_log: gets the log as it grows; standard output by default.

    Raises:
        InputError: the script is not in the working folder.
        UnavailableError: the cluster does not answer, or refuses the token.
    """
    import shlex

    if working_dir is not None and not (Path(working_dir) / job_script).is_file():
        raise InputError(f"{job_script} is not in {Path(working_dir).absolute()}: give a path below working_dir")
    client = _client(address)
    chosen = {} if submission_id is None else {"LLMRAY_RUN_ID": submission_id}
    runtime_env: dict[str, Any] = {"env_vars": {**chosen, **(env or {})}}
    if working_dir is not None:
        runtime_env["working_dir"] = working_dir
    if submission_id is None or not _known(client, submission_id):
        submission_id = _start(
            client,
            entrypoint=shlex.join(["python", job_script, *args]),
            submission_id=submission_id,
            runtime_env=runtime_env,
            entrypoint_num_cpus=num_cpus,
        )
    return follow(submission_id, address=address, on_log=on_log)


def follow(submission_id: str, *, address: str | None = None, on_log: Callable[[str], None] | None = None) -> int:
    """Pass on a job's log until it ends, and return its exit code: 130 if it was stopped.

    Raises:
        InputError: there is no such job.
    """
    from ray.job_submission import JobStatus

    client = _client(address)
    if not _known(client, submission_id):
        raise InputError(f"there is no job {submission_id} on this cluster")
    write = on_log or _to_stdout
    seen = 0
    while True:
        status = client.get_job_status(submission_id)
        log = client.get_job_logs(submission_id)
        if len(log) > seen:
            write(log[seen:])
            seen = len(log)
        if status.is_terminal():
            break
        time.sleep(_POLL_S)
    details = client.get_job_info(submission_id)
    if status == JobStatus.SUCCEEDED:
        return 0
    if status == JobStatus.STOPPED:
        return EXIT_STOPPED
    return int(details.driver_exit_code or EXIT_FAILED)


def _client(address: str | None) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except ConnectionError as error:
        where = address or "RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
        raise UnavailableError(
            f"no Ray dashboard answers at {where}: start a cluster with `ray start --head`"
        ) from error
    except ValueError as error:
        raise ConfigError(f"address ({address}) is no dashboard: try http://127.0.0.1:8265 ({error})") from error
    except AuthenticationError as error:
        raise UnavailableError(
            f"the Ray dashboard refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or have the cluster's "
            f"token in ~/.ray/auth_token ({error})"
        ) from error
    except RuntimeError as error:
        raise UnavailableError(f"the Ray dashboard refuses: {error}") from error


def _start(client: Any, **job: Any) -> str:
    """Submit, once the nodes' agents are up: they start some seconds after the dashboard."""
    deadline = time.monotonic() + _AGENT_WAIT_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"no node takes the job: {error} (two clusters on one machine need a --dashboard-agent-listen-port each)"
                ) from error
        time.sleep(_POLL_S)


def _known(client: Any, submission_id: str) -> bool:
    return any(job.submission_id == submission_id for job in client.list_jobs())


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
