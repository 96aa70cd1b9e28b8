"""What differs between two versions of a thing: rows of datasets, lines of prompts, settings and figures of anything.

Rows are compared by id, which is the digest of their content: an edited row is one removed and one added. Only ids are
held in memory, and the few rows that are shown.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmray import storage
from llmray.errors import InputError, NotFoundError
from llmray.registry.records import PromptRecord, StepRecord

_COLUMNS = ("id", "shape", "text", "messages", "prompt", "chosen", "source", "row")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A field that is not the same on both sides; None where a side has no such field."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class RowExample:
    id: str
    source: str
    row: int
    text: str
    """The row's content as one text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowDifference:
    kept: int
    """Rows on both sides."""
    added: int
    removed: int
    added_examples: Sequence[RowExample]
    removed_examples: Sequence[RowExample]


def differing_rows(before_uri: str, after_uri: str, *, examples: int = 3) -> RowDifference:
    """Compare two dataset snapshots by row id.

    Raises:
        NotFoundError: a snapshot's rows are gone.
    """
    before, after = _rows(before_uri), _rows(after_uri)
    before_ids, after_ids = _ids(before), _ids(after)
    added, removed = after_ids - before_ids, before_ids - after_ids
    return RowDifference(
        kept=len(before_ids & after_ids),
        added=len(added),
        removed=len(removed),
        added_examples=_examples(after, sorted(added)[:examples]),
        removed_examples=_examples(before, sorted(removed)[:examples]),
    )


def differing_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Compare two nested mappings field by field; a field within another is written `outer.inner`."""
    flat_before, flat_after = _flat(before), _flat(after)
    return [
        Change(field=field, before=flat_before.get(field), after=flat_after.get(field))
        for field in sorted(flat_before.keys() | flat_after.keys())
        if (field in flat_before) != (field in flat_after) or flat_before.get(field) != flat_after.get(field)
    ]


def differing_text(before: PromptRecord, after: PromptRecord) -> list[str]:
    """A unified diff of two prompts' messages; empty if they are the same."""
    here, there = (f"{prompt.name}:{prompt.version}" for prompt in (before, after))
    return list(difflib.unified_diff(_lines(before), _lines(after), fromfile=here, tofile=there, lineterm=""))


def why_again(newer: StepRecord, older: StepRecord | None) -> str:
    """One sentence on why the newer of two runs of a step ran, or did not have to."""
    if newer.status == "cached":
        return "it did not run: its result was in the cache"
    if older is None:
        return "it ran for the first time"
    if newer.key != older.key:
        changed = ", ".join(change.field for change in differing_fields(older.fields, newer.fields))
        return f"it ran because this changed: {changed}" if changed else "it ran because its key is made otherwise now"
    if older.status in ("failed", "running"):
        return "it ran because the time before did not finish"
    return "it ran though nothing changed: the cached result was gone"


def _rows(uri: str) -> Any:
    import pyarrow.dataset

    try:
        return pyarrow.dataset.dataset(str(storage.local_copy(uri) / "kept"), format="parquet")
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri} has no rows: its folder kept/ is gone") from error


def _ids(rows: Any) -> set[str]:
    if "id" not in rows.schema.names:
        raise InputError("a dataset without a column id cannot be compared by row")
    return {row_id for batch in rows.to_batches(columns=["id"]) for row_id in batch.column(0).to_pylist()}


def _examples(rows: Any, ids: Sequence[str]) -> list[RowExample]:
    import pyarrow.dataset

    if not ids:
        return []
    columns = [name for name in _COLUMNS if name in rows.schema.names]
    table = rows.to_table(columns=columns, filter=pyarrow.dataset.field("id").isin(ids))
    found = {row["id"]: row for row in table.to_pylist()}
    return [
        RowExample(id=row_id, source=row.get("source") or "", row=row.get("row") or 0, text=_text(row))
        for row_id in ids
        if (row := found[row_id])
    ]


def _text(row: Mapping[str, Any]) -> str:
    if messages := row.get("messages"):
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    if row.get("text") is not None:
        return str(row["text"])
    return f"{row.get('prompt')} → {row.get('chosen')}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _lines(prompt: PromptRecord) -> list[str]:
    return [
        line for message in prompt.messages for line in (f"[{message['role']}]", *message["content"].splitlines())
    ] + [f"{key} = {value!r}" for key, value in sorted(prompt.settings.items())]
