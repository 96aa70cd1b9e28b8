"""Claim: on at least 1 GB of text and two cores the whole near-duplicate job is 50 times as fast as datatrove 0.10 and
10 times as fast as data-juicer 1.6, within 4 GiB.

The same corpus, shingle size, threshold, bands and rows for all. The job is files in, kept rows out; ours also verifies
every pair and writes removed rows, clusters, an index and two reports, and its time holds the start of Ray. Peers run on
slices that they can finish. A slice charges their start to few bytes, so two slices are run and the headline ratio takes
their *marginal* speed, bytes added over seconds added, which flatters them; the plain speed of the larger slice is
beside it. Their result is not checked: neither verifies its candidates.

    python benchmarks/curation_peers.py corpora/1 --venvs peers-venvs --peer-megabytes 8 32
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml
from curation_run import brief, curation, near_config
from machine import MB, Run, headline, measured, memory, versions, write_result

from llmray import console
from llmray.data.banding import Banding

PEERS = Path(__file__).parent / "peers"
CORES = 2
TARGETS = {"datatrove": 50.0, "data-juicer": 10.0}
PEAK_GIB = 4.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run all three, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder of part-*.jsonl")
    parser.add_argument(
        "--venvs", type=Path, required=True, help="folder of the peers' virtual environments; made once"
    )
    parser.add_argument(
        "--peer-megabytes", type=float, nargs="+", default=[8, 32], help="slices of text that peers get"
    )
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--without", nargs="*", default=[], choices=["llmray", *TARGETS], help="left out of this run")
    args = parser.parse_args(argv)
    config = near_config(args.threshold, args.recall)
    banding, words = config.dedup.banding(), config.dedup.shingle_words
    measures: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        slices = [
            cut_slice(args.corpus, Path(scratch) / f"slice-{size:g}", size) for size in sorted(args.peer_megabytes)
        ]
        for name, peer in (("datatrove", datatrove), ("data-juicer", data_juicer)):
            if name not in args.without:
                python = environment(args.venvs, name)
                measures[name] = [
                    peer_run(
                        peer,
                        Job(
                            python=python,
                            work=Path(scratch) / f"{name}-{part.name}",
                            part=part,
                            banding=banding,
                            words=words,
                            threshold=args.threshold,
                        ),
                    )
                    for part in slices
                ]
            )
    return rows, ratios


def _count(path: Path) -> int:
    return len(path.read_bytes().splitlines())


def _quiet(work: Path) -> dict[str, str]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    homes = {"HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    return {**one_thread, **homes, "PYTHONPATH": ""}


if __name__ == "__main__":
    sys.exit(main())
