"""Claim: adding 1% of new rows to a snapshot takes at most 3% of the time of curating everything.

A corpus without its last 1% becomes a snapshot, then that last 1% is curated `against` it: new documents, and copies of
old ones among them. Times are those of `curate` on a cluster whose workers are up, each in a fresh process; wall times
with the start of Ray and its workers stand beside them. What the increment removes is compared with what it must: every labelled copy among the
new rows that is at least `threshold` like a row of the snapshot, by plain-Python Jaccard.

    python benchmarks/curation_increment.py corpora/1
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import orjson
from curation_run import brief, curation
from jaccard import jaccard, shingles
from machine import MB, headline, memory, versions, write_result
from pyarrow import parquet

from llmray import console

MOST = 0.03


def main(argv: Sequence[str] | None = None) -> int:
    """Curate, add, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder of part-*.jsonl and pairs.parquet")
    parser.add_argument("--share", type=float, default=0.01, help="bytes that are added, as a share of the corpus")
    parser.add_argument("--threshold", type=float, default=0.8)
    args = parser.parse_args(argv)
    files = sorted(args.corpus.glob("part-*.jsonl"))
    with tempfile.TemporaryDirectory(prefix="increment-") as scratch:
        folder = Path(scratch)
        new, rest, added = _part(args.corpus, files, folder / "new", args.share)
        full = curation(rest, folder / "run", threshold=args.threshold, warm=True)
        more = curation([new], folder / "run", threshold=args.threshold, against=full.uri, warm=True)
        found, wanted = _recall(Path(full.uri), Path(more.uri), new, rest, args)
    ratio = more.job_s / full.job_s
    rows = [
        [
            name,
            f"{made.job_s:.2f}",
            f"{made.run.seconds:.2f}",
            f"{made.report['rows']['in']:,}",
            f"{made.report['rows']['kept']:,}",
        ]
        for name, made in (("all", full), (f"{added / MB:.1f} MB more", more))
    ]
    print(headline())
    print(console.table(["curated", "job s", "wall s", "rows in", "rows kept"], rows))
    print(f"the increment takes {ratio:.1%} of the full run; {found} of {wanted} labelled repeats of old rows found")
    body = {
        "versions": versions("ray", "numpy", "pyarrow"),
        "corpus": args.corpus.name,
        "added_bytes": added,
        "full": {**brief(full), **memory(full.run)},
        "increment": {**brief(more), **memory(more.run)},
        "ratio": round(ratio, 4),
        "repeats_of_old_rows": {"labelled": wanted, "found": found},
        "met": ratio <= MOST,
    }
    print(write_result("curation-increment", __doc__.split("\n\n")[0], body).name)
    return 0


def _part(corpus: Path, files: Sequence[Path], folder: Path, share: float) -> tuple[Path, list[Path], int]:
    """The last rows of the last file as the new file, and all the rest, which is 1% smaller than the corpus."""
    folder.mkdir(parents=True)
    lines = files[-1].read_bytes().splitlines(keepends=True)
    wanted = share * orjson.loads((corpus / "corpus.json").read_bytes())["file_bytes"]
    size, cut = 0, len(lines)
    while size < wanted and cut > 0:
        cut -= 1
        size += len(lines[cut])
    new, kept = folder / "new.jsonl", folder / files[-1].name
    new.write_bytes(b"".join(lines[cut:]))
    kept.write_bytes(b"".join(lines[:cut]))
    return new, [*files[:-1], kept], size


def _recall(old: Path, snapshot: Path, new: Path, rest: Sequence[Path], args: argparse.Namespace) -> tuple[int, int]:
    """New rows that went of those that repeat a labelled old one which had stayed, and how many those are."""
    fresh = [orjson.loads(line) for line in new.read_bytes().splitlines()]
    number_of = {record["id"]: number for number, record in enumerate(fresh, 1)}
    pairs = parquet.read_table(args.corpus / "pairs.parquet").to_pylist()
    pairs = [pair for pair in pairs if pair["id_b"] in number_of and pair["id_a"] not in number_of]
    stayed = _rows(old / "kept")
    pairs = [pair for pair in pairs if (pair["file_a"], pair["row_a"]) in stayed]
    text_of = _texts(rest, {(pair["file_a"], pair["row_a"]) for pair in pairs})
    wanted = set()
    for pair in pairs:
        text = fresh[number_of[pair["id_b"]] - 1]["text"]
        if jaccard(shingles(text), shingles(text_of[pair["file_a"], pair["row_a"]])) >= args.threshold:
            wanted.add(number_of[pair["id_b"]])
    gone = {row for file, row in _rows(snapshot / "removed") if file == new.name}
    return len(wanted & gone), len(wanted)


def _rows(folder: Path) -> set[tuple[str, int]]:
    """File name and number of the rows in a folder of a snapshot."""
    table = parquet.read_table(folder, columns=["source", "row"]).to_pylist()
    return {(Path(record["source"]).name, record["row"]) for record in table}


def _texts(files: Sequence[Path], wanted: set[tuple[str, int]]) -> dict[tuple[str, int], str]:
    found: dict[tuple[str, int], str] = {}
    for path in files:
        if rows := {row for name, row in wanted if name == path.name}:
            with path.open("rb") as lines:
                found |= {(path.name, n): orjson.loads(line)["text"] for n, line in enumerate(lines, 1) if n in rows}
    return found


if __name__ == "__main__":
    sys.exit(main())
