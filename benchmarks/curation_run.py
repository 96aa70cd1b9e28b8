"""One near-duplicate curation in a process of its own, so that its time, memory and bytes can be compared.

The benchmarks start this as a command, with a home, a root and a work folder that nobody has used: nothing is resumed
or found in a cache. Outlier rules are off and nothing is held out; what is left is reading, exact and near repeats, and
the whole output with its reports. `--kill-after` kills a busy Ray worker of its own with SIGKILL in mid-run.

    python benchmarks/curation_run.py corpora/0.25 --num-cpus 2 --folder /tmp/run
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from machine import Run, measured

from llmray import artifact, cluster
from llmray.data.config import CurateConfig, Dedup
from llmray.data.features import Statistics
from llmray.data.rules import Outliers

MARK = "RESULT "


@dataclass(frozen=True, kw_only=True, slots=True)
class Curation:
    """What one run gave."""

    run: Run
    job_s: float
    """Seconds of `curate` itself, on a cluster that is up."""
    start_s: float
    """Seconds until Ray was up."""
    digest: str
    uri: str
    files: dict[str, str]
    """SHA-256 of every file of the snapshot, reports and all."""
    report: dict[str, Any]
    killed: list[str]
    """Tasks whose workers were killed."""


def near_config(threshold: float, recall: float) -> CurateConfig:
    """Repeats only: no outlier rules, nothing held out."""
    return CurateConfig(
        dedup=Dedup(threshold=threshold, recall=recall),
        outliers=Outliers(rules=()),
        statistics=Statistics(measures=()),
        heldout_fraction=0.0,
        validation_fraction=0.0,
    )


def curation(
    sources: Sequence[Path],
    folder: Path,
    *,
    num_cpus: int = 2,
    cores: int | None = 2,
    threshold: float = 0.8,
    recall: float = 0.99,
    chunk_bytes: int | None = None,
    kill_after_s: float | None = None,
    against: str | None = None,
    warm: bool = False,
) -> Curation:
    """Run the command on `cores` cores and read what it says."""
    command = [sys.executable, __file__, *map(str, sources), "--folder", str(folder), "--num-cpus", str(num_cpus)]
    command += ["--threshold", str(threshold), "--recall", str(recall)]
    for flag, value in (("--chunk-bytes", chunk_bytes), ("--kill-after", kill_after_s), ("--against", against)):
        if value is not None:
            command += [flag, str(value)]
    command += ["--warm"] if warm else []
    env = {"LLMRAY_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""}
    run = measured(command, env=env, cores=cores)
    line = next(line for line in run.output.splitlines() if line.startswith(MARK))
    said = json.loads(line.removeprefix(MARK))
    return Curation(run=run, files=_digests(artifact.load(said["uri"])), **said)


def brief(made: Curation) -> dict[str, Any]:
    """What a result file says of a run: no paths, no file list."""
    return {
        "wall_s": round(made.run.seconds, 2),
        "job_s": round(made.job_s, 2),
        "start_s": round(made.start_s, 2),
        "digest": made.digest,
        "rows": made.report["rows"],
        "repeats": made.report["repeats"],
        "dedup": made.report["dedup"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Curate once and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="files, globs or folders")
    parser.add_argument("--folder", type=Path, required=True, help="gets everything that is written")
    parser.add_argument("--num-cpus", type=int, default=2)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--chunk-bytes", type=int)
    parser.add_argument("--kill-after", type=float, help="seconds after which a busy worker is killed")
    parser.add_argument("--warm", action="store_true", help="curate a few rows first, so that workers are up")
    parser.add_argument("--against", help="URI of the snapshot that is added to")
    args = parser.parse_args(argv)
    from llmray.data.curate import curate

    began = time.perf_counter()
    cluster.connect(num_cpus=args.num_cpus)
    if args.warm:
        _warm(args.threshold, args.recall)
    start_s = time.perf_counter() - began
    killer = _Killer(args.kill_after) if args.kill_after is not None else None
    options: dict[str, Any] = {"chunk_bytes": args.chunk_bytes, "against": args.against}
    began = time.perf_counter()
    if killer:
        killer.start()
    made = curate(
        args.sources,
        config=near_config(args.threshold, args.recall),
        root_uri=str(args.folder / "artifacts"),
        **{name: value for name, value in options.items() if value is not None},
    )
    job_s = time.perf_counter() - began
    result = {
        "job_s": job_s,
        "start_s": start_s,
        "digest": made.digest,
        "uri": made.uri,
        "report": dict(made.report),
        "killed": killer.stop() if killer else [],
    }
    print(MARK + json.dumps(result))
    return 0


def _warm(threshold: float, recall: float) -> None:
    """Workers start and load what they need while nobody counts."""
    from llmray.data.curate import curate

    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        for number in range(8):  # More files than cores: every worker takes part.
            rows = (json.dumps({"text": f"row {row} of file {number} says {_SAYS}"}) for row in range(50))
            Path(folder, f"{number}.jsonl").write_text("\n".join(rows))
        config, root = near_config(threshold, recall), f"{folder}/artifacts"
        made = curate([f"{folder}/[0-3].jsonl"], config=config, root_uri=root)
        curate([f"{folder}/[4-7].jsonl"], config=config, root_uri=root, against=made.uri)


_SAYS = "what all of them say, so that they meet and are compared as those that are measured will be"


def _digests(made: artifact.Artifact) -> dict[str, str]:
    folder = made.local()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


class _Killer(threading.Thread):
    """Kills the first worker found busy after a while, once."""

    def __init__(self, after_s: float) -> None:
        super().__init__(daemon=True)
        self._after_s, self._done, self._killed = after_s, threading.Event(), list[str]()

    def run(self) -> None:
        self._done.wait(self._after_s)
        while not self._done.is_set() and not self._killed:
            for child in psutil.Process(os.getpid()).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    title = next(iter(child.cmdline()), "").rstrip()
                    if title.startswith("ray::") and not _NO_TASK.match(title):
                        child.kill()
                        self._killed.append(title)
                        break
            self._done.wait(0.01)

    def stop(self) -> list[str]:
        self._done.set()
        self.join()
        return self._killed


_NO_TASK = re.compile(r"ray::(?:IDLE|SPILL|RESTORE|DELETE|.*Agent\b|.*Actor)")
"""Titles of Ray's processes that are in no task. An idle worker has nothing to lose, and the node's agents take the whole
node with them, which is another fault than this."""


if __name__ == "__main__":
    sys.exit(main())
