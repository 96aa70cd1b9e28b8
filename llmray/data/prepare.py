"""A chunk's records to the files that the rest of curation works on. Pure; columns are built whole, a batch at a time.

    content.arrow   what the rows say, mapped into memory later and otherwise left where it is
    small.arrow     id, exact key, length, measures: what decides
    failed.arrow    rules that were failed, by row
    bad.arrow       records that are no rows, and what could not be read
    pairs.arrow     what preferences are about, to be compared with one another
    hashes.npy      bucket names of all rows, sorted [E]; owners.npy says whose each is: the row's place in the chunk

Rejected: handing tables from task to task (text would fill Ray's object store), and one file for everything (each stage
reads a column or two).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray import storage
from llmray.data import contamination, features, minhash
from llmray.data.banding import Banding
from llmray.data.boilerplate import share, strip
from llmray.data.config import CurateConfig, Dedup
from llmray.data.contamination import RULE, Contamination, EvalIndex
from llmray.data.exact import exact_keys
from llmray.data.features import Learned, measure_all
from llmray.data.limits import quality_of
from llmray.data.minhash import U64
from llmray.data.readers import Chunk, Found, Loss, Quarantined, Record, read_chunk
from llmray.data.rows import Row
from llmray.data.rules import Failure, Personal, Rule, build, judge, personal
from llmray.data.rules.config import ACROSS
from llmray.data.rules.preferences import pair_keys
from llmray.data.tables import (
    BAD,
    CONTENT,
    FAILED,
    KINDS,
    MEASURED,
    PAIRS,
    SAID,
    SMALL,
    content_columns,
    strings,
    write_batches,
    write_table,
)

_BATCH_CHARACTERS = 8 << 20
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
    evaluations: EvalIndex | None
    """Items that must not be in the data."""
    personal: Personal | None
    """What is looked for, where rows are counted or masked and not removed for it."""
    repeated: U64 | None
    """Names of lines that are boilerplate; None where it is not looked for."""


def judges_of(config: CurateConfig, repeated: U64 | None = None) -> Judges:
    """Load the rules and measures that a config names.

    Args:
        repeated: names of lines that are boilerplate.

    Raises:
        ConfigError: one cannot be loaded.
    """
    personal = config.outliers.personal
    asked = "personal" in config.outliers.names
    return Judges(
        config=config,
        rules=build(config.outliers),
        learned=features.build(config.statistics),
        quality=quality_of(config),
        banding=config.dedup.banding(),
        evaluations=_evaluations(config.contamination, storage.stamps(config.contamination.uris)),
        personal=personal if asked and personal.action != "remove" else None,
        repeated=repeated,
    )


@lru_cache(maxsize=2)
def _evaluations(config: Contamination, stamps: tuple[str, ...]) -> EvalIndex | None:  # noqa: ARG001  (what is cached)
    return contamination.load(config) if config.sets else None


def prepare_chunk(chunk: Chunk, judges: Judges, folder: Path, told: Callable[[int], None]) -> dict[str, Any]:
    """Write a chunk's files; returns how many lines and rows it has, records that are no rows, bucket names.

    Under `personal` stands how much personal data was found, by kind.

    Args:
        told: called now and then with the number of rows so far.
    """
    records = read_chunk(chunk, judges.config.reading)
    return {**prepare_records(iter(records), judges, folder, told), "lines": records.num_held}


def prepare_records(
    records: Iterator[Record], judges: Judges, folder: Path, told: Callable[[int], None]
) -> dict[str, Any]:
    """Write the files of some records."""
    pairs: list[pa.Table] = []
    private: Counter[str] = Counter()
    stripped: Counter[str] = Counter()
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
            rows = [_looked_over(record.row, judges, private, stripped) for record in found]
            content, decides = _columns(rows, [record.number for record in found], judges)
            failures = _failures(rows, num_rows, judges)
            small.append(decides)
            failed.append(failures)
            pairs.append(_pairs(rows, num_rows, judges))
            buckets.append(_buckets(rows, num_rows, failures, content, judges))
            num_rows += len(rows)
            told(num_rows)
            yield content

    write_batches(folder / "content.arrow", CONTENT, contents())
    write_table(folder / "small.arrow", pa.concat_tables([_small_schema(judges).empty_table(), *small]))
    write_table(folder / "failed.arrow", pa.concat_tables([FAILED.empty_table(), *failed]))
    write_table(folder / "bad.arrow", pa.concat_tables([BAD.empty_table(), *bad]))
    write_table(folder / "pairs.arrow", pa.concat_tables([PAIRS.empty_table(), *pairs]))
    hashes = np.concatenate([np.zeros(0, np.uint64), *(names for names, _ in buckets)])
    owners = np.concatenate([np.zeros(0, np.int64), *(owner for _, owner in buckets)])
    order = np.argsort(hashes, kind="stable")
    np.save(folder / "hashes.npy", hashes[order])
    np.save(folder / "owners.npy", owners[order].astype(np.uint32))
    return {
        "rows": num_rows,
        "bad": sum(table.num_rows for table in bad),
        "entries": len(hashes),
        "personal": dict(sorted(private.items())),
        "stripped": dict(sorted(stripped.items())),
    }


def learned_text(row: Row) -> str:
    """What a model would learn to write; all of the row where that is one of some choices."""
    return row.whole if row.kind == "choice" else row.answer


def kind_salt(kind_D: NDArray[np.int8]) -> U64:
    """Put into bucket names, so that rows of different kinds never share one."""
    return (kind_D.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records a batch at a time: so many, or so much text, that memory stays bounded whatever the rows are like.

    A batch is full as soon as it holds its share of text, so it holds no more than that and one record, which
    `reading.max_record_mb` bounds: its columns are Arrow arrays of less than 2 GiB.
    """
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        if isinstance(record, Found):
            size += len(record.row.whole) + len(record.row.group or "")
        if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _columns(rows: Sequence[Row], lines: Sequence[int], judges: Judges) -> tuple[pa.RecordBatch, pa.Table]:
    config = judges.config
    ids = pa.array([bytes.fromhex(row.id) for row in rows], CONTENT.field("id").type)
    kinds = [row.kind for row in rows]
    kind = pa.array([_KIND[one] for one in kinds], pa.int8())
    said = content_columns(rows)
    content = pa.RecordBatch.from_arrays([ids, kind, *(said[name] for name in SAID)], schema=CONTENT)
    rate = judges.quality
    texts = [learned_text(row) for row in rows]
    values_NM = measure_all(texts, judges.learned)
    columns: dict[str, Any] = {
        "id": ids,
        "line": pa.array(lines, pa.int64()),
        "kind": kind,
        "length": pa.array([len(text) for text in texts], pa.int64()),
        "exact": pa.array(_exact(rows, kinds, said["text"], config.dedup), SMALL.field("exact").type),
        "quality": pa.array(np.zeros(len(rows)) if rate is None else [float(rate(row)) for row in rows], pa.float64()),
        **{MEASURED + learned.name: pa.array(values_NM[:, at]) for at, learned in enumerate(judges.learned)},
    }
    return content, pa.table(columns, schema=_small_schema(judges))


def _exact(rows: Sequence[Row], kinds: Sequence[str], text: pa.Array, dedup: Dedup) -> list[bytes]:
    """Exact keys of the rows, whose texts are in a column already; no key where exact repeats may stay."""
    if not dedup.exact:
        return [_NO_KEY] * len(rows)
    texts = text if all(kind == "text" for kind in kinds) else [dedup.exact_text(row) for row in rows]
    return exact_keys(kinds, texts, dedup.normalization)


def _small_schema(judges: Judges) -> pa.Schema:
    return pa.schema([*SMALL, *((MEASURED + one.name, pa.float64()) for one in judges.learned)])


def _looked_over(row: Row, judges: Judges, found: Counter[str], stripped: Counter[str]) -> Row:
    """The row as it goes on: without boilerplate, and without personal data, where they are to be taken out."""
    if judges.repeated is not None and judges.config.boilerplate.action == "strip" and row.text is not None:
        text, units, characters = strip(row.text, judges.repeated, judges.config.boilerplate)
        if units:
            row = replace(row, text=text)
            stripped.update(rows=1, units=units, characters=characters)
    if judges.personal is None:
        return row
    if judges.personal.action == "mask":
        row, counts = personal.mask(row, judges.personal)
    else:
        counts = personal.count(row, judges.personal)
    found.update(counts)
    return row


def _failures(rows: Sequence[Row], before: int, judges: Judges) -> pa.Table:
    found = [(before + at, failure) for at, row in enumerate(rows) for failure in judge(row, judges.rules)]
    if judges.evaluations is not None:
        most = judges.config.contamination.max_share
        for at, overlap in enumerate(judges.evaluations.overlap([row.whole for row in rows])):
            if overlap is not None and overlap.share > most:
                failure = Failure(rule=RULE, value=overlap.share, threshold=most, detail=overlap.why)
                found.append((before + at, failure))
    plate = judges.config.boilerplate
    if judges.repeated is not None and plate.action == "remove":
        for at, row in enumerate(rows):
            held = share(row.text, judges.repeated, plate) if row.text is not None else 0.0
            if held > plate.max_share:
                found.append((before + at, Failure(rule="boilerplate", value=held, threshold=plate.max_share)))
    columns = {
        "row": [at for at, _ in found],
        **{name: [getattr(failure, name) for _, failure in found] for name in FAILED.names[1:]},
    }
    return pa.table(columns, schema=FAILED)


def _pairs(rows: Sequence[Row], before: int, judges: Judges) -> pa.Table:
    if not set(ACROSS) & set(judges.config.outliers.names):
        return PAIRS.empty_table()
    normal = judges.config.dedup.normalization
    found = [(before + at, *keys) for at, row in enumerate(rows) if (keys := pair_keys(row, normal)) is not None]
    columns = zip(*found, strict=True) if found else [[]] * len(PAIRS)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, PAIRS, strict=True)], schema=PAIRS)


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
    compared = texts if may.all() else texts.filter(pa.array(may))
    bands_DN, num_shingles_D = minhash.sketch(compared, dedup.shingling, judges.banding, judges.config.seed)
    some_D = num_shingles_D > 0  # A text without words has nothing in common with any.
    place_D = np.flatnonzero(may)[some_D]
    names_DN = minhash.mix_all(bands_DN[some_D] + kind_salt(kind_D[place_D])[:, None])
    return names_DN.ravel(), np.repeat(place_D + before, names_DN.shape[1])


_NO_KEY = bytes(16)
