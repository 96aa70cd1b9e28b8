"""Claim: recall is at least 0.99 at a Jaccard of 0.85 and of threshold + 0.05, and nowhere below the S-curve's promise;
every removed row is at the threshold or above to a row that stays; no unique document is lost.

1. Candidates: signatures of labelled pairs, by Jaccard bin: how many share a band, with a Clopper-Pearson interval beside
   the mean of 1 - (1 - J^r)^b over the same pairs. A bin fails where the promise lies above the interval; the intervals
   hold together at 95% (Bonferroni), since one bin of twelve would fail by chance in a quarter of all sound runs.
2. Recall of the whole job on the labelled corpus: a pair counts as found where not both rows stay, and strictly where
   both lie in one cluster.
3. Precision: rows removed as near repeats, and the kept row that each names, compared again by plain Python from the
   source files; the reported similarity must be that number.
4. Constructed chains, hot buckets, empty and short documents; and brute force over all pairs of a few thousand rows:
   every row that went must have a kept row at the threshold.

    python benchmarks/curation_recall.py corpora/0.25
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from constructed import cases
from curation_run import Curation, brief, curation, near_config
from jaccard import all_pairs, jaccard, same_text, shingles
from machine import headline, versions, write_result
from numpy.typing import NDArray
from pyarrow import parquet
from scipy.stats import beta

from llmray import console
from llmray.data import minhash
from llmray.data.banding import Banding

EDGES = (0.0, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
WANTED = 0.99
Row = tuple[str, int]
"""Source file and row number from 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run all four parts, print tables, write the result; 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder of part-*.jsonl and pairs.parquet")
    parser.add_argument("--files", type=int, help="take this many files only")
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--precision-sample", type=int, default=5000, help="removed rows that are compared again")
    parser.add_argument("--brute-force-rows", type=int, default=4000)
    args = parser.parse_args(argv)
    files = sorted(args.corpus.glob("part-*.jsonl"))[: args.files]
    pairs = labelled(args.corpus, {path.name for path in files})
    print(headline())
    curve = s_curve(pairs, files, args)
    print(console.table(["Jaccard", "pairs", "share a band", "interval", "promise", "kept"], _curve_rows(curve)))
    with tempfile.TemporaryDirectory(prefix="recall-") as scratch:
        made = curation(files, Path(scratch) / "corpus", threshold=args.threshold, recall=args.recall)
        job = whole_job(pairs, made, args.threshold)
        exactness = precision(made, files, args)
        built = [construct(case, Path(scratch) / case.name.replace(" ", "-"), args) for case in cases(args.threshold)]
        brute = brute_force(files, Path(scratch) / "brute", args)
    for name, part in (("recall", job), ("precision", exactness), ("brute force", brute)):
        print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in part.items()))
    print(
        console.table(
            ["constructed", "rows", "kept", "at most", "unique lost", "near, below threshold"], _case_rows(built)
        )
    )
    met = {
        "S-curve": all(one["kept_promise"] for one in curve),
        "recall at 0.85": (job["recall at J >= 0.85"] or 0) >= WANTED,
        "recall at threshold + 0.05": (job[f"recall at J >= {args.threshold + 0.05:.2f}"] or 0) >= WANTED,
        "precision": exactness["below the threshold"] == 0 and exactness["misreported"] == 0,
        "nothing lost": all(one["unique_lost"] == 0 and one["unfounded"] == 0 for one in built)
        and not brute["unfounded"],
        "repeats gone": all(one["kept"] <= one["most_kept"] for one in built),
    }
    body = {"versions": versions("ray", "numpy", "pyarrow"), "corpus": args.corpus.name, "threshold": args.threshold}
    body |= {"curve": curve, "job": job, "precision": exactness, "constructed": built, "brute_force": brute, "met": met}
    print(met)
    print(write_result("curation-recall", __doc__.split("\n\n")[0], {**body, "run": brief(made)}).name)
    return 0 if all(met.values()) else 1


def labelled(corpus: Path, names: set[str]) -> list[dict[str, Any]]:
    """Labelled pairs that lie in the files."""
    pairs = parquet.read_table(corpus / "pairs.parquet").to_pylist()
    return [pair for pair in pairs if pair["file_a"] in names and pair["file_b"] in names]


def s_curve(pairs: Sequence[dict[str, Any]], files: Sequence[Path], args: argparse.Namespace) -> list[dict[str, Any]]:
    """How many pairs of each bin share a band, and how many should."""
    config = near_config(args.threshold, args.recall)
    banding, words = config.dedup.banding(), config.dedup.shingling.size
    wanted = sorted({_end(pair, side) for pair in pairs for side in "ab"})
    texts = read_rows(files, wanted)
    number = {row: at for at, row in enumerate(wanted)}
    bands_DN = band_names([texts[row] for row in wanted], banding, words, config.seed)
    left = np.array([number[_end(pair, "a")] for pair in pairs])
    right = np.array([number[_end(pair, "b")] for pair in pairs])
    met = (bands_DN[left] == bands_DN[right]).any(axis=1)
    likeness = np.array([pair["jaccard"] for pair in pairs])
    # The last bin is J = 1 alone.
    bins = [(low, high, (likeness >= low) & (likeness < high)) for low, high in pairwise(EDGES)]
    bins.append((1.0, 1.0, likeness == 1.0))
    curve = []
    for low, high, here in bins:
        if not here.any():
            continue
        count, found = int(here.sum()), int(met[here].sum())
        promise = float(np.mean([banding.candidate_probability(value) for value in likeness[here]]))
        lowest, highest = clopper_pearson(found, count, level=1 - 0.05 / len(bins))
        curve.append(
            {
                "from": low,
                "to": high,
                "pairs": count,
                "share_a_band": found,
                "rate": round(found / count, 4),
                "interval": [round(lowest, 4), round(highest, 4)],
                "promise": round(promise, 4),
                "kept_promise": highest >= promise,
            }
        )
    return curve


def band_names(texts: Sequence[str], banding: Banding, words: int, seed: int) -> NDArray[np.uint64]:
    """Bucket names of texts, as curation makes them [D, N]."""
    return minhash.sketch(texts, minhash.Shingling(size=words), banding, seed)[0]


def clopper_pearson(found: int, count: int, level: float) -> tuple[float, float]:
    """Exact binomial confidence interval (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2
    low = 0.0 if found == 0 else float(beta.ppf(tail, found, count - found + 1))
    high = 1.0 if found == count else float(beta.ppf(1 - tail, found + 1, count - found))
    return low, high


def whole_job(pairs: Sequence[dict[str, Any]], made: Curation, threshold: float) -> dict[str, Any]:
    """Recall of the labelled pairs after everything."""
    gone = {(record["source"], record["row"]) for record in _table(made, "removed", ["source", "row"])}
    cluster = {(r["source"], r["row"]): r["cluster"] for r in _table(made, "clusters", ["source", "row", "cluster"])}
    found: dict[str, Any] = {}
    for low in sorted({threshold, threshold + 0.05, 0.85, 0.95}):
        ends = [(_end(pair, "a"), _end(pair, "b")) for pair in pairs if pair["jaccard"] >= low]
        not_both = sum(a in gone or b in gone for a, b in ends)
        together = sum(a in cluster and cluster[a] == cluster.get(b) for a, b in ends)
        found[f"pairs at J >= {low:.2f}"] = len(ends)
        found[f"recall at J >= {low:.2f}"] = round(not_both / len(ends), 5) if ends else None
        found[f"in one cluster at J >= {low:.2f}"] = round(together / len(ends), 5) if ends else None
    below = [pair for pair in pairs if pair["jaccard"] < 0.5]
    found["unlike pairs in one cluster"] = sum(
        cluster.get(_end(pair, "a"), "") == cluster.get(_end(pair, "b"), "-") for pair in below
    )
    return found


def precision(made: Curation, files: Sequence[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Removed near repeats, compared again with the kept row that each names."""
    removed = _table(made, "removed", ["source", "row", "match", "matched_id", "similarity"])
    near = [record for record in removed if record["match"] == "near"]
    chosen = np.random.default_rng(0).permutation(len(near))[: args.precision_sample]
    sample = [near[number] for number in chosen]
    texts = read_rows(files, {(record["source"], record["row"]) for record in sample})
    wanted = {record["matched_id"] for record in sample}
    kept = {r["id"]: r["text"] for r in _table(made, "kept", ["id", "text"], ids=wanted)}
    below = misreported = not_kept = 0
    for record in sample:
        if record["matched_id"] not in kept:
            not_kept += 1
            continue
        likeness = jaccard(shingles(texts[record["source"], record["row"]]), shingles(kept[record["matched_id"]]))
        below += likeness < args.threshold
        misreported += abs(likeness - record["similarity"]) > 1e-9
    return {
        "removed as near repeats": len(near),
        "compared again": len(sample),
        "below the threshold": below + not_kept,
        "misreported": misreported,
        "precision": round(1 - (below + not_kept) / max(1, len(sample)), 5),
    }


def construct(case: Any, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Curate a constructed case and look for what it lost."""
    kept, _ = _curate_texts(case.texts, folder, args)
    stayed = {number: shingles(case.texts[number]) for number in kept}
    same = {same_text(case.texts[number]) for number in kept}
    unfounded = 0
    for number in set(range(len(case.texts))) - kept:
        mine = shingles(case.texts[number])
        repeats = same_text(case.texts[number]) in same or any(
            jaccard(mine, other) >= args.threshold for other in stayed.values()
        )
        unfounded += not repeats
    return {
        "case": case.name,
        "rows": len(case.texts),
        "kept": len(kept),
        "most_kept": case.most_kept,
        "unique_lost": len(case.unique - kept),
        "unfounded": unfounded,
    }


def brute_force(files: Sequence[Path], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All pairs of the first rows of the corpus, against what the job did."""
    with files[0].open("rb") as lines:
        texts = [orjson.loads(line)["text"] for line, _ in zip(lines, range(args.brute_force_rows), strict=False)]
    kept, seconds = _curate_texts(texts, folder, args)
    pairs = list(all_pairs([shingles(text) for text in texts], args.threshold))
    founded = {a for a, b, _ in pairs if b in kept} | {b for a, b, _ in pairs if a in kept}
    same = {same_text(texts[number]) for number in kept}
    gone = set(range(len(texts))) - kept
    return {
        "rows": len(texts),
        "pairs at the threshold": len(pairs),
        "removed": len(gone),
        "unfounded": sum(n not in founded and same_text(texts[n]) not in same for n in gone),
        "pairs of which both stay": sum(a in kept and b in kept for a, b, _ in pairs),
        "job s": round(seconds, 1),
    }


def _curate_texts(texts: Sequence[str], folder: Path, args: argparse.Namespace) -> tuple[set[int], float]:
    """Numbers of the texts that stay; seconds."""
    folder.mkdir(parents=True)
    source = folder / "texts.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"text": text}, option=orjson.OPT_APPEND_NEWLINE) for text in texts))
    made = curation([source], folder / "run", threshold=args.threshold, recall=args.recall)
    gone = {record["row"] - 1 for record in _table(made, "removed", ["row"])}
    return set(range(len(texts))) - gone, made.job_s


def read_rows(files: Sequence[Path], wanted: Iterable[Row]) -> dict[Row, str]:
    """Texts of rows, by file name and line."""
    by_file: dict[str, set[int]] = {}
    for name, row in wanted:
        by_file.setdefault(name, set()).add(row)
    found: dict[Row, str] = {}
    for path in files:
        rows = by_file.get(path.name, set())
        with path.open("rb") as lines:
            found |= {(path.name, n): orjson.loads(line)["text"] for n, line in enumerate(lines, 1) if n in rows}
    return found


def _table(made: Curation, folder: str, columns: list[str], ids: set[str] | None = None) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for path in sorted((Path(made.uri) / folder).glob("*.parquet")):
        found = parquet.read_table(path, columns=columns, filters=None if ids is None else [("id", "in", ids)])
        records.extend(found.to_pylist())
    return records


def _end(pair: dict[str, Any], side: str) -> Row:
    return pair[f"file_{side}"], pair[f"row_{side}"]


def _curve_rows(curve: Sequence[dict[str, Any]]) -> list[list[object]]:
    return [
        [
            f"{one['from']:.2f} to {one['to']:.2f}",
            one["pairs"],
            f"{one['rate']:.4f}",
            f"{one['interval'][0]:.4f} to {one['interval'][1]:.4f}",
            f"{one['promise']:.4f}",
            "yes" if one["kept_promise"] else "NO",
        ]
        for one in curve
    ]


def _case_rows(built: Sequence[dict[str, Any]]) -> list[list[object]]:
    return [[one[key] for key in ("case", "rows", "kept", "most_kept", "unique_lost", "unfounded")] for one in built]


if __name__ == "__main__":
    sys.exit(main())
