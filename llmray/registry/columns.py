"""Column types that hold the same values on SQLite and PostgreSQL.

Times go in and come out timezone-aware in UTC. Free text loses what PostgreSQL cannot store: NUL and unpaired
surrogates become U+FFFD, since a model or a client may well produce them and a log must not choke on one answer. JSON
is written as ASCII, which keeps even those. Rejected: JSONB (PostgreSQL only, and refuses NUL).
"""

import json
import re
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Text
from sqlalchemy.types import TypeDecorator

from llmray.errors import InputError

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class UtcTime(TypeDecorator[datetime]):
    """A moment: aware in Python, UTC text in SQLite, `timestamptz` in PostgreSQL."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise InputError(f"the registry keeps moments with a timezone: {value!r} has none")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class FreeText(TypeDecorator[str]):
    """Any text, of any length."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None or (value.isascii() and "\0" not in value):  # nearly always, and ten times as fast
            return value
        return _UNSTORABLE.sub("\ufffd", value)


def to_json(value: Any) -> str:
    """Encode for a JSON column.

    Raises:
        InputError: a number that is not finite, or a value of a type that JSON does not have.
    """
    try:
        return _encode(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"the registry cannot keep this as JSON: {error}") from error


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return dict(value)
        case Set():
            return sorted(value)
        case Sequence():
            return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain).encode
