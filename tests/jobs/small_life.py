"""The lifecycle on a smaller setting: the documentation of some modules, a model of a few hundred thousand parameters."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmray.data.python_docs import docs_rows, walk
from llmray.registry.registry import Registry

ROOT = Path(__file__).parents[2]
MODULES = ("asyncio", "collections", "datetime", "email", "http", "json", "logging", "os", "re", "unittest", "urllib")


@dataclass(frozen=True, kw_only=True)
class Life:
    """A home, its raw rows, and how the lifecycle is called on it."""

    home: Path
    raw: Path
    port: int

    @property
    def arguments(self) -> list[str]:
        gate = {
            "heldout_bytes": {"direction": "lower", "margin": 0.05},
            "choice": {"direction": "higher", "margin": 0.3},
        }
        small = {
            "sources": str(self.raw / "*.jsonl.gz"),
            "output": str(self.home / "report.html"),
            "curate.validation_fraction": 0.3,
            "curate.heldout_fraction": 0.2,
            "base.hidden_size": 64,
            "base.num_heads": 1,
            "base.intermediate_size": 128,
            "base.num_layers": 2,
            "base.vocab_size": 1024,
            "pretrain.max_steps": 60,
            "pretrain.num_workers": 1,
            "pretrain.accumulation": 2,
            "evaluate.num_workers": 1,
            "tune.num_trials": 1,
            "trial_steps": 10,
            "tune.max_trial_s": 120,
            "budget.core_seconds": 400,
            "train.max_steps": 40,
            "train.checkpoint_every": 10,
            "evaluate.max_rows": 120,
            "gate.tasks": json.dumps(gate),
            "gate.min_n": 20,
            "traffic.usual": 60,
            "traffic.max_tokens": 8,
            "align.max_steps": 20,
            "rollout.min_requests": 4,
            "serve.port": self.port,
        }
        return [word for name, value in small.items() for word in (f"--{name}", str(value))]

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return {**inherited, "LLMRAY_HOME": str(self.home)}

    def registry(self) -> Registry:
        return Registry.open(f"sqlite:///{self.home / 'registry.db'}")

    def run(self, script: str, *arguments: str, timeout_s: float = 600) -> "subprocess.CompletedProcess[str]":
        """A job, started directly."""
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run_and_kill(self, script: str, arguments: Sequence[str], *, at: str) -> str:
        """A job whose driver is killed as soon as it says `at`; returns what it had said. Its cluster ends with it."""
        job = subprocess.Popen(
            [sys.executable, str(ROOT / script), *arguments],
            env=self.environment,
            cwd=self.home,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert job.stderr is not None
        said = ""
        for line in job.stderr:
            said += line
            if at in line:
                break
        job.send_signal(signal.SIGKILL)
        job.stderr.close()
        job.wait()
        return said


def make_raw(folder: Path) -> Path:
    """Raw rows about some modules of the running Python."""
    objects, _ = walk()
    chosen = [entry for entry in objects if entry["module"].split(".")[0] in MODULES]
    folder.mkdir(parents=True)
    for name, rows in docs_rows(chosen).items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
