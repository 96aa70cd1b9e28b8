"""A chunk's records to the files that the rest of curation works on. Pure; columns are built whole, a batch at a time.

    content.arrow   what the rows say, mapped into memory later and otherwise left where it is
    small.arrow     id, exact key, length, measures: what decides
    failed.arrow    rules that were failed, by row
    bad.arrow       records that are no rows, and what could not be read
    hashes.npy      bucket names of all rows, sorted [E]; owners.npy says whose each is: the row's place in the chunk

Rejected: handing tables from task to task (text would fill Ray's object store), and one file for everything (each stage
reads a column or two).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray.data import minhash
from llmray.data.banding import Banding
from llmray.data.buckets import mix
from llmray.data.config import CurateConfig
from llmray.data.exact import exact_key
from llmray.data.limits import Learned, learned_measures, quality_of
from llmray.data.minhash import U64
from llmray.data.readers import Chunk, Found, Loss, Quarantined, Record, read_chunk
from llmray.data.rows import Row
from llmray.data.rules import Rule, build, judge
from llmray.data.tables import (
    BAD,
    CONTENT,
    FAILED,
    KINDS,
    SAID,
    SMALL,
    content_columns,
    strings,
    write_batches,
    write_table,
)

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 4096
_KIND = {kind: code for code, kind in enumerate(KINDS)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Judges:
    """What a config says of rows, loaded once for a chunk."""

    config: CurateConfig
    rules: Sequence[Rule]
    learned: Sequence[Learned]
    quality: Callable[[Row], float] | None
    banding: Banding


def judges_of(config: CurateConfig) -> Judges:
    """Load the rules and measures that a config names.

    Raises:
        ConfigError: one cannot be loaded.
    """
    return Judges(
        config=config,
        rules=build(config.outliers),
        learned=learned_measures(config),
        quality=quality_of(config),
        banding=config.dedup.banding(),
    )


def prepare_chunk(chunk: Chunk, judges: Judges, folder: Path) -> dict[str, int]:
    """Write a chunk's files; returns how many lines and rows it has, records that are no rows, bucket names."""
    records = read_chunk(chunk, judges.config.reading)
    return {**prepare_records(iter(records), judges, folder), "lines": records.num_held}


def prepare_records(records: Iterator[Record], judges: Judges, folder: Path) -> dict[str, int]:
    """Write the files of some records."""
    small: list[pa.Table] = []
    failed: list[pa.Table] = []
    bad: list[pa.Table] = []
    buckets: list[tuple[U64, NDArray[np.int64]]] = []
    num_rows = 0

    def contents() -> Iterator[pa.RecordBatch]:
        nonlocal num_rows
        for batch in _batches(records):
            found = [record for record in batch if isinstance(record, Found)]
            if len(found) < len(batch):
                bad.append(_bad([record for record in batch if not isinstance(record, Found)]))
            if not found:
                continue
            rows = [record.row for record in found]
            content, decides = _columns(rows, [record.number for record in found], judges)
            failures = _failures(rows, num_rows, judges)
            small.append(decides)
            failed.append(failures)
            buckets.append(_buckets(rows, num_rows, failures, content, judges))
            num_rows += len(rows)
            yield content

    write_batches(folder / "content.arrow", CONTENT, contents())
    write_table(folder / "small.arrow", pa.concat_tables([_small_schema(judges).empty_table(), *small]))
    write_table(folder / "failed.arrow", pa.concat_tables([FAILED.empty_table(), *failed]))
    write_table(folder / "bad.arrow", pa.concat_tables([BAD.empty_table(), *bad]))
    hashes = np.concatenate([np.zeros(0, np.uint64), *(names for names, _ in buckets)])
    owners = np.concatenate([np.zeros(0, np.int64), *(owner for _, owner in buckets)])
    order = np.argsort(hashes, kind="stable")
    np.save(folder / "hashes.npy", hashes[order])
    np.save(folder / "owners.npy", owners[order].astype(np.uint32))
    return {"rows": num_rows, "bad": sum(table.num_rows for table in bad), "entries": len(hashes)}


def length(row: Row) -> int:
    """Characters of what a model would learn to write; of all of it where that is one of some choices."""
    return len(row.whole if row.kind == "choice" else row.answer)


def kind_salt(kind_D: NDArray[np.int8]) -> U64:
    """Put into bucket names, so that rows of different kinds never share one."""
    return (kind_D.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records a batch at a time: so many, or so much text, that memory stays bounded whatever the rows are like."""
    while batch := list(islice(records, 64)):
        size = _said(batch)
        while len(batch) < _BATCH_ROWS and size < _BATCH_BYTES and (more := list(islice(records, 64))):
            size += _said(more)
            batch += more
        yield batch


def _said(batch: Sequence[Record]) -> int:
    return sum(len(record.row.whole) for record in batch if isinstance(record, Found))


def _columns(rows: Sequence[Row], lines: Sequence[int], judges: Judges) -> tuple[pa.RecordBatch, pa.Table]:
    config = judges.config
    ids = pa.array([bytes.fromhex(row.id) for row in rows], CONTENT.field("id").type)
    kinds = [row.kind for row in rows]
    kind = pa.array([_KIND[one] for one in kinds], pa.int8())
    said = content_columns(rows)
    content = pa.RecordBatch.from_arrays([ids, kind, *(said[name] for name in SAID)], schema=CONTENT)
    normal = config.dedup.normalization
    exact = [
        exact_key(one, config.dedup.exact_text(row), normal) if config.dedup.exact else _NO_KEY
        for one, row in zip(kinds, rows, strict=True)
    ]
    rate = judges.quality
    columns: dict[str, Any] = {
        "id": ids,
        "line": pa.array(lines, pa.int64()),
        "kind": kind,
        "length": pa.array([length(row) for row in rows], pa.int64()),
        "exact": pa.array(exact, SMALL.field("exact").type),
        "quality": pa.array(np.zeros(len(rows)) if rate is None else [float(rate(row)) for row in rows], pa.float64()),
        **{one.name: pa.array(_values(one, rows), pa.float64()) for one in judges.learned},
    }
    return content, pa.table(columns, schema=_small_schema(judges))


def _small_schema(judges: Judges) -> pa.Schema:
    return pa.schema([*SMALL, *((one.name, pa.float64()) for one in judges.learned)])


def _values(measure: Learned, rows: Sequence[Row]) -> list[float]:
    values = (measure.measure(row) for row in rows)
    return [np.nan if value is None else float(value) for value in values]


def _failures(rows: Sequence[Row], before: int, judges: Judges) -> pa.Table:
    if not judges.rules:
        return FAILED.empty_table()
    found = [(before + at, failure) for at, row in enumerate(rows) for failure in judge(row, judges.rules)]
    columns = {
        "row": [at for at, _ in found],
        "rule": [failure.rule for _, failure in found],
        "value": [failure.value for _, failure in found],
        "threshold": [failure.threshold for _, failure in found],
    }
    return pa.table(columns, schema=FAILED)


def _bad(records: Sequence[Record]) -> pa.Table:
    columns = {
        "status": ["lost" if isinstance(record, Loss) else "quarantined" for record in records],
        "row": [record.number for record in records],
        "reason": [None if isinstance(record, Found) else record.reason for record in records],
        "raw": [record.raw if isinstance(record, Quarantined) else None for record in records],
        "lost_rows": [record.rows if isinstance(record, Loss) else None for record in records],
    }
    return pa.table(columns, schema=BAD)


def _buckets(
    rows: Sequence[Row], before: int, failures: pa.Table, content: pa.RecordBatch, judges: Judges
) -> tuple[U64, NDArray[np.int64]]:
    """Bucket names of the rows that may have near repeats, and whose they are: none where a rule has decided already."""
    dedup = judges.config.dedup
    if not dedup.near:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    kind_D = content["kind"].to_numpy()
    may = np.ones(len(rows), bool)
    may[failures["row"].to_numpy() - before] = False
    texts = content["text"] if not kind_D.any() else strings([dedup.near_text(row) or "" for row in rows])
    bands_DN, some_D = sketch(texts if may.all() else texts.filter(pa.array(may)), judges)
    place_D = np.flatnonzero(may)[some_D]
    names_DN = mix(bands_DN[some_D] + kind_salt(kind_D[place_D])[:, None])
    return names_DN.ravel(), np.repeat(place_D + before, names_DN.shape[1])


def sketch(texts: pa.Array, judges: Judges) -> tuple[U64, NDArray[np.bool_]]:
    """Bucket names [D, N], and which texts have words at all [D]: without, a text has nothing in common with any."""
    dedup = judges.config.dedup
    shingles_S, offsets_D1 = minhash.shingle(texts.to_pylist(), dedup.shingle_words, distinct=False)
    signatures_DK = minhash.signatures(shingles_S, offsets_D1, judges.banding.num_hashes, judges.config.seed)
    return minhash.band_hashes(signatures_DK, judges.banding), np.diff(offsets_D1) > 0


_NO_KEY = bytes(16)
