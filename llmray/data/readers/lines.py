"""JSON lines and plain text: one line, one paragraph or one file is a row, and a bad one costs itself alone.

JSON is decoded line by line with orjson, so "001" stays a string. Rejected: Ray Data's `read_json` (turns "001" into 1
and fails the whole read on one bad line), and splitting text at sentences, which differ between languages.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import orjson

from llmray.data.readers.blocks import Damage, Lines
from llmray.data.readers.records import Found, Loss, Numbered, Quarantined, Record, excerpt, not_utf8, record_of
from llmray.data.rows import Row

_MARK = b"\xef\xbb\xbf"


def read_jsonl(lines: Lines, columns: Mapping[str, str]) -> Numbered:
    """A record from each line that is not blank."""
    number = 0
    for number, line in enumerate(lines, 1):
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


def read_text(lines: Lines, by: Literal["paragraph", "line"]) -> Numbered:
    """A row from each line or paragraph that is not blank, without the line breaks around it."""
    number, begun = 0, 0
    block: list[bytes] = []
    for number, line in enumerate(lines, 1):
        if by == "line":
            if line.strip():
                yield _text_row(line.removesuffix(b"\r"), number)
        elif line.strip():
            begun = begun if block else number
            block.append(line.removesuffix(b"\r"))
        elif block:
            yield _text_row(b"\n".join(block), begun)
            block = []
    if block and lines.damage is None:
        yield _text_row(b"\n".join(block), begun)
    elif block:
        # The paragraph may have gone on.
        yield Quarantined(number=begun, reason=f"cut off: {lines.damage}", raw=excerpt(b"\n".join([*block, lines.cut])))
        lines.cut = b""
    yield from ends(lines, number)
    return number


def read_text_file(blocks: Iterator[bytes]) -> Numbered:
    """The whole file as one row; no row where it is blank, and a quarantined one where it is not whole."""
    parts: list[bytes] = []
    damage: str | None = None
    try:
        for block in blocks:  # Not list(): what came before a `Damage` must stay.
            parts.append(block)  # noqa: PERF402
    except Damage as error:
        damage = str(error)
    text = b"".join(parts).removeprefix(_MARK)
    if text.strip():
        if damage is None:
            yield _text_row(text, 1)
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


def _text_row(text: bytes, number: int) -> Found | Quarantined:
    try:
        return Found(row=Row(shape="text", text=text.decode()), number=number)
    except UnicodeDecodeError as broken:
        reason = f"broken encoding: not UTF-8 at byte {broken.start}"
        return Quarantined(number=number, reason=reason, raw=excerpt(text))
