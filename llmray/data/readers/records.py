"""What comes out of a file: rows, records that are none, and parts that could not be read at all."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from llmray.data.readers.reading import Reading
from llmray.data.rows import Row, RowError, parse_row

_EXCERPT = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A row, and where it came from."""

    row: Row
    number: int
    """Line of the file, or row of a Parquet or Arrow file, from 1, counted from where the chunk begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A line or record that is no row."""

    number: int
    reason: str
    raw: str
    """How it begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """A part of a file that could not be read at all."""

    number: int
    """Last line or row before the loss."""
    reason: str
    rows: int | None = None
    """Rows that it held, where the file says so."""


Record = Found | Quarantined | Loss

Numbered = Generator[Record, None, int]
"""Records of a chunk; what it returns is how many lines or rows the chunk held, whether they made records or not."""


def record_of(fields: Any, number: int, columns: Mapping[str, str], raw: bytes | None = None) -> Found | Quarantined:
    """The row that decoded fields make, or why they make none.

    Args:
        columns: row field to the name that the file has for it; a name that is used so counts as nothing else.
        raw: what the fields were decoded from.
    """
    renamed = _renamed(fields, columns) if columns and isinstance(fields, Mapping) else fields
    try:
        return Found(row=parse_row(renamed), number=number)
    except RowError as error:
        missing = [f"{field} from {name!r}" for field, name in columns.items() if _lacks(fields, name)]
        hint = f"; columns takes {', '.join(missing)}, which is not there" if missing else ""
        return Quarantined(number=number, reason=f"{error}{hint}", raw=excerpt(fields if raw is None else raw))


def too_long(raw: Any, number: int, reading: Reading) -> Quarantined:
    """A record of more than `reading.max_record_mb`."""
    reason = f"longer than reading.max_record_mb ({reading.max_record_mb} MiB): raise it, or cut the record in pieces"
    return Quarantined(number=number, reason=reason, raw=excerpt(raw))


def excerpt(raw: Any) -> str:
    """How a line or a record begins."""
    return raw[:_EXCERPT].decode(errors="backslashreplace") if isinstance(raw, bytes) else repr(raw)[:_EXCERPT]


def one_line(error: Exception) -> str:
    """An error's message, short and on one line."""
    return " ".join(str(error).split())[:200]


def not_utf8(data: bytes) -> str | None:
    """Where the encoding of a text is broken; None where it is not."""
    try:
        data.decode()
    except UnicodeDecodeError as broken:
        return f"broken encoding: not UTF-8 at byte {broken.start}"
    return None


def _renamed(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    taken = {field: fields[name] for field, name in columns.items() if name in fields}
    used = {columns[field] for field in taken}
    return {**{name: value for name, value in fields.items() if name not in used}, **taken}


def _lacks(fields: Any, name: str) -> bool:
    return not isinstance(fields, Mapping) or name not in fields
