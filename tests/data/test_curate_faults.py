"""What happens to a curation in mid-run changes nothing of what comes out: killed workers, drivers and nodes."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WORDS = [f"word{number}" for number in range(300)]


def records(folder: Path, count: int = 200) -> list[dict[str, Any]]:
    """Numbered texts, every third of them followed by a near copy."""
    chance = random.Random(3)
    texts = [chance.choices(WORDS, k=40) for _ in range(count)]
    for at in range(1, count, 3):
        texts[at] = [*texts[at - 1][:-1], "edited"]
    return [{"text": " ".join([f"row{at}", *words]), "group": str(folder)} for at, words in enumerate(texts)]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def script(name: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1])])
    return subprocess.run(
        [sys.executable, str(here / "faulty_runs.py"), name, str(folder)],
        env={**inherited, "PYTHONPATH": paths, "LLMRAY_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_worker_killed_in_mid_run_changes_no_byte(tmp_path: Path) -> None:
    rows = records(tmp_path)
    write(tmp_path / "raw" / "a.jsonl", [*rows, {"text": f"a marker {tmp_path}", "group": str(tmp_path)}])
    made = script("worker", tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "died").exists()
    assert (tmp_path / "died-fitting").exists()
    report = orjson.loads(next((tmp_path / "interrupted").rglob("report.json")).read_bytes())
    assert report["rules"]["far_from_mean"] >= report["rules"]["length"] == 1
    assert report["repeats"]["near"] > 50
    assert files_of(tmp_path / "interrupted") == files_of(tmp_path / "whole")


def test_a_driver_that_was_stopped_repeats_the_blocks_in_hand_and_no_more(tmp_path: Path) -> None:
    rows = records(tmp_path)
    rows[150]["text"] += " stop!"
    write(tmp_path / "raw" / "a.jsonl", rows)
    assert script("resume", tmp_path).returncode == -signal.SIGKILL
    done = sorted((tmp_path / "work").glob("*/chunks/*/done.json"))
    assert len(done) > 4
    again = script("resume", tmp_path)
    assert again.returncode == 0, again.stderr
    seen = Counter((tmp_path / "seen-in-all").read_text().split())
    assert len(seen) == len(rows)
    # Two workers, and a chunk of 4,000 bytes holds some dozen rows.
    repeated = sum(count - 1 for count in seen.values())
    in_a_chunk = 4000 // min(len(orjson.dumps(row)) for row in rows) + 1
    assert repeated <= 2 * in_a_chunk < len(rows) // 2
    assert files_of(tmp_path / "interrupted") == files_of(tmp_path / "whole")
    assert list((tmp_path / "work").iterdir()) == []


def test_a_node_that_ends_in_mid_run_changes_no_byte(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "a.jsonl", records(tmp_path))
    made = script("nodes", tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "ran").exists()
    assert files_of(tmp_path / "interrupted") == files_of(tmp_path / "whole")
