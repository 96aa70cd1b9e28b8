"""Curation without Ray: the same pieces in the same order, one after another, in a folder of its own."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pyarrow import parquet

from llmray import storage
from llmray.data import looks, stages
from llmray.data.config import CurateConfig
from llmray.data.outputs import num_parts
from llmray.data.places import chunk_name, locate
from llmray.data.readers import CHUNK_BYTES, chunks
from llmray.data.stages import Job
from llmray.data.work import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Curated:
    """What came of it, as rows of plain values."""

    kept: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    clusters: list[dict[str, Any]]
    report: Mapping[str, Any]
    files: Mapping[str, bytes]

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.kept]


def curate_purely(
    blocks: Sequence[Sequence[Any]],
    config: CurateConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    shards: int = 1,
) -> Curated:
    """Each block is a list of records; record i of block b comes from source `b.jsonl` (or its name), row i + 1."""
    with tempfile.TemporaryDirectory() as folder:
        uris = []
        for number, block in enumerate(blocks):
            path = Path(folder) / "raw" / (names[number] if names else f"{number:03d}.jsonl")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in block))
            uris.append(str(path))
        with run_stages(uris, config or CurateConfig(), chunk_bytes=chunk_bytes, shards=shards) as (job, settled):
            return _read(job, settled)


@contextmanager
def run_stages(
    uris: Sequence[str], config: CurateConfig, *, chunk_bytes: int = CHUNK_BYTES, shards: int = 1, onto: Any = None
) -> Iterator[tuple[Job, Mapping[str, Any]]]:
    folder = tempfile.mkdtemp()
    try:
        uris = sorted(uris)
        _, names = storage.names_below(uris)
        work = Work(uri=f"{folder}/work")
        pieces = [
            piece
            for uri, name in zip(uris, names, strict=True)
            for piece in chunks(uri, name, reading=config.reading, chunk_bytes=chunk_bytes)
        ]
        if config.boilerplate.action != "off":
            for number, piece in enumerate(pieces):
                looks.lines(config, work, number, piece)
            looks.repeated(config, work, len(pieces))
        facts = [stages.chunk(config, work, number, piece) for number, piece in enumerate(pieces)]
        job = Job(
            config=config,
            work=work,
            places=locate(work, pieces, facts),
            base="",
            entries=sum(fact["entries"] for fact in facts),
            onto=onto,
        )
        for look in range(len(config.second_look)):
            looks.surveyed(job)
            for number in range(len(pieces)):
                looks.survey(job, look, number)
            looks.fit(job, look)
            for number in range(len(pieces)):
                looks.score(job, look, number)
        if shards == 1:
            batches = stages.decide_at_once(job)
        else:
            stages.judge(job)
            for number in range(shards):
                stages.shard(job, number, shards)
            batches = stages.join(job, shards)
        for number in range(batches):
            stages.verify(job, number)
        if config.semantic.embedding is not None:
            looks.survivors(job)
            for number in range(len(pieces)):
                looks.vectors(job, number)
            looks.meanings(job)
        settled = stages.settle(job)
        for part in range(num_parts(settled["kept"], config.rows_per_part)):
            stages.kept(job, part)
        for part in range(num_parts(settled["removed"], config.rows_per_part)):
            stages.removed(job, part)
        stages.clusters(job)
        for shard in range(stages.index_shards(job, settled["kept"])):
            stages.index_shard(job, shard, stages.index_shards(job, settled["kept"]))
        yield job, settled
    finally:
        shutil.rmtree(folder)


def _read(job: Job, settled: Mapping[str, Any]) -> Curated:
    root = Path(job.work.uri)
    published = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in ("kept", "removed", "clusters", "index", "fates")
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and path.suffix in (".parquet", ".npy", ".json", ".jsonl", ".html")
    }
    assert chunk_name(0) == "chunks/000000"
    return Curated(
        kept=_rows(root / "kept"),
        removed=_rows(root / "removed"),
        clusters=_rows(root / "clusters"),
        report=settled["report"],
        files=published,
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*.parquet")):
        rows += parquet.read_table(path).to_pylist()
    return rows
