"""What a curation writes: kept and removed rows in parts, clusters, quarantine, index. Pure; rows in order of place.

Each part is made by itself from the chunks that hold its rows, read through memory maps: text goes from the work folder
into the part and nowhere else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from llmray.data import index
from llmray.data.buckets import between, shard_bounds
from llmray.data.config import CurateConfig
from llmray.data.decide import EXACT, FAILED_RULES, NEAR, SEMANTIC, Fates
from llmray.data.exact import halves
from llmray.data.index import OldRows
from llmray.data.places import Places, chunk_name, rows_of
from llmray.data.rows import Row
from llmray.data.tables import (
    CLUSTERS,
    REASONS,
    REMOVED,
    SAID,
    SNAPSHOT,
    array,
    cuts,
    group_cuts,
    hexadecimal,
    mapped,
    parquet_writer,
    shapes,
    write_groups,
)
from llmray.digest import fraction_of

I64 = NDArray[np.int64]

_EXCERPT = 300
_ROWS_AT_ONCE = 2048
_BYTES_AT_ONCE = 64 << 20
_CLUSTER_ROWS = 1_000_000
MATCH = {EXACT: "exact", NEAR: "near", SEMANTIC: "semantic"}


def num_parts(num_rows: int, rows_per_part: int) -> int:
    """Parts of one size; an empty one where there are no rows, so that the schema is on disk."""
    return max(1, -(-num_rows // rows_per_part))


def write_kept(path: Path, places: Places, rows: I64, config: CurateConfig) -> None:
    """A file of the snapshot."""
    _write(path, SNAPSHOT, places, rows, lambda some: _kept(places, some, config))


def write_removed(
    path: Path, places: Places, rows: I64, *, fates: Fates, failures: pa.Table, old: OldRows | None
) -> None:
    """A file of rows that went, and why."""
    _write(path, REMOVED, places, rows, lambda some: _removed(places, some, fates, failures, old))


def write_clusters(path: Path, places: Places, fates: Fates, old: OldRows | None) -> None:
    """Every cluster of two rows or more, by its best row's place; clusters of old rows come last."""
    rows = clustered(fates)
    with parquet_writer(path, CLUSTERS) as writer:
        for low in range(0, max(1, len(rows)), _CLUSTER_ROWS):
            some = rows[low : low + _CLUSTER_ROWS]
            source, row = places.source_and_row(some)
            kept, matched = fates.kept_for(some), np.asarray(fates.matched_R[some])
            columns = {
                "cluster": hexadecimal(ids_of(places, old, fates.cluster_R[some])),
                "id": hexadecimal(places.ids(some)),
                "kept_id": hexadecimal(ids_of(places, old, kept)),
                # Measured with the row that this one repeats; with what that one went for it was not.
                "similarity": pa.array(np.asarray(fates.similarity_R[some]), mask=kept != matched),
                "source": source,
                "row": pa.array(row),
            }
            writer.write_table(pa.table(columns, schema=CLUSTERS))


def clustered(fates: Fates) -> I64:
    """Rows of clusters of two or more, by cluster."""
    cluster = np.asarray(fates.cluster_R)
    rows = np.flatnonzero(cluster >= 0)
    order = rows[np.argsort(cluster[rows], kind="stable")]
    label = cluster[order]
    starts = np.flatnonzero(np.concatenate(([True], label[1:] != label[:-1]))) if len(label) else np.zeros(0, int)
    sizes = np.diff(np.append(starts, len(label)))
    # An old row is in no list of new rows, so a cluster of its own has one new row or more.
    several = (sizes > 1) | (label[starts] >= len(cluster))
    return order[np.repeat(several, sizes)]


def write_quarantine(folder: Path, places: Places) -> dict[str, Any]:
    """The files of records that are no rows and of parts that could not be read; returns what there is to tell."""
    counts: dict[str, int] = {}
    by_source: dict[str, int] = {}
    losses: list[dict[str, Any]] = []
    files = {name: (folder / f"{name}.jsonl").open("wb") for name in ("quarantined", "lost")}
    try:
        for record in bad_records(places):
            status = record.pop("status")
            files[status].write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            if status == "lost":
                losses.append({name: record[key] for name, key in _LOSS.items() if key in record})
            else:
                counts[record["reason"]] = counts.get(record["reason"], 0) + 1
                by_source[record["source"]] = by_source.get(record["source"], 0) + 1
    finally:
        for file in files.values():
            file.close()
    return {"reasons": counts, "sources": by_source, "losses": losses}


def bad_records(places: Places) -> Iterator[dict[str, Any]]:
    """Records that are no rows, in order of place."""
    for chunk in np.flatnonzero(places.bad_C).tolist():
        source = places.sources[places.source_C[chunk]]
        for record in mapped(places.work.path(chunk_name(chunk)) / "bad.arrow").to_pylist():
            record["row"] += int(places.lines_C[chunk])
            said = {name: value for name, value in record.items() if value is not None}
            yield {"status": said.pop("status"), "source": source, **said}


def write_index_shard(
    folder: Path,
    places: Places,
    config: CurateConfig,
    *,
    kept_rows: I64,
    first_row: int,
    shard: int,
    shards: int,
) -> None:
    """A shard of the index of kept rows, numbered from `first_row`."""
    number_R = np.full(places.num_rows, -1, np.int64)
    number_R[kept_rows] = first_row + np.arange(len(kept_rows))
    assert first_row + len(kept_rows) < 1 << 32, "an index numbers rows with 32 bits"
    high = low = np.zeros(0, np.uint64)
    if config.dedup.exact:
        high, low = halves(places.small(["exact"])["exact"][kept_rows])
    mine = np.flatnonzero(index.in_shard(high, shard, shards))
    names, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for chunk in range(places.num_chunks):
        path = places.work.path(chunk_name(chunk))
        hashes = array(path / "hashes.npy")
        inside = between(hashes, *shard_bounds(shard, shards))
        owner = number_R[array(path / "owners.npy")[inside].astype(np.int64) + places.bases_C1[chunk]]
        names.append(np.asarray(hashes[inside])[owner >= 0])
        owners.append(owner[owner >= 0])
    index.write_shard(
        folder,
        shard,
        keys=(high[mine], low[mine]),
        key_rows=number_R[kept_rows[mine]],
        names=np.concatenate(names),
        name_rows=np.concatenate(owners),
    )


def ids_of(places: Places, old: OldRows | None, rows: I64) -> NDArray[np.uint8]:
    """Ids of rows, new ones and old ones."""
    rows = np.asarray(rows)
    ids = np.zeros((len(rows), 32), np.uint8)
    new = rows < places.num_rows
    ids[new] = places.ids(rows[new])
    if old is not None:
        ids[~new] = old.ids(rows[~new] - places.num_rows)
    return ids


def split_of(key: str, heldout_fraction: float, validation_fraction: float = 0.0) -> str:
    """The side on which a group, or a row without one, falls for ever."""
    place = fraction_of(key)
    if place < heldout_fraction:
        return "heldout"
    return "validation" if place < heldout_fraction + validation_fraction else "train"


def excerpt(row: Row) -> str:
    """How the row begins, for a person."""
    if row.shape == "text":
        return (row.text or "")[:_EXCERPT]
    if row.shape == "messages":
        return "\n".join(f"{role}: {content}" for role, content in row.messages or ())[:_EXCERPT]
    return f"prompt: {row.prompt}\nchosen: {row.chosen}\nrejected: {row.rejected}"[:_EXCERPT]


def excerpts(table: pa.Table) -> pa.Array:
    """How rows with the content columns begin."""
    if not table["kind"].to_numpy().any():  # texts alone
        cut = compute.utf8_slice_codeunits(table["text"], 0, _EXCERPT)
        return cut.combine_chunks()
    return pa.array([excerpt(row) for row in rows_of(table)], pa.string())


def _write(path: Path, schema: pa.Schema, places: Places, rows: I64, make: Callable[[I64], pa.Table]) -> None:
    """The rows of a part, in row groups that are cut anew every `_ROWS_AT_ONCE` rows, and between by `group_cuts`.

    Of long rows fewer are held at once, which does not show: a row group that may go on waits for the rows after it.
    """
    size_R = places.said_bytes(rows)
    with parquet_writer(path, schema) as writer:
        for low in range(0, max(1, len(rows)), _ROWS_AT_ONCE):
            some = rows[low : low + _ROWS_AT_ONCE]
            waiting: list[pa.Table] = []
            for begin, end in pairwise(cuts(size_R[low : low + _ROWS_AT_ONCE], _BYTES_AT_ONCE, _ROWS_AT_ONCE)):
                table = pa.concat_tables([*waiting, make(some[begin:end])]).combine_chunks()
                groups = group_cuts(table)
                if end < len(some):
                    groups.pop()
                write_groups(writer, table, groups)
                waiting = [table.slice(groups[-1])]


def _kept(places: Places, rows: I64, config: CurateConfig) -> pa.Table:
    content = places.of(rows, "content.arrow", ["kind", *SAID])
    source, row = places.source_and_row(rows)
    ids = hexadecimal(places.ids(rows))
    keys = [group or id_ for group, id_ in zip(content["group"].to_pylist(), ids.to_pylist(), strict=True)]
    sides = [split_of(key, config.heldout_fraction, config.validation_fraction) for key in keys]
    columns: Mapping[str, Any] = {
        **{name: content[name] for name in SAID},
        "id": ids,
        "shape": shapes(content["kind"].to_numpy()),
        "split": pa.array(sides, pa.string()),
        "source": source,
        "row": pa.array(row),
    }
    return pa.table([columns[name] for name in SNAPSHOT.names], schema=SNAPSHOT)


def _removed(places: Places, rows: I64, fates: Fates, failures: pa.Table, old: OldRows | None) -> pa.Table:
    content = places.of(rows, "content.arrow", ["kind", *(name for name in SAID if name != "group")])
    source, row = places.source_and_row(rows)
    fate = np.asarray(fates.fate_R[rows])
    repeats = pa.array(fate != FAILED_RULES)
    nothing = pa.scalar(None)
    matched = np.where(fate != FAILED_RULES, fates.matched_R[rows], rows)
    columns: Mapping[str, Any] = {
        "id": hexadecimal(places.ids(rows)),
        "shape": shapes(content["kind"].to_numpy()),
        "source": source,
        "row": pa.array(row),
        "reasons": _reasons(rows, failures),
        "match": pa.array([MATCH.get(one) for one in fate.tolist()], pa.string()),
        "matched_id": compute.if_else(repeats, hexadecimal(ids_of(places, old, matched)), nothing.cast(pa.string())),
        "similarity": compute.if_else(
            repeats, pa.array(np.asarray(fates.similarity_R[rows])), nothing.cast(pa.float64())
        ),
        "excerpt": excerpts(content),
    }
    return pa.table([columns[name] for name in REMOVED.names], schema=REMOVED)


def _reasons(rows: I64, failures: pa.Table) -> pa.Array:
    """The failures of each row as a list column."""
    failed = failures["row"].to_numpy()
    begin, end = np.searchsorted(failed, rows), np.searchsorted(failed, rows, side="right")
    count = end - begin
    place = np.repeat(begin, count) + np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    entry = failures.take(pa.array(place)).combine_chunks()
    fields = [entry[name].combine_chunks() if entry.num_rows else pa.array([], entry[name].type) for name in _REASON]
    values = pa.StructArray.from_arrays(fields, fields=list(REASONS.value_type))
    offsets = pa.array(np.concatenate(([0], np.cumsum(count))), pa.int32())
    return pa.ListArray.from_arrays(offsets, values).cast(REASONS)


_REASON: Sequence[str] = ("rule", "value", "threshold", "detail")
_LOSS = {"source": "source", "after_row": "row", "reason": "reason", "rows": "lost_rows"}
