"""The Arrow tables of curation: the snapshot's columns, which are the contract, and those of the work in hand.

Parquet files are written so that equal rows give equal bytes: one chunk a column, fixed row groups, no metadata.
"""

import io
from collections.abc import Sequence

import pyarrow as pa
from pyarrow import parquet

from llmray.data.exact import KEY_BYTES
from llmray.data.rows import Row

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

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

CONTENT = ("id", "shape", "text", "messages", "prompt", "chosen", "rejected", "choices", "group")
"""What a row says: the rest of a snapshot's columns are where it came from and where it went."""

REASONS = pa.list_(pa.struct([("rule", pa.string()), ("value", pa.float64()), ("threshold", pa.float64())]))

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
"""Rows that went: all rules that they failed, or the kept row that they repeat (`exact` or `near`)."""

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
"""Every row of every cluster of repeats; a row whose `kept_id` is its own `id` stayed, or is that row's exact copy."""

WORK = pa.schema(
    [
        ("status", pa.string()),
        ("reason", pa.string()),
        ("raw", pa.string()),
        ("lost_rows", pa.int64()),
        *(SNAPSHOT.field(name) for name in (*CONTENT, "source", "row")),
        ("kind", pa.string()),
        ("length", pa.int64()),
        ("exact", pa.binary(KEY_BYTES)),
        ("bands", pa.list_(pa.uint64())),
        ("failed", REASONS),
        ("excerpt", pa.string()),
    ]
)
"""A record as it was read: `status` is row, quarantined or lost."""


def content_columns(rows: Sequence[Row | None]) -> dict[str, pa.Array]:
    """The content columns of rows; None gives nulls."""

    def column(name: str) -> pa.Array:
        return pa.array([None if row is None else getattr(row, name) for row in rows], SNAPSHOT.field(name).type)

    messages = [
        None
        if row is None or row.messages is None
        else [{"role": role, "content": content} for role, content in row.messages]
        for row in rows
    ]
    return {name: pa.array(messages, _MESSAGES) if name == "messages" else column(name) for name in CONTENT}


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file whose bytes depend on the rows and the schema alone."""
    sink = io.BytesIO()
    parquet.write_table(
        table.replace_schema_metadata(None).combine_chunks(), sink, compression="zstd", row_group_size=10_000
    )
    return sink.getvalue()
