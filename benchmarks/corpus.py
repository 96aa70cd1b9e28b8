"""Claim: the corpus of the curation benchmarks is real English text, grown to any size, and its labels are measured.

Real documents come from Debian's documentation and installed Python packages (`pool.py`). A corpus of any size holds
about a fifth of those, three fifths documents put together from real paragraphs of many sources (unlike one another: no
paragraph is more than a fifth of its document), and a fifth copies (`perturbations.py`) of documents of either sort. A
sample of copies is compared with what they were made from by plain-Python Jaccard (`jaccard.py`) and written to
`pairs.parquet`: the label is what was measured, not what was meant.

Every document is a function of the seed, the pool and its place (shard, row), so shards are made independently, the
first shards of a large corpus are the small corpus, and memory does not grow with size.

    python benchmarks/corpus.py --gigabytes 0.25 1 2 --output corpora --pool corpora/pool
"""

import argparse
import functools
import hashlib
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pool as pools
import pyarrow as pa
from jaccard import jaccard, shingles
from machine import MB, headline, write_result
from numpy.typing import NDArray
from perturbations import CHAIN_LINKS, SHARES, Material, perturb
from pyarrow import parquet

from llmray import console

SHARD_BYTES = 62_500_000
"""Bytes of a file: four make a quarter of a gigabyte (1 GB is 10^9 bytes)."""
SHARE_COPIES, SHARE_REAL = 0.2, 0.25
SHARDS_WITH_REAL = 32
"""The real documents are dealt out over this many shards, 2 GB; later ones hold recombined documents instead."""
MAX_ROWS, SAFE_ROWS = 1 << 16, 4_000
"""Rows that a shard is planned for, and rows that every full shard has: copies are made of those."""
COPY, REAL, MIXED = 0, 1, 2
KINDS = tuple(SHARES)
CHAIN = KINDS.index("chain")
PAIRS = pa.schema(
    [
        *((f"{name}_{side}", kind) for side in "ab" for name, kind in (("id", pa.string()), ("file", pa.string()))),
        ("row_a", pa.int64()),
        ("row_b", pa.int64()),
        ("jaccard", pa.float64()),
        ("perturbation", pa.string()),
    ]
)
"""Two rows (file and line from 1), how alike they are, and how b was made from a."""

Place = tuple[int, int]
"""Shard and row."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each row of a shard is [R]."""

    role: NDArray[np.int8]
    rank: NDArray[np.int64]
    """Its number among the rows of its role."""
    size: NDArray[np.int64]
    """Characters that a recombined document aims at."""
    kind: NDArray[np.int8]
    """Number of the kind of copy in `KINDS`."""
    parent: NDArray[np.int64]
    """Shard and row of what it is a copy of [R, 2]."""
    labelled: NDArray[np.bool_]
    chains: NDArray[np.int64]
    """Rows of chains, in order."""


class Corpus:
    """Documents by place; holds a pool and the plans of shards that were asked for."""

    def __init__(self, pool_folder: Path, seed: int, pairs_per_shard: int) -> None:
        self._pool = pools.load(pool_folder)
        self._seed = seed
        self._label_rate = min(1.0, pairs_per_shard / (SHARE_COPIES * 20_000))
        self._order = np.random.default_rng([seed, 2]).permutation(len(self._pool.documents))
        self._paragraphs = np.asarray(self._pool.paragraphs)
        self._lengths = self._paragraphs[:, 1] - self._paragraphs[:, 0]
        notices = np.linspace(np.searchsorted(self._lengths, 500), np.searchsorted(self._lengths, 900), 16).astype(int)
        self._material = Material(
            words=[word.decode("utf-8", "replace") for word in self._pool.words],
            notices=[self._paragraph(number) for number in notices],
        )
        self.plan = functools.lru_cache(maxsize=None)(self._plan)

    def text(self, place: Place) -> str:
        """The document of a row."""
        shard, row = place
        plan = self.plan(shard)
        if plan.role[row] == REAL:
            number = shard * (len(self._order) // SHARDS_WITH_REAL) + plan.rank[row]
            return self._pool.document(self._order[number]).decode("utf-8", "replace")
        if plan.role[row] == MIXED:
            return self._mixed(place, int(plan.size[row]))
        if plan.kind[row] == CHAIN:
            return self._chain(place, plan)
        generator = random.Random(f"{self._seed}-{shard}-{row}")
        return perturb(KINDS[plan.kind[row]], self.text(self._parent(plan, row)), generator, self._material)

    def made_from(self, place: Place) -> list[Place]:
        """The documents that a copy is compared with: its parent, and the link before it in a chain."""
        shard, row = place
        plan = self.plan(shard)
        if plan.kind[row] != CHAIN:
            return [self._parent(plan, row)]
        number = int(plan.rank[row])
        head = self._head(plan, number)
        return [head, (shard, int(plan.chains[number - 1]))] if number % CHAIN_LINKS else [head]

    def _mixed(self, place: Place, size: int) -> str:
        generator = np.random.default_rng([self._seed, 3, *place])
        choice = int(np.searchsorted(self._lengths, max(size // 5, 110), side="right"))
        numbers = generator.integers(0, choice, size // 80 + 2)
        count = int(np.searchsorted(np.cumsum(self._lengths[numbers] + 2), size)) + 1
        return "\n\n".join(self._paragraph(number) for number in numbers[:count])

    def _chain(self, place: Place, plan: Plan) -> str:
        shard, number = place[0], int(plan.rank[place[1]])
        text = self.text(self._head(plan, number))
        for link in range(number % CHAIN_LINKS + 1):
            generator = random.Random(f"{self._seed}-{shard}-chain-{number // CHAIN_LINKS}-{link}")
            text = perturb("chain", text, generator, self._material)
        return text

    def _head(self, plan: Plan, number: int) -> Place:
        return self._parent(plan, int(plan.chains[number - number % CHAIN_LINKS]))

    def _parent(self, plan: Plan, row: int) -> Place:
        return int(plan.parent[row, 0]), int(plan.parent[row, 1])

    def _paragraph(self, number: int) -> str:
        begin, end = self._paragraphs[number]
        return self._pool.text[begin:end].decode("utf-8", "replace")

    def _roles(self, shard: int) -> NDArray[np.int8]:
        draw = np.random.default_rng([self._seed, 1, shard]).random(MAX_ROWS)
        role = np.where(draw < SHARE_COPIES, COPY, np.where(draw < SHARE_COPIES + SHARE_REAL, REAL, MIXED)).astype(
            np.int8
        )
        most = len(self._order) // SHARDS_WITH_REAL if shard < SHARDS_WITH_REAL else 0
        real = np.flatnonzero(role == REAL)
        role[real[most:]] = MIXED
        return role

    def _plan(self, shard: int) -> Plan:
        role = self._roles(shard)
        generator = np.random.default_rng([self._seed, 4, shard])
        kind = np.where(role == COPY, generator.choice(len(KINDS), MAX_ROWS, p=list(SHARES.values())), -1).astype(
            np.int8
        )
        rank = np.zeros(MAX_ROWS, np.int64)
        for value in (COPY, REAL, MIXED):
            rank[role == value] = np.arange((role == value).sum())
        chains = np.flatnonzero(kind == CHAIN)
        rank[chains] = np.arange(len(chains))
        parent = generator.integers(0, [shard + 1, SAFE_ROWS], (MAX_ROWS, 2))
        for number in range(shard + 1):
            originals = np.flatnonzero(self._roles(number)[:SAFE_ROWS] != COPY)
            here = parent[:, 0] == number
            parent[here, 1] = originals[parent[here, 1] % len(originals)]
        return Plan(
            role=role,
            rank=rank,
            size=np.clip(np.exp(generator.normal(np.log(1800), 0.8, MAX_ROWS)), 500, 16_000).astype(np.int64),
            kind=kind,
            parent=parent,
            labelled=(generator.random(MAX_ROWS) < self._label_rate) & (role == COPY),
            chains=chains,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Make the corpora that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.25])
    parser.add_argument("--output", type=Path, required=True, help="gets one folder a size")
    parser.add_argument("--pool", type=Path, help="folder of the real documents; <output>/pool by default")
    parser.add_argument("--any-version", action="store_true", help="take the packages in the version that apt has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs-per-shard", type=int, default=1000, help="labelled copies in every 62.5 MB")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    pool_folder = args.pool or args.output / "pool"
    pools.build(pool_folder, any_version=args.any_version, workers=args.workers)
    made = []
    for gigabytes in args.gigabytes:
        folder = args.output / f"{gigabytes:g}"
        made.append(grow(folder, pool_folder, round(gigabytes * 1e9), args))
    rows = [
        [
            m["gigabytes"],
            m["documents"],
            round(m["text_bytes"] / MB),
            m["pairs"],
            round(m["text_bytes"] / MB / m["seconds"]),
        ]
        for m in made
    ]
    print(headline())
    print(console.table(["GB", "documents", "MB of text", "labelled pairs", "MB/s"], rows))
    about = json.loads((pool_folder / "pool.json").read_text())
    print(write_result("corpus", __doc__.split("\n\n")[0], {"pool": about, "corpora": made}).name)
    return 0


def grow(folder: Path, pool_folder: Path, num_bytes: int, args: argparse.Namespace) -> dict[str, Any]:
    """Write the files, the labels and `corpus.json` of one size."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    shards = math.ceil(num_bytes / SHARD_BYTES)
    sizes = [min(SHARD_BYTES, num_bytes - shard * SHARD_BYTES) for shard in range(shards)]
    with ProcessPoolExecutor(
        args.workers, initializer=_open, initargs=(pool_folder, args.seed, args.pairs_per_shard)
    ) as to:
        done = list(to.map(write_shard, [folder] * shards, range(shards), sizes))
    labels = pa.concat_tables([labels for _, labels in done])
    seconds = time.perf_counter() - began
    parquet.write_table(labels, folder / "pairs.parquet")
    bins = Counter(f"{min(int(value * 20), 19) / 20:.2f}" for value in labels["jaccard"].to_pylist())
    about = {
        "gigabytes": num_bytes / 1e9,
        "seed": args.seed,
        "documents": sum(figures["documents"] for figures, _ in done),
        "text_bytes": sum(figures["text_bytes"] for figures, _ in done),
        "file_bytes": sum(figures["file_bytes"] for figures, _ in done),
        "bytes_by_role": dict(sum((Counter(figures["roles"]) for figures, _ in done), Counter())),
        "sha256": hashlib.sha256("".join(figures["sha256"] for figures, _ in done).encode()).hexdigest(),
        "pool_sha256": json.loads((pool_folder / "pool.json").read_text())["sha256"],
        "pairs": len(labels),
        "pairs_by_jaccard_from": dict(sorted(bins.items())),
        "pairs_by_perturbation": dict(Counter(labels["perturbation"].to_pylist())),
        "seconds": round(seconds, 1),
    }
    (folder / "corpus.json").write_text(json.dumps(about, indent=1) + "\n")
    return about


def write_shard(folder: Path, shard: int, num_bytes: int) -> tuple[dict[str, Any], pa.Table]:
    """Write one file; its figures and its labels."""
    corpus = _corpus[0]
    plan = corpus.plan(shard)
    digest, roles, size, text_bytes, row = hashlib.sha256(), Counter[str](), 0, 0, 0
    labelled: list[tuple[Place, str]] = []
    with (folder / file_name(shard)).open("wb") as out:
        while size < num_bytes:
            text = corpus.text((shard, row))
            line = orjson.dumps({"id": row_id((shard, row)), "text": text}, option=orjson.OPT_APPEND_NEWLINE)
            out.write(line)
            digest.update(line)
            encoded = len(text.encode())
            roles[("copies", "real", "recombined")[plan.role[row]]] += encoded
            text_bytes, size = text_bytes + encoded, size + len(line)
            if plan.labelled[row]:
                labelled.append(((shard, row), text))
            row += 1
    assert row >= SAFE_ROWS or num_bytes < SHARD_BYTES, f"shard {shard} has {row} rows: lower SAFE_ROWS"
    figures = {
        "documents": row,
        "text_bytes": text_bytes,
        "file_bytes": size,
        "roles": dict(roles),
        "sha256": digest.hexdigest(),
    }
    return figures, _labels(corpus, shard, row, labelled)


def _labels(corpus: Corpus, shard: int, num_rows: int, labelled: Sequence[tuple[Place, str]]) -> pa.Table:
    plan = corpus.plan(shard)
    records: list[dict[str, Any]] = []
    for place, text in labelled:
        mine = shingles(text)
        for number, other in enumerate(corpus.made_from(place)):
            if other[0] != shard or other[1] < num_rows:
                kind = "link" if number else KINDS[plan.kind[place[1]]]
                records.append(_pair(other, place, jaccard(shingles(corpus.text(other)), mine), kind))
    generator = np.random.default_rng([5, shard])
    originals = np.flatnonzero(plan.role[: min(num_rows, SAFE_ROWS)] != COPY)
    for left, right in generator.choice(originals, (50, 2)).tolist():
        if left != right:
            likeness = jaccard(shingles(corpus.text((shard, left))), shingles(corpus.text((shard, right))))
            records.append(_pair((shard, left), (shard, right), likeness, "unrelated"))
    return pa.Table.from_pylist(records, PAIRS)


def _pair(left: Place, right: Place, likeness: float, kind: str) -> dict[str, Any]:
    record: dict[str, Any] = {"jaccard": likeness, "perturbation": kind}
    for side, (shard, row) in (("a", left), ("b", right)):
        record |= {f"id_{side}": row_id((shard, row)), f"file_{side}": file_name(shard), f"row_{side}": row + 1}
    return record


def file_name(shard: int) -> str:
    """File of a shard."""
    return f"part-{shard:04d}.jsonl"


def row_id(place: Place) -> str:
    """The `id` field of a row."""
    return f"{place[0]:04d}-{place[1]:06d}"


_corpus: list[Corpus] = []
"""The process's own; opened once, since a pool's indexes take a moment to load."""


def _open(pool_folder: Path, seed: int, pairs_per_shard: int) -> None:
    _corpus[:] = [Corpus(pool_folder, seed, pairs_per_shard)]


if __name__ == "__main__":
    sys.exit(main())
