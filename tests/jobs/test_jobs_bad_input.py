"""What goes wrong is said in one line with its exit code, and leaves nothing half-written."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

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
        ("jobs/monitor.py", ["--model", "docs:7"], "docs"),
        ("jobs/lifecycle.py", ["--name", "No Name"], "cannot be a name"),
    ],
)
def test_what_a_user_must_mend_exits_2_in_one_line(
    tmp_path: Path, script: str, arguments: list[str], told: str
) -> None:
    ended = run(tmp_path / "home", script, *arguments)
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{script}: ")
    assert told in last
    assert "Traceback" not in ended.stderr
    assert not list((tmp_path / "home").glob("artifacts/*/*/manifest.json"))


def test_help_reads_well(tmp_path: Path) -> None:
    for script in sorted((ROOT / "jobs").glob("*.py")):
        ended = run(tmp_path / "home", f"jobs/{script.name}", "--help")
        assert ended.returncode == 0
        assert f"python jobs/{script.name}" in ended.stdout
        assert "Config(" not in ended.stdout


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
