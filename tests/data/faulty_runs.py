"""Curations that something happens to, each a process of its own with a cluster of its own.

python faulty_runs.py worker FOLDER    curate; two workers are killed
python faulty_runs.py resume FOLDER    curate; the row that says so kills this process, if nothing has yet
python faulty_runs.py nodes FOLDER     curate on two nodes, of which the second ends in mid-run
"""

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from llmray.artifact import Artifact
from llmray.data.config import CurateConfig
from llmray.data.rules import Outliers

RULES = Outliers(rules=("empty",))


def run(folder: Path, name: str, quality: str, chunk_bytes: int, second_look: tuple[str, ...] = ()) -> Artifact:
    from llmray.data.curate import curate

    return curate(
        [str(folder / "raw" / "*.jsonl")],
        config=CurateConfig(quality=quality, second_look=second_look, rows_per_part=60, outliers=RULES),
        root_uri=str(folder / name),
        work_uri=str(folder / "work"),
        chunk_bytes=chunk_bytes,
    )


def worker(folder: Path) -> None:
    """A worker is killed while it prepares a chunk, another one while it learns."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    looks = ("troublemakers:DIES_FITTING",)
    run(folder, "interrupted", "troublemakers:dies_once", 4000, looks)
    run(folder, "whole", "troublemakers:dies_once", 1 << 20, looks)
    ray.shutdown()


def resume(folder: Path) -> None:
    """Killed once; called again, it ends, and then makes the same once more without interruption."""
    import ray

    (folder / "driver").write_text(str(os.getpid()))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    quality = "troublemakers:stops_the_driver_once"
    run(folder, "interrupted", quality, 4000)
    (folder / "seen").rename(folder / "seen-in-all")
    run(folder, "whole", quality, 1 << 20)
    ray.shutdown()


def nodes(folder: Path) -> None:
    """The second node ends while it prepares a chunk."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second: Any = cluster.add_node(num_cpus=1)
    os.mkfifo(folder / "running")
    os.mkfifo(folder / "never")

    def end_the_second() -> None:
        (folder / "running").read_text()
        cluster.remove_node(second, allow_graceful=False)

    (folder / "second").write_text(second.node_id)
    try:
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        ending = threading.Thread(target=end_the_second)
        ending.start()
        quality = "troublemakers:waits_on_the_second_node_once"
        run(folder, "interrupted", quality, 4000)
        ending.join()
        cluster.wait_for_nodes(timeout=60)  # until Ray, too, knows that there is one node left
        run(folder, "whole", quality, 1 << 20)
    finally:
        ray.shutdown()
        cluster.shutdown()  # and with it the address of the cluster, by which others would be misled


if __name__ == "__main__":
    {"worker": worker, "resume": resume, "nodes": nodes}[sys.argv[1]](Path(sys.argv[2]))
