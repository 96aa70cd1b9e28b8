"""csv and tsv: every value stays a string, and a row that is broken costs itself alone.

A line without a quote is split at its delimiters; from a quote on, the csv module reads on, strictly, so that line
breaks in quotes stay. A quote that never closes properly would swallow the rows after it: where each line after it has
the right number of fields by itself, those are rows, and only the first line is broken; else they are the text that was
quoted, and the whole is. Rejected: pyarrow.csv and pandas (both guess types, and a broken byte or a stray quote fails
the whole block).
"""

import csv
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmray.data.readers.blocks import Lines
from llmray.data.readers.lines import ends
from llmray.data.readers.reading import Reading
from llmray.data.readers.records import Numbered, Quarantined, excerpt, not_utf8, record_of

_LONGEST_FIELD = (1 << 31) - 1
_BLANK = b" \r"
_OPTIONAL = ("group", "choices", "messages", "conversations", "system", "input")
"""An empty value here says that there is none; elsewhere it is the empty text."""


def read_table(lines: Lines, delimiter: str, reading: Reading) -> Numbered:
    """A record from each row after the header; its number is that of the line on which it begins."""
    # The limit belongs to the whole process, and its default (128 KiB) is shorter than a long document.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    feed = _Feed(lines)
    header = _header(feed, delimiter, reading)
    if header.trouble:
        # It may have been a row, so it is accounted for like one.
        yield Quarantined(number=header.number, reason=header.trouble, raw=excerpt(header.raw))
    optional = [reading.columns.get(field, field) for field in _OPTIONAL]
    for line in feed:
        if not line.strip(_BLANK):
            continue
        number = feed.number
        row = _next_row(line, feed, delimiter, reading.quotes, len(header.names))
        reason = header.trouble or row.trouble
        if reason is None and len(row.fields) != len(header.names):
            reason = f"has {_fields(len(row.fields))} where the header has {len(header.names)}"
        if reason is not None:
            yield Quarantined(number=number, reason=reason, raw=excerpt(row.raw))
            continue
        record = dict(zip(header.names, row.fields, strict=True))
        for name in optional:
            if record.get(name) == "":
                del record[name]
        yield record_of(record, number, reading.columns, row.raw)
    yield from ends(lines, feed.number)
    return feed.number


class _Feed:
    """Lines that can be put back, and how many have been taken."""

    def __init__(self, lines: Lines) -> None:
        self._lines = iter(lines)
        self._back: deque[bytes] = deque()
        self.number = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._back.popleft() if self._back else next(self._lines)
        self.number += 1
        return line

    def put_back(self, lines: Sequence[bytes]) -> None:
        self._back.extendleft(reversed(lines))
        self.number -= len(lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    names: Sequence[str]
    number: int = 0
    raw: bytes = b""
    trouble: str | None = None
    """Why no row below it can be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    fields: Sequence[str]
    raw: bytes
    trouble: str | None


def _header(feed: _Feed, delimiter: str, reading: Reading) -> _Header:
    if reading.header:
        return _Header(names=reading.header)
    line = next((line for line in feed if line.strip(_BLANK)), None)
    if line is None:
        return _Header(names=())
    number = feed.number
    # A name that is broken hurts only who wants it.
    row = _next_row(line.decode(errors="backslashreplace").encode(), feed, delimiter, reading.quotes, 0)
    if row.trouble is not None:
        feed.put_back(row.raw.split(b"\n")[1:])
        return _Header(names=(), number=number, raw=line, trouble=f"the header cannot be read: {row.trouble}")
    counts = Counter(name for name in row.fields if name in reading.wanted)
    trouble = next((f"the header names {name!r} twice" for name, count in counts.items() if count > 1), None)
    if not counts:
        trouble = (
            "no field of a row is in the header: say what is what in reading.columns, or name all in reading.header"
        )
    return _Header(names=row.fields, number=number, raw=row.raw, trouble=trouble)


def _next_row(first: bytes, feed: _Feed, delimiter: str, quotes: bool, width: int) -> _Row:
    """The row that begins with the line `first`; `width` is how many fields it should have."""
    if not quotes or b'"' not in first:
        trouble = not_utf8(first)
        text = "" if trouble else first.removesuffix(b"\r").decode()
        return _Row(fields=text.split(delimiter), raw=first, trouble=trouble)
    taken, ended = [first], False

    def texts() -> Iterator[str]:
        nonlocal ended
        yield _text(first)
        for line in feed:
            taken.append(line)
            yield _text(line)
        ended = True

    fields: list[str] = []
    trouble = None
    try:
        fields = next(csv.reader(texts(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        trouble = f"malformed quotes: {error}; if quotes mean nothing in this file, set reading.quotes to false"
        # The last line is where it went wrong, and may well begin a row.
        if width > 1 and all(_stands_alone(line, delimiter, width) for line in taken[1 : None if ended else -1]):
            feed.put_back(taken[1:])
            taken = [first]
    raw = b"\n".join(taken)
    return _Row(fields=fields, raw=raw, trouble=not_utf8(raw) or trouble)


def _stands_alone(line: bytes, delimiter: str, width: int) -> bool:
    try:
        return len(next(csv.reader([_text(line)], delimiter=delimiter, strict=True))) == width
    except csv.Error:
        return False


def _text(line: bytes) -> str:
    return line.decode(errors="surrogateescape") + "\n"


def _fields(number: int) -> str:
    return f"{number} field{'' if number == 1 else 's'}"
