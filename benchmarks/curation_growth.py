"""Claim: from 0.25 to 2 GB the near-duplicate job's time grows no faster than n log n, and two workers do it at least
1.7 times as fast as one, within 4 GiB.

Each size runs on two workers, and one size on one worker too, each run in a fresh process on two cores with nothing to
resume. A worker is a core that Ray may give to tasks; the driver, Ray's own processes and the file system are not held
to it, so that one worker has some help: the speed-up is a lower bound. The exponent is the slope of log time over log
size by least squares; n log n itself has a slope a little above 1 over the same sizes, and that is the bar.

    python benchmarks/curation_growth.py corpora --gigabytes 0.25 0.5 1 2
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from curation_run import brief, curation
from machine import MB, headline, memory, versions, write_result

from llmray import console

PEAK_GIB = 4.0
SPEED_UP = 1.7


def main(argv: Sequence[str] | None = None) -> int:
    """Run every size, fit the exponent, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="folder with one folder a size")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.25, 0.5, 1, 2])
    parser.add_argument(
        "--speed-up-at", type=float, help="size that one worker does too; the second largest by default"
    )
    parser.add_argument("--repetitions", type=int, default=1, help="runs of each; the fastest counts")
    args = parser.parse_args(argv)
    sizes = sorted(args.gigabytes)
    alone = args.speed_up_at or sizes[max(0, len(sizes) - 2)]
    runs = [(size, 2) for size in sizes] + [(alone, 1)]
    measures = [_fastest(args.corpora / f"{size:g}", workers, args.repetitions) for size, workers in runs]
    both = [one for one in measures if one["workers"] == 2]
    summary = _summary(both, measures[-1])
    rows = [
        [
            one["corpus"],
            one["workers"],
            f"{one['job_s']:,.1f}",
            f"{one['wall_s']:,.1f}",
            f"{one['text_bytes'] / MB / one['job_s']:,.1f}",
            f"{one['peak_pss_gib']:.2f}",
        ]
        for one in measures
    ]
    print(headline())
    print(console.table(["GB", "workers", "job s", "wall s", "MB/s of job", "peak GiB (PSS)"], rows))
    for name, value in summary.items():
        print(f"{name}: {value}")
    body = {"versions": versions("ray", "numpy", "pyarrow"), "measured": measures, "summary": summary}
    print(write_result("curation-growth", __doc__.split("\n\n")[0], body).name)
    return 0


def _fastest(corpus: Path, workers: int, repetitions: int) -> dict[str, Any]:
    return min((_measure(corpus, workers) for _ in range(repetitions)), key=lambda one: one["job_s"])


def _measure(corpus: Path, workers: int) -> dict[str, Any]:
    about = orjson.loads((corpus / "corpus.json").read_bytes())
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        made = curation(sorted(corpus.glob("part-*.jsonl")), Path(scratch), num_cpus=workers, cores=2)
        print(f"{corpus.name} GB, {workers} workers: {made.job_s:.1f} s", file=sys.stderr, flush=True)
        # Memory counts in full here: the job may not lean on the page cache of a run before.
        return {
            "corpus": corpus.name,
            "workers": workers,
            "text_bytes": about["text_bytes"],
            **brief(made),
            **memory(made.run),
        }


def _summary(both: Sequence[dict[str, Any]], alone: dict[str, Any]) -> dict[str, Any]:
    size = np.array([one["text_bytes"] for one in both], float)
    rows = np.array([one["rows"]["in"] for one in both], float)
    found: dict[str, Any] = {}
    if len(both) > 1:
        for name in ("job_s", "wall_s"):
            time = np.array([one[name] for one in both])
            found[f"exponent of {name}"] = round(float(np.polyfit(np.log(size), np.log(time), 1)[0]), 3)
        bar = float(np.polyfit(np.log(size), np.log(rows * np.log(rows)), 1)[0])
        found["exponent of n log n over these sizes"] = round(bar, 3)
        # The fixed cost of a job hides its growth: the last step alone has the least of it.
        last = np.log(both[-1]["job_s"] / both[-2]["job_s"]) / np.log(size[-1] / size[-2])
        found["exponent of the last step"] = round(float(last), 3)
        found["grows no faster than n log n"] = bool(max(found["exponent of job_s"], last) <= bar)
    with_two = next(one for one in both if one["corpus"] == alone["corpus"])
    found["speed-up by a second worker"] = round(alone["job_s"] / with_two["job_s"], 2)
    found[f"speed-up of {SPEED_UP} reached"] = found["speed-up by a second worker"] >= SPEED_UP
    found["the same snapshot from one worker and two"] = alone["digest"] == with_two["digest"]
    found["largest peak GiB (PSS)"] = max(one["peak_pss_gib"] for one in both)
    found[f"within {PEAK_GIB:g} GiB"] = found["largest peak GiB (PSS)"] <= PEAK_GIB
    return found


if __name__ == "__main__":
    sys.exit(main())
