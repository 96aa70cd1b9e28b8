"""JSON lines and plain text: one line, one paragraph or one file is a row, and a bad one costs itself alone.

JSON is decoded line by line with orjson, so "001" stays a string. Rejected: Ray Data's `read_json` (turns "001" into 1
and fails the whole read on one bad line), and splitting text at sentences, which differ between languages.
"""

from collections.abc import Iterator

import orjson

from llmray.data.readers.blocks import Damage, Lines
from llmray.data.readers.reading import Reading
from llmray.data.readers.records import (
    Found,
    Loss,
    Numbered,
    Quarantined,
    Record,
    excerpt,
    not_utf8,
    record_of,
    too_long,
)
from llmray.data.rows import Row

_MARK = b"\xef\xbb\xbf"


def read_jsonl(lines: Lines, reading: Reading) -> Numbered:
    """A record from each line that is not blank."""
    number = 0
    most, columns = reading.max_record_bytes, reading.columns
    for number, line in enumerate(lines, 1):
        if len(line) > most:
            yield too_long(line, number, reading)
            continue
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if line.strip():
                reason = not_utf8(line) or f"malformed JSON: {error.msg} at column {error.colno}"
                yield Quarantined(number=number, reason=reason, raw=excerpt(line))
            continue
        yield record_of(fields, number, columns, line)
    yield from ends(lines, number)
    return number


def read_text(lines: Lines, reading: Reading) -> Numbered:
    """A row from each line or paragraph that is not blank, without the line breaks around it."""
    number, begun, size = 0, 0, 0
    block: list[bytes] = []
    for number, line in enumerate(lines, 1):
        if reading.text_rows == "line":
            if line.strip():
                yield _text_row(line.removesuffix(b"\r"), number, reading)
        elif line.strip():
            begun, size = (begun, size) if block else (number, 0)
            if size <= reading.max_record_bytes + 1:  # The last line has no line break.
                block.append(line.removesuffix(b"\r"))
                size += len(block[-1]) + 1
        elif block:
            yield _text_row(b"\n".join(block), begun, reading)
            block = []
    if block and lines.damage is None:
        yield _text_row(b"\n".join(block), begun, reading)
    elif block:
        # The paragraph may have gone on.
        yield Quarantined(number=begun, reason=f"cut off: {lines.damage}", raw=excerpt(b"\n".join([*block, lines.cut])))
        lines.cut = b""
    yield from ends(lines, number)
    return number


def read_text_file(blocks: Iterator[bytes], reading: Reading) -> Numbered:
    """The whole file as one row; no row where it is blank, and a quarantined one where it is too long or not whole."""
    parts: list[bytes] = []
    size = 0
    damage: str | None = None
    try:
        for block in blocks:  # Not list(): what came before a `Damage` must stay.
            parts.append(block)
            size += len(block)
            if size > reading.max_record_bytes + len(_MARK):
                break
    except Damage as error:
        damage = str(error)
    text = b"".join(parts).removeprefix(_MARK)
    if text.strip():
        if damage is None:
            yield _text_row(text, 1, reading)
        else:
            yield Quarantined(number=1, reason=f"cut off: {damage}", raw=excerpt(text))
    if damage is not None:
        yield Loss(number=0, reason=damage)
    return 1


def ends(lines: Lines, number: int) -> Iterator[Record]:
    """What there is to say after the last whole line: nothing, unless the file could not be read further."""
    if lines.damage is None:
        return
    if lines.cut.strip():
        yield Quarantined(number=number + 1, reason=f"cut off: {lines.damage}", raw=excerpt(lines.cut))
    yield Loss(number=number, reason=lines.damage)


def _text_row(text: bytes, number: int, reading: Reading) -> Found | Quarantined:
    if len(text) > reading.max_record_bytes:
        return too_long(text, number, reading)
    try:
        return Found(row=Row(shape="text", text=text.decode()), number=number)
    except UnicodeDecodeError as broken:
        reason = f"broken encoding: not UTF-8 at byte {broken.start}"
        return Quarantined(number=number, reason=reason, raw=excerpt(text))
