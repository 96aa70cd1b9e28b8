"""What every benchmark writes down: the machine, the versions, the time, and the memory of a whole tree of processes.

Memory is sampled from `/proc/<pid>/smaps_rollup` of a process and all its descendants. PSS (proportional set size)
divides a page by the processes that map it, so shared libraries and Ray's object store count once; the sum of RSS counts
them once a process and is given beside it. Rejected: `resource.getrusage` (one process only, never their sum).
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
MB = 1_000_000
GIB = 1 << 30


def hardware() -> dict[str, Any]:
    """Processor, cores and memory; never a host's name."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    flags = next((line.split(":", 1)[1].split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")), [])
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "vector_extensions": [flag for flag in ("avx2", "avx512f", "avx512_bf16") if flag in flags],
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


LOAD_BEFORE = round(os.getloadavg()[0], 2)
"""Processes that wanted a core in the minute before: figures of a busy machine are not to be believed."""


def versions(*names: str) -> dict[str, str]:
    """Versions of installed packages."""
    return {name: importlib.metadata.version(name) for name in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One command that was run to its end."""

    seconds: float
    """Wall time from start to exit of the whole process."""
    peak_pss_bytes: int
    """Largest sum of PSS over the process and all its descendants, file-backed maps included."""
    peak_anonymous_bytes: int
    """The same without file-backed maps: heap and shared memory, which no system can drop."""
    peak_rss_bytes: int
    """Largest sum of RSS."""
    samples: int
    """How often memory was looked at."""
    output: str
    """What it printed on standard output."""


def measured(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cores: int | None = None,
    every_s: float = 0.5,
    limit_s: float = 7200,
) -> Run:
    """Run a command on the first `cores` usable cores and watch the memory of its tree, which ends with this process.

    Raises:
        RuntimeError: it failed, or took longer than `limit_s`; the text holds the end of what it said.
    """
    usable = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603
        ["taskset", "-c", usable, *command],  # noqa: S607
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    watch = _Watch(process.pid, every_s)
    watch.start()
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command[:3])} … has not ended after {limit_s:,.0f} s") from error
    finally:
        seconds = time.perf_counter() - began
        watch.stop()
        if process.poll() is None:
            _end(process.pid)
    if process.returncode:
        said = f"{output[-2000:]}\n{errors[-4000:]}"
        raise RuntimeError(f"{' '.join(command[:3])} … exited with {process.returncode}:\n{said}")
    return Run(
        seconds=seconds,
        peak_pss_bytes=watch.pss,
        peak_anonymous_bytes=watch.anonymous,
        peak_rss_bytes=watch.rss,
        samples=watch.samples,
        output=output,
    )


def _end(pid: int) -> None:
    """Kill a process of ours and its descendants: an interrupted benchmark must leave no cluster behind."""
    for one in tree(pid)[::-1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


class _Watch(threading.Thread):
    def __init__(self, pid: int, every_s: float) -> None:
        super().__init__(daemon=True)
        self.pss = self.rss = self.anonymous = self.samples = 0
        self._pid, self._every_s, self._done = pid, every_s, threading.Event()

    def run(self) -> None:
        while not self._done.is_set():
            began = time.perf_counter()
            sums = {"Rss": 0, "Pss": 0, "Pss_File": 0}
            for pid in tree(self._pid):
                for name, value in _rollup(pid).items():
                    sums[name] += value
            self.pss, self.rss = max(self.pss, sums["Pss"]), max(self.rss, sums["Rss"])
            self.anonymous = max(self.anonymous, sums["Pss"] - sums["Pss_File"])
            self.samples += 1
            # Looking walks the page tables of all that is mapped: it may take a twentieth of a core, and no more.
            self._done.wait(max(self._every_s, 20 * (time.perf_counter() - began)))

    def stop(self) -> None:
        self._done.set()
        self.join()


def tree(pid: int) -> list[int]:
    """A process and its living descendants."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _rollup(pid: int) -> dict[str, int]:
    wanted: dict[str, int] = {}
    try:
        lines = _lines(f"/proc/{pid}/smaps_rollup")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return wanted  # it ended between the listing and the look
    for line in lines:
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss", "Pss_File"):
            wanted[name] = int(rest.split()[0]) * 1024
    return wanted


def memory(run: Run) -> dict[str, float]:
    """The peaks of a run in GiB."""
    return {
        "peak_pss_gib": round(run.peak_pss_bytes / GIB, 3),
        "peak_anonymous_gib": round(run.peak_anonymous_bytes / GIB, 3),
        "peak_rss_gib": round(run.peak_rss_bytes / GIB, 3),
    }


def write_result(name: str, claim: str, body: Mapping[str, Any]) -> Path:
    """A dated JSON file under `benchmarks/results`; a second run on one day replaces the first."""
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{name}.json"
    path.parent.mkdir(exist_ok=True)
    record = {"claim": claim, "date": f"{datetime.now(UTC):%Y-%m-%d}", "hardware": hardware(), "commit": _commit()}
    record["load_before"] = LOAD_BEFORE
    path.write_text(json.dumps({**record, **body}, indent=1, default=_plain) + "\n", encoding="utf-8")
    return path


def headline() -> str:
    """Date and machine in a line."""
    found = hardware()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {found['processor']}, {found['cores_usable']} of {found['cores']} cores, "
        f"{found['memory_gib']} GiB, load before {LOAD_BEFORE}"
    )


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value.item()


def _commit() -> str:
    found = subprocess.run(  # noqa: S603
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
