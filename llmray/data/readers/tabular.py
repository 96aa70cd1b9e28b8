"""csv and tsv: every value stays a string, and a row that is broken costs itself alone.

A line without a quote is split at its delimiters; from a quote on, the csv module reads on, strictly, so that line
breaks in quotes stay. A stray quote would so swallow the rows after it. Where it never closes, its line is broken, and
each line after it is judged by itself. Where it meets a later quote that cannot close it, the broken record ends before
the line from which on nearly all are rows by themselves, and at the latest before that of the later quote.

What is promised: in a file that is good otherwise, a stray quote costs the row it is in and no other (lines of that row
that by themselves look like rows become some), unless the next quote stands before a delimiter or the end of a line:
then the two hold a field like any other, and the rows between are in it. Rejected: pyarrow.csv and pandas (both guess
types, and a broken byte or a stray quote fails the whole block).
"""

import csv
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmray.data.readers.blocks import Lines
from llmray.data.readers.lines import ends
from llmray.data.readers.reading import Reading
from llmray.data.readers.records import Numbered, Quarantined, excerpt, not_utf8, record_of, too_long

_LONGEST_FIELD = (1 << 31) - 1
_BLANK = b" \r"
_OTHERS_A_ROW = 1 / 3
"""Lines that are no rows by themselves among those that are, up to which all are taken for rows and not for prose."""
_UNQUOTE = "if quotes mean nothing in this file, set reading.quotes to false"
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
    most, alone = reading.max_record_bytes, bool(header.raw)
    for line in feed:
        if not line.strip(_BLANK):
            continue
        number, alone = feed.number, False
        if len(line) > most:
            yield too_long(line, number, reading)
            continue
        row = _next_row(line, feed, delimiter, reading, len(header.names))
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
    if alone and header.trouble is None and b"\r" in header.raw.rstrip(b"\r"):
        reason = "the header is all there is, with carriage returns in it: end lines with line feeds"
        yield Quarantined(number=header.number, reason=reason, raw=excerpt(header.raw))
    yield from ends(lines, feed.number)
    return feed.number


class _Feed:
    """Lines that can be put back, and how many have been taken."""

    def __init__(self, lines: Lines) -> None:
        self._file = lines
        self._lines = iter(lines)
        self._back: deque[bytes] = deque()
        self.number = 0
        self._failed_at = 0

    @property
    def damaged(self) -> bool:
        """Whether the lines ran out because the file could not be read further."""
        return self._file.damage is not None

    @property
    def goes_on(self) -> bool:
        """Whether a quoted text may go on after the line last taken.

        Lines that were put back have been read as quoted text once, and that failed. It would fail at the same place
        again, whichever of them it begins in, and many stray quotes would take forever.
        """
        return self.number >= self._failed_at

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._back.popleft() if self._back else next(self._lines)
        self.number += 1
        return line

    def put_back(self, lines: Sequence[bytes]) -> None:
        """Undo the taking of the last lines, to be read one by one."""
        self._failed_at = self.number
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
    if len(line) > reading.max_record_bytes:
        row = _Row(fields=(), raw=line, trouble=too_long(line, number, reading).reason)
    else:
        # A name that is broken hurts only who wants it.
        row = _next_row(line.decode(errors="backslashreplace").encode(), feed, delimiter, reading, None)
    if row.trouble is not None:
        return _Header(names=(), number=number, raw=line, trouble=f"the header cannot be read: {row.trouble}")
    counts = Counter(name for name in row.fields if name in reading.wanted)
    trouble = next((f"the header names {name!r} twice" for name, count in counts.items() if count > 1), None)
    if not counts:
        trouble = (
            "no field of a row is in the header: say what is what in reading.columns, or name all in reading.header"
        )
    return _Header(names=row.fields, number=number, raw=row.raw, trouble=trouble)


def _next_row(first: bytes, feed: _Feed, delimiter: str, reading: Reading, width: int | None) -> _Row:
    """The row that begins with the line `first`; `width` is how many fields it should have, None for the header."""
    if not reading.quotes or b'"' not in first:
        trouble = not_utf8(first)
        text = "" if trouble else first.removesuffix(b"\r").decode()
        return _Row(fields=text.split(delimiter), raw=first, trouble=trouble)
    taken, size, ended = [first], len(first), False

    def texts() -> Iterator[str]:
        nonlocal size, ended
        yield _text(first)
        for line in feed if feed.goes_on else ():
            taken.append(line)
            size += 1 + len(line)
            if size > reading.max_record_bytes:
                return
            yield _text(line)
        ended = True

    fields: list[str] = []
    trouble = None
    try:
        fields = next(csv.reader(texts(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        over = f"nothing closes them within reading.max_record_mb ({reading.max_record_mb} MiB)"
        trouble = f"malformed quotes: {error if size <= reading.max_record_bytes else over}; {_UNQUOTE}"
    if len(taken) > 1 and (trouble or len(fields) != (width or len(fields))):
        if width is None or size > reading.max_record_bytes or (ended and not feed.damaged):
            own = 1
        else:
            # Where quotes went wrong, the last line may well begin a row.
            own = _first_row(taken if ended else taken[:-1], delimiter, width)
            if not trouble and own == len(taken) - 1:
                own = len(taken)
        if own < len(taken):
            trouble = trouble or f"malformed quotes: has {_fields(len(fields))} with the lines after it; {_UNQUOTE}"
            feed.put_back(taken[own:])
            del taken[own:]
    raw = b"\n".join(taken)
    return _Row(fields=fields, raw=raw, trouble=not_utf8(raw) or trouble)


def _first_row(lines: Sequence[bytes], delimiter: str, width: int) -> int:
    """The first of the lines after the first from which on nearly all are rows by themselves; the end if none is."""
    place, rows, others = len(lines), 0, 0
    for at in range(len(lines) - 1, 0, -1):
        if _stands_alone(lines[at], delimiter, width):
            rows += 1
            place = at if others <= _OTHERS_A_ROW * rows else place
        elif lines[at].strip(_BLANK):
            others += 1
    return place


def _stands_alone(line: bytes, delimiter: str, width: int) -> bool:
    if b'"' not in line:
        return line.count(delimiter.encode()) == width - 1
    try:
        return len(next(csv.reader([_text(line)], delimiter=delimiter, strict=True))) == width
    except csv.Error:
        return False


def _text(line: bytes) -> str:
    return line.decode(errors="surrogateescape") + "\n"


def _fields(number: int) -> str:
    return f"{number} field{'' if number == 1 else 's'}"
