"""Where sharding the bucket names over several tasks begins to pay, and what Ray's shuffle would cost instead.

Made-up bucket names, a third of them met twice, lie in the work folder as `prepare` leaves them. One task sorts them
all; then as many shards as there are cores, each a task, and the union; then, for the smaller sizes, Ray Data groups
the same names by its own shuffle. Times are of warm workers; memory is the peak of one task. All three find the same.

    python benchmarks/curation_crossover.py --millions 1 5 20 50
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from llmray import cluster, console
from llmray.data import stages
from llmray.data.config import CurateConfig
from llmray.data.places import Places, chunk_name
from llmray.data.stages import Job
from llmray.data.work import Work

BANDS = 16
CHUNK_ROWS = 14_000
"""Rows of a 32 MB chunk of 2.3 KB documents."""
SHUFFLE_UP_TO = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 5, 20, 50], help="bucket names, in millions")
    parser.add_argument("--num-cpus", type=int, default=2)
    args = parser.parse_args(argv)
    cluster.connect(num_cpus=args.num_cpus)
    rows = [_size(millions, args.num_cpus) for millions in args.millions]
    headers = [
        "million names",
        "rows",
        "one task s",
        "GiB",
        f"{args.num_cpus} shards s",
        "GiB a task",
        "Ray's shuffle s",
    ]
    print(console.table(headers, rows))
    return 0


def _size(millions: float, shards: int) -> list[object]:
    with tempfile.TemporaryDirectory() as folder:
        num_rows = int(millions * 1e6 / BANDS)
        jobs = [_made_up(Path(folder) / name, num_rows) for name in ("one", "sharded")]
        ray.get([_warm.remote() for _ in range(2 * shards)])
        began = time.perf_counter()
        one_peak = ray.get(_shard.remote(jobs[0], 0, 1))
        batches = ray.get(_join.remote(jobs[0], 1))
        one_s = time.perf_counter() - began
        began = time.perf_counter()
        peaks = ray.get([_shard.remote(jobs[1], number, shards) for number in range(shards)])
        assert ray.get(_join.remote(jobs[1], shards)) == batches
        sharded_s = time.perf_counter() - began
        for name in ("members_M", "offsets_B1"):
            found = [np.load(job.work.path("batches") / f"{name}.npy") for job in jobs]
            assert np.array_equal(*found), name
        shuffled_s = _shuffled(jobs[0]) if millions <= SHUFFLE_UP_TO else None
    gib = 1 << 20  # kilobytes
    return [millions, num_rows, one_s, one_peak / gib, sharded_s, max(peaks) / gib, shuffled_s]


def _made_up(folder: Path, num_rows: int) -> Job:
    """A work folder with the bucket names of rows, as far as matching looks at it."""
    work = Work(uri=str(folder))
    chance = np.random.default_rng(1)
    bases = np.append(np.arange(0, num_rows, CHUNK_ROWS), num_rows)
    names = chance.integers(0, 2**64, (num_rows, BANDS), np.uint64)
    twins = chance.permutation(num_rows)[: num_rows // 3 // 2 * 2].reshape(-1, 2)
    names[twins[:, 1]] = names[twins[:, 0]]
    for number, (low, high) in enumerate(itertools.pairwise(bases)):
        flat = names[low:high].ravel()
        order = np.argsort(flat)
        with work.piece(chunk_name(number)) as piece:
            np.save(piece.folder / "hashes.npy", flat[order])
            np.save(piece.folder / "owners.npy", (order // BANDS).astype(np.uint32))
            piece.finish()
    with work.piece("judged") as piece:
        np.save(piece.folder / "original_R.npy", np.ones(num_rows, bool))
        np.save(piece.folder / "rank_R.npy", chance.permutation(num_rows))
        np.save(piece.folder / "length_R.npy", np.full(num_rows, 2300))
        piece.finish()
    none = np.zeros(len(bases) - 1, np.int64)
    places = Places(work=work, sources=["made-up"], source_C=none, bases_C1=bases, lines_C=none, bad_C=none)
    return Job(config=CurateConfig(), work=work, places=places, base="", entries=num_rows * BANDS)


def _shuffled(job: Job) -> float:
    """The same names grouped by Ray Data."""
    import pyarrow as pa

    names = np.concatenate(
        [np.load(job.work.path(chunk_name(chunk)) / "hashes.npy") for chunk in range(job.places.num_chunks)]
    )
    table = pa.table({"name": names.view(np.int64), "row": np.arange(len(names))})
    began = time.perf_counter()
    grouped = ray.data.from_arrow(table).repartition(16).groupby("name").count()
    met = sum(int((np.asarray(batch["count()"]) > 1).sum()) for batch in grouped.iter_batches(batch_format="numpy"))
    assert met
    return time.perf_counter() - began


@ray.remote(num_cpus=1)
def _shard(job: Job, number: int, shards: int) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: a worker does more than one task
    stages.shard(job, number, shards)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


@ray.remote(num_cpus=1)
def _join(job: Job, shards: int) -> Any:
    return stages.join(job, shards)


@ray.remote(num_cpus=1)
def _warm() -> int:
    return len(stages.__name__)


if __name__ == "__main__":
    sys.exit(main())
