"""Claim: one, two or four cores, any chunk size, any order of files, and a worker killed in mid-run give the same
snapshot and the same reports, to the byte.

Every variation curates the same files in a fresh process, home and root; SHA-256 digests of all files of the snapshot,
`report.json`, `report.html` and `manifest.json` among them, are compared with those of the first run.

    python benchmarks/curation_identical.py corpora/0.25
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation_run import Curation, brief, curation
from machine import MB, headline, versions, write_result

from llmray import console


def main(argv: Sequence[str] | None = None) -> int:
    """Run all variations, print the table, write the result; 1 where a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder of part-*.jsonl")
    parser.add_argument("--files", type=int, help="take this many files only")
    parser.add_argument("--num-cpus", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--chunk-megabytes", type=float, nargs="*", default=[1, 5, 64])
    parser.add_argument("--kill-after", type=float, nargs="*", default=[2.0, 6.0], help="seconds into the run")
    args = parser.parse_args(argv)
    files = sorted(args.corpus.glob("part-*.jsonl"))[: args.files]
    shuffled = random.Random(0).sample(files, len(files))
    variations: list[tuple[str, Sequence[Path], dict[str, Any]]] = [
        *((f"{cpus} CPUs", files, {"num_cpus": cpus}) for cpus in args.num_cpus),
        *((f"chunks of {size:g} MB", files, {"chunk_bytes": round(size * MB)}) for size in args.chunk_megabytes),
        ("files in reverse", files[::-1], {}),
        ("files shuffled", shuffled, {}),
        *((f"a worker killed after {after:g} s", files, {"kill_after_s": after}) for after in args.kill_after),
    ]
    first: Curation | None = None
    rows, measures = [], []
    for name, sources, options in variations:
        with tempfile.TemporaryDirectory(prefix="identical-") as scratch:
            made = curation(sources, Path(scratch), cores=None, **options)
        first = first or made
        differ = sorted(path for path in {*first.files, *made.files} if first.files.get(path) != made.files.get(path))
        tried = "kill_after_s" not in options or bool(made.killed)
        same = not differ and made.digest == first.digest and tried
        print(f"{name}: {made.digest[:12]}, {made.run.seconds:.1f} s", file=sys.stderr, flush=True)
        rows.append(
            [
                name,
                made.digest[:12],
                "yes" if same else "NO",
                len(made.files),
                ", ".join(made.killed),
                f"{made.run.seconds:.1f}",
            ]
        )
        measures.append(
            {"variation": name, "identical": same, "files_that_differ": differ, "killed": made.killed, **brief(made)}
        )
    print(headline())
    print(console.table(["variation", "digest", "identical", "files", "killed", "wall s"], rows))
    good = all(one["identical"] for one in measures)
    body = {"versions": versions("ray", "numpy", "pyarrow"), "corpus": args.corpus.name, "num_files": len(files)}
    path = write_result("curation-identical", __doc__.split("\n\n")[0], {**body, "measured": measures, "met": good})
    print(path.name)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
