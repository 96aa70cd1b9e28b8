"""The Arrow tables of curation: the snapshot's columns, which are the contract, and those of the work in hand.

Parquet files are written so that equal rows give equal bytes: one chunk a column, row groups cut by what the rows hold,
no metadata. Row groups are small (256 KiB of text), because a later curation against this snapshot
reads single rows of it. Tables of the work in hand are uncompressed Arrow files: mapped into memory, they cost nothing
that is not looked at. In the work an id is 32 bytes; the hexadecimal form is for what people read.
"""

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from llmray.data.exact import KEY_BYTES
from llmray.data.rows import Row

I64 = NDArray[np.int64]

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_GROUP_BYTES = 1 << 18
"""Text in a Parquet row group: what reading one row costs."""
_GROUP_ROWS = 10_000

ID_BYTES = 32
KINDS = ("text", "messages", "preference", "choice")
"""Kinds of rows, which are never compared with one another; the work holds their places here."""

SNAPSHOT = pa.schema(
    [
        ("id", pa.string()),
        ("shape", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
        ("messages", _MESSAGES),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("group", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
    ]
)
"""A snapshot's rows, in this order of columns."""

SAID = ("text", "messages", "prompt", "chosen", "rejected", "choices", "group")
"""Columns that say what a row says, beside its shape."""

_REASON = [("rule", pa.string()), ("value", pa.float64()), ("threshold", pa.float64()), ("detail", pa.string())]
REASONS = pa.list_(pa.struct(_REASON))

REMOVED = pa.schema(
    [
        ("id", pa.string()),
        ("shape", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("reasons", REASONS),
        ("match", pa.string()),
        ("matched_id", pa.string()),
        ("similarity", pa.float64()),
        ("excerpt", pa.string()),
    ]
)
"""Rows that went: all rules that they failed, or the row that they repeat (`exact`, `near` or `semantic`), and how
alike the two are. That row stayed, or it went by meaning: then it is here too, and names the one that stayed."""

CLUSTERS = pa.schema(
    [
        ("cluster", pa.string()),
        ("id", pa.string()),
        ("kept_id", pa.string()),
        ("similarity", pa.float64()),
        ("source", pa.string()),
        ("row", pa.int64()),
    ]
)
"""Every row of every cluster of repeats. `kept_id` is a row that stayed: where it is the row's own `id`, this one stayed,
or is that row's exact copy. A row may repeat one that went for another by meaning: then `kept_id` is that other, and
`similarity` is null, since these two were not compared; the removed row names what it repeats, and how closely."""

CONTENT = pa.schema([("id", pa.binary(ID_BYTES)), ("kind", pa.int8()), *(SNAPSHOT.field(name) for name in SAID)])
"""What the rows of a chunk say; the only table that holds text."""

SMALL = pa.schema(
    [
        ("id", pa.binary(ID_BYTES)),
        ("line", pa.int64()),
        ("kind", pa.int8()),
        ("length", pa.int64()),
        ("exact", pa.binary(KEY_BYTES)),
        ("quality", pa.float64()),
    ]
)
"""What decides about the rows of a chunk; `line` counts from the chunk's beginning. Learned measures add columns."""
MEASURED = "measured."
"""Begins the names of those columns: a measure may be called like a column."""

FAILED = pa.schema([("row", pa.int64()), *_REASON])
"""Failed rules, by row; only rows that failed something are in it. `detail` says more where there is more to say."""

PAIRS = pa.schema([("row", pa.int64()), *((name, pa.binary(KEY_BYTES)) for name in ("prompt", "chosen", "rejected"))])
"""What preferences are about, normalised, so that they can be compared with one another; by row."""

BAD = pa.schema(
    [
        ("status", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("raw", pa.string()),
        ("lost_rows", pa.int64()),
    ]
)
"""Records that are no rows (`quarantined`), and parts of a file that could not be read (`lost`)."""


def content_columns(rows: Sequence[Row]) -> dict[str, pa.Array]:
    """The columns of `SAID`."""
    size = len(rows)
    if all(row.shape == "text" for row in rows):  # by far the commonest, and worth a path of its own
        columns = {name: pa.nulls(size, SNAPSHOT.field(name).type) for name in SAID}
        columns["text"] = strings([row.text for row in rows])
        if any(row.group is not None for row in rows):
            columns["group"] = strings([row.group for row in rows])
        return columns
    messages = [
        None if row.messages is None else [{"role": role, "content": content} for role, content in row.messages]
        for row in rows
    ]
    return {
        name: pa.array(
            messages if name == "messages" else [getattr(row, name) for row in rows], SNAPSHOT.field(name).type
        )
        for name in SAID
    }


def strings(values: Sequence[str | None]) -> pa.Array:
    """A string column."""
    return pa.array(values, pa.string())


def shapes(kind_R: NDArray[np.int8]) -> pa.Array:
    """The shape of rows of these kinds."""
    names = pa.array([kind if kind != "choice" else "messages" for kind in KINDS], pa.string())
    return names.take(pa.array(kind_R))


def hexadecimal(ids_RB: NDArray[np.uint8]) -> pa.Array:
    """Ids of 32 bytes as strings of 64 characters."""
    data = np.ascontiguousarray(ids_RB).tobytes().hex().encode()
    offsets = np.arange(len(ids_RB) + 1, dtype=np.int32) * (2 * ID_BYTES)
    return pa.StringArray.from_buffers(len(ids_RB), pa.py_buffer(offsets), pa.py_buffer(data))


def fixed_bytes(column: pa.ChunkedArray | pa.Array) -> NDArray[np.uint8]:
    """A column of fixed-size binaries without nulls as bytes [R, B]."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = array.type.byte_width
    data = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)


def binaries(values_RB: NDArray[np.uint8]) -> pa.Array:
    """The reverse: bytes [R, B] as a column of fixed-size binaries."""
    data = pa.py_buffer(np.ascontiguousarray(values_RB))
    return pa.Array.from_buffers(pa.binary(values_RB.shape[1]), len(values_RB), [None, data])


def write_batches(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch] | Sequence[pa.RecordBatch]) -> None:
    """An uncompressed Arrow file, a batch at a time."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def write_table(path: Path, table: pa.Table) -> None:
    """An uncompressed Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def mapped(path: Path) -> pa.Table:
    """An Arrow file, mapped into memory: nothing is read before it is looked at."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def pick(path: Path, at_R: I64, columns: Sequence[str] | None = None) -> pa.Table:
    """Some rows of an Arrow file, in the order of `at_R`, which must ascend; only their bytes are copied."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    taken = []
    for batch, here in _holding(file, at_R):
        table = pa.Table.from_batches([batch])
        taken.append((table if columns is None else table.select(columns)).take(pa.array(here)))
    if not taken:
        empty = pa.schema([file.schema.field(name) for name in columns or file.schema.names])
        return empty.empty_table()
    return pa.concat_tables(taken)


def said_bytes(path: Path, at_R: I64) -> I64:
    """Bytes of what some rows of a file of `CONTENT` say, in the order of `at_R`, which must ascend [R].

    They are told from where values begin and end: no text is read.
    """
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    sizes = [sum(_num_bytes(batch[name])[here] for name in SAID) for batch, here in _holding(file, at_R)]
    return np.concatenate([np.zeros(0, np.int64), *sizes])


def _holding(file: Any, at_R: I64) -> Iterator[tuple[pa.RecordBatch, I64]]:
    """The batches of an Arrow file that hold some of the rows, and where in the batch those are."""
    base = 0
    for number in range(file.num_record_batches):
        batch = file.get_batch(number)
        here = at_R[np.searchsorted(at_R, base) : np.searchsorted(at_R, base + batch.num_rows)] - base
        base += batch.num_rows
        if len(here):
            yield batch, here


def _num_bytes(array: pa.Array) -> I64:
    """Bytes of the texts in each value: a string, a struct, or a list of either [R]."""
    if pa.types.is_list(array.type):
        ends = np.concatenate(([0], np.cumsum(_num_bytes(array.values))))
        offsets = array.offsets.to_numpy()
        return np.asarray(ends[offsets[1:]] - ends[offsets[:-1]])
    if pa.types.is_struct(array.type):
        return np.sum([_num_bytes(part) for part in array.flatten()], axis=0, dtype=np.int64)
    return np.asarray(compute.fill_null(compute.binary_length(array), 0), np.int64)


def array(path: Path) -> NDArray[Any]:
    """A saved array, mapped into memory; an empty one cannot be mapped."""
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:
        found: NDArray[Any] = np.load(path)
        assert not found.size, path
        return found


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file whose bytes depend on the rows and the schema alone."""
    sink = io.BytesIO()
    write_parquet(sink, table)
    return sink.getvalue()


def write_parquet(sink: Any, table: pa.Table) -> None:
    """The same, to a file."""
    table = table.replace_schema_metadata(None).combine_chunks()
    with parquet_writer(sink, table.schema) as writer:
        write_groups(writer, table, group_cuts(table))


def parquet_writer(sink: Any, schema: pa.Schema) -> parquet.ParquetWriter:
    """Statistics are kept of what has few values and of the row's number: those of texts and ids are a tenth of a file."""
    few = [name for name in ("shape", "split", "source", "match", "cluster", "kept_id") if name in schema.names]
    told = [name for name in (*few, "row") if name in schema.names]
    return parquet.ParquetWriter(sink, schema, compression="zstd", use_dictionary=few, write_statistics=told)


def write_groups(writer: parquet.ParquetWriter, table: pa.Table, groups: Sequence[int]) -> None:
    """Row groups of a table, which begin where `groups` says; one without rows where that is all there is."""
    for begin, end in pairwise(groups):
        writer.write_table(table.slice(begin, end - begin), row_group_size=max(1, end - begin))


def group_cuts(table: pa.Table) -> list[int]:
    """Where row groups begin, and the end: a new one as soon as the last holds its share of bytes or of rows."""
    size_R = np.zeros(table.num_rows, np.int64)
    for name in set(SAID) & set(table.schema.names):
        size_R += np.concatenate([np.zeros(0, np.int64), *map(_num_bytes, table[name].chunks)])
    return cuts(size_R, _GROUP_BYTES, _GROUP_ROWS)


def cuts(size_R: I64, most_bytes: int, most_rows: int) -> list[int]:
    """Where runs of rows begin, and the end: a new one as soon as the last holds so many bytes or rows."""
    ends = np.cumsum(size_R)
    cuts = [0]
    while cuts[-1] < len(ends):
        before = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        full = int(np.searchsorted(ends, before + most_bytes)) + 1
        cuts.append(min(full, cuts[-1] + most_rows, len(ends)))
    return cuts if len(cuts) > 1 else [0, 0]
