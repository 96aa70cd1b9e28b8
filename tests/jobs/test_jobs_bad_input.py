"""What goes wrong is said in one line with its exit code, and leaves nothing half-written."""

import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from small_life import ROOT


def run(home: Path, script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        env={**inherited, "LLMRAY_HOME": str(home), **environment},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def job(script: str) -> ModuleType:
    """A job's module, loaded from its file."""
    spec = importlib.util.spec_from_file_location(f"bad_input_{Path(script).stem}", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quietly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process keeps its own logging and its own SIGTERM after a job ran in it."""
    monkeypatch.setattr("llmray.console.setup", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def address(ray_cluster: None) -> str:
    """Where the shared cluster is, for a job that is started directly."""
    import ray

    context = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    return str(context.address_info["address"])


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        ("jobs/curate.py", ["--sources", "absent/*.jsonl"], "names no file"),
        ("jobs/curate.py", ["--curate.dedup.threshold", "1.5"], "dedup.threshold"),
        ("jobs/curate.py", ["--nonsense", "1"], "unrecognized arguments: --nonsense"),
        ("jobs/curate.py", ["--config", "absent.yaml"], "absent.yaml"),
        ("jobs/train.py", ["--model", "base@latest", "--train.zero", "9"], "must be 0, 1, 2 or 3"),
        ("jobs/train.py", ["--model", "base@latest"], "docs@latest"),
        ("jobs/train.py", [], "--train.objective pretrain"),
        ("jobs/tune.py", ["--tune.space", '{"lr": "loguniform(0, 1)"}'], "must start above zero"),
        ("jobs/evaluate.py", ["--model", "Not A Reference"], "is no reference"),
        ("jobs/align.py", ["--align.beta", "0"], "align.beta"),
        ("jobs/deploy.py", ["--serve.port", "99999"], "between 1 and 65535"),
        ("jobs/deploy.py", ["--serve.ttft_limit_s", "0"], "serve.ttft_limit_s"),
        ("jobs/monitor.py", ["--model", "docs:7"], "docs"),
        ("jobs/lifecycle.py", ["--name", "No Name"], "cannot be a name"),
    ],
)
def test_what_a_user_must_mend_exits_2_in_one_line(
    llmray_home: Path,
    quietly: None,
    capsys: pytest.CaptureFixture[str],
    script: str,
    arguments: list[str],
    told: str,
) -> None:
    assert job(script).main(arguments) == 2
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"{script}: ")
    assert told in last
    assert "Traceback" not in said
    assert not list(llmray_home.glob("artifacts/*/*/manifest.json"))


@pytest.mark.parametrize("script", sorted(f"jobs/{path.name}" for path in (ROOT / "jobs").glob("*.py")))
def test_help_reads_well(script: str, quietly: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        job(script).main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"python {script}" in said
    assert "Config(" not in said


def test_disk_that_cannot_be_written_exits_75(tmp_path: Path) -> None:
    ended = run(tmp_path / "home", "jobs/evaluate.py", LLMRAY_HOME="/sys/llmray")
    assert ended.returncode == 75, ended.stderr
    assert "cannot write" in ended.stderr


@pytest.mark.ray
def test_folder_without_rows_exits_2_and_publishes_nothing(tmp_path: Path, address: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    ended = run(tmp_path / "home", "jobs/curate.py", "--sources", "empty.jsonl", RAY_ADDRESS=address)
    assert ended.returncode == 2, ended.stderr
    assert "hold no rows" in ended.stderr
    assert not list((tmp_path / "home").glob("artifacts/*/*/manifest.json"))


@pytest.mark.ray
def test_rows_that_cannot_answer_a_task_end_the_lifecycle_before_anything_is_trained(
    tmp_path: Path, address: str
) -> None:
    rows = [
        json.dumps({"question": f"What does tool number {n} do?", "answer": f"It turns {n} bolts into {n + 1} nuts."})
        for n in range(200)
    ]
    (tmp_path / "raw.jsonl").write_text("\n".join(rows))
    ended = run(
        tmp_path / "home", "jobs/lifecycle.py", "--sources=raw.jsonl", "--curate.dedup.near=false", RAY_ADDRESS=address
    )
    assert ended.returncode == 2, ended.stderr
    assert "no held-out row for the task choice" in ended.stderr
    assert "by --evaluate.tasks and --gate.tasks" in ended.stderr
    assert not list((tmp_path / "home").glob("artifacts/model/*/manifest.json"))


@pytest.mark.ray
def test_malformed_lines_are_quarantined_and_told(tmp_path: Path, address: str) -> None:
    rows = [json.dumps({"text": f"The {word} of the matter is plain for all to see."}) for word in "abcdefgh"]
    (tmp_path / "raw.jsonl").write_text("\n".join([*rows, '{"text": "cut o', '{"text": 5}']))
    ended = run(tmp_path / "home", "jobs/curate.py", "--sources", "raw.jsonl", "--name", "raw", RAY_ADDRESS=address)
    assert ended.returncode == 0, ended.stderr
    assert f"joined the Ray cluster at {address}" in ended.stderr
    [line] = [line for line in ended.stdout.splitlines() if line.startswith("quarantined")]
    assert line.split() == ["quarantined", "2"]
    [quarantine] = (tmp_path / "home").glob("artifacts/dataset/*/quarantine/quarantined.jsonl")
    assert [json.loads(record)["row"] for record in quarantine.read_text().splitlines()] == [9, 10]


def test_cluster_that_is_not_there_exits_75(tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text('{"text": "one line of text that is long enough"}\n')
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        ended = run(tmp_path / "home", "jobs/curate.py", "--sources", "raw.jsonl", RAY_ADDRESS=address)
    assert ended.returncode == 75, ended.stderr
    assert f"RAY_ADDRESS={address}" in ended.stderr
