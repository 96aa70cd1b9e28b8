"""Every job by `ray job submit` on a cluster that `ray start --head` started, with its true exit code."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Lived
from small_life import ROOT, free_port

from llmray.client import jobs
from llmray.client.http import Client

pytestmark = [pytest.mark.ray, pytest.mark.serve, pytest.mark.slow, pytest.mark.timeout(1200)]

RAY = str(Path(sys.executable).with_name("ray"))
TRAIN = ["--train.max_steps", "2", "--train.eval_rows", "8", "--train.num_workers", "1"]


@pytest.fixture(scope="module")
def head(ray_cluster: None, lived: Lived) -> Iterator[str]:
    """The dashboard of a cluster of its own; the shared one has made the token that both use."""
    port, dashboard = free_port(), free_port()
    environment = {**lived.life.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    ports.append(f"--ray-client-server-port={free_port()}")
    # A folder of its own: in the usual one Ray notes the cluster's address, and later clusters are mistaken for it. Its
    # path is short, since sockets lie in it.
    folder = tempfile.mkdtemp(prefix="ray-")
    started = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}", *ports],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert started.stdout is not None
    said = ""
    for line in started.stdout:
        said += line
        if "Ray runtime started" in line:
            break
    assert "Ray runtime started" in said, said
    yield f"http://127.0.0.1:{dashboard}"
    for process in psutil.Process(started.pid).children(recursive=True):  # a polite end takes half a minute
        with contextlib.suppress(psutil.NoSuchProcess):  # gone with its parent
            process.kill()
    started.kill()
    started.stdout.close()
    started.wait()
    shutil.rmtree(folder, ignore_errors=True)


def submit(head: str, lived: Lived, script: str, *arguments: str) -> tuple[int, str]:
    """Exit code and log of a job."""
    log: list[str] = []
    code = jobs.submit(
        script,
        arguments,
        address=head,
        working_dir=str(ROOT),
        env={"LLMRAY_HOME": str(lived.life.home)},
        on_log=log.append,
    )
    return code, "".join(log)


def test_curate_by_the_command_line(head: str, lived: Lived) -> None:
    environment = {"env_vars": {"LLMRAY_HOME": str(lived.life.home)}}
    entry = ["python", "jobs/curate.py", "--sources", str(lived.life.raw / "questions.jsonl.gz"), "--name", "again"]
    done = subprocess.run(
        [
            RAY,
            "job",
            "submit",
            "--address",
            head,
            "--working-dir",
            ".",
            "--runtime-env-json",
            json.dumps(environment),
            "--",
            *entry,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "again@latest is" in done.stdout
    with lived.life.registry() as registry:
        assert registry.resolve("again@latest", "dataset").manifest["report"]["rows"]["kept"] > 100


def test_train_then_a_gate_that_refuses_exits_3(head: str, lived: Lived) -> None:
    code, log = submit(head, lived, "jobs/train.py", "--model", "docs-base@latest", "--name", "short", *TRAIN)
    assert code == 0, log
    arguments = [
        "--model",
        "short@latest",
        "--promote_to",
        "production",
        "--evaluate.max_rows",
        "60",
        "--evaluate.num_workers=1",
    ]
    code, log = submit(head, lived, "jobs/evaluate.py", *arguments)
    assert code == 3, log
    assert "short@production stays where it is" in log
    with lived.life.registry() as registry:
        assert registry.alias("short", "production", "model") is None


def test_tune_within_a_budget_and_beyond_it(head: str, lived: Lived) -> None:
    search = [
        "--model",
        "docs-base@latest",
        "--tune.space",
        '{"lr": "loguniform(1e-3, 3e-3)"}',
        "--tune.num_trials",
        "1",
        *TRAIN,
    ]
    best = lived.life.home / "best.yaml"
    within = ["--budget.core_seconds", "200", "--tune.max_trial_s", "120", "--output", str(best)]
    code, log = submit(head, lived, "jobs/tune.py", *search, *within)
    assert code == 0, log
    options = yaml.safe_load(best.read_text())["train"]
    assert 1e-3 < options.pop("lr") < 3e-3
    assert options == {"max_steps": 2, "eval_rows": 8, "num_workers": 1}
    code, log = submit(head, lived, "jobs/tune.py", *search, "--budget.core_seconds", "1")
    assert code == 4, log


def test_align_and_monitor_what_was_served_before(head: str, lived: Lived) -> None:
    code, log = submit(
        head,
        lived,
        "jobs/align.py",
        "--model",
        "docs:1",
        "--name",
        "aligned",
        "--align.max_steps",
        "2",
        "--align.num_workers",
        "1",
    )
    assert code == 0, log
    assert "reward_accuracy" in log
    code, log = submit(head, lived, "jobs/monitor.py", "--model", "docs:1")
    assert code == 0, log
    assert "drift: what people ask is no longer usual" in log


def test_deploy_stays_until_it_is_stopped(head: str, lived: Lived) -> None:
    port = free_port()
    code, log = submit(head, lived, "jobs/deploy.py", "--prompt", "ask-docs@production", "--serve.port", str(port))
    assert code == 0, log
    client = Client(f"http://127.0.0.1:{port}")
    assert client.healthy()
    with lived.life.registry() as registry:
        assert client.models()[0]["variants"][0]["digest"] == registry.alias("docs", "production", "model")
    code, log = submit(head, lived, "jobs/deploy.py", "--prompt", "ask-nobody@production", "--serve.port", str(port))
    assert code == 2, log
    code, log = submit(head, lived, "jobs/deploy.py", "--stop", "true")
    assert code == 0, log
    assert not client.healthy()


def test_lifecycle_goes_on_from_the_same_home(head: str, lived: Lived) -> None:
    code, log = submit(head, lived, "jobs/lifecycle.py", *lived.life.arguments)
    assert code == 0, log
    assert "0 steps run" in log
