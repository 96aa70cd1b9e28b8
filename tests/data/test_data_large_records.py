"""A record that is too long is quarantined alone, and no more of it is held than it takes to know that."""

import gzip
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from llmray.data.readers import Found, Quarantined, Reading, read
from llmray.data.readers.blocks import Lines
from llmray.data.readers.lines import read_text_file
from llmray.data.rows import Row

MB = 1 << 20
SMALL = Reading(max_record_mb=1)


def contents(kind: str, texts: list[str], reading: Reading) -> bytes:
    """A file with a row for each text."""
    columns = pa.table({"text": texts, "group": ["g"] * len(texts)})
    sink = io.BytesIO()
    match kind:
        case "jsonl":
            return b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)
        case "csv" | "tsv":
            delimiter = "," if kind == "csv" else "\t"
            return "".join([f"text{delimiter}n\n", *(f"{text}{delimiter}1\n" for text in texts)]).encode()
        case "txt":
            return ("\n" if reading.text_rows == "line" else "\n\n").join(texts).encode()
        case "parquet":
            parquet.write_table(columns, sink)
        case "arrow":
            with ipc.new_file(sink, columns.schema) as writer:
                writer.write_table(columns)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "by"),
    [
        *((f"a.{kind}", "file") for kind in ("jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "parquet", "arrow")),
        *((f"a.{kind}", by) for kind in ("txt", "txt.gz") for by in ("line", "paragraph")),
    ],
)
@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_record_that_is_too_long_is_quarantined_alone(tmp_path: Path, name: str, by: str, letter: str) -> None:
    reading = replace(SMALL, text_rows=by)  # type: ignore[arg-type]
    texts = ["before", letter * (MB // len(letter.encode()) + 1), "between", letter * (3 * MB), "after"]
    data = contents(name.split(".")[1], texts, reading)
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    found = list(read(str(path), reading))
    assert [one.row.text for one in found if isinstance(one, Found)] == ["before", "between", "after"]
    long = [one for one in found if isinstance(one, Quarantined)]
    assert [found.index(one) for one in long] == [1, 3]
    assert all("longer than reading.max_record_mb (1 MiB): raise it" in one.reason for one in long)
    assert all(letter * 50 in one.raw and len(one.raw) <= 3000 for one in long)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt", "arrow"])
def test_the_limit_itself_is_not_too_long(tmp_path: Path, kind: str) -> None:
    reading = replace(SMALL, text_rows="line")
    around = {"csv": 2, "jsonl": len('{"text":""}'), "txt": 0, "arrow": 1}[kind]
    for size, kept in ((MB - around, 1), (MB - around + 1, 0)):
        (tmp_path / f"a.{kind}").write_bytes(contents(kind, ["x" * size], reading))
        found = list(read(str(tmp_path / f"a.{kind}"), reading))
        assert [isinstance(one, Found) for one in found] == [bool(kept)]


def test_paragraphs_quoted_texts_and_files_are_bounded_as_a_whole(tmp_path: Path) -> None:
    line = "y" * 99 + "\n"
    for lines, kept in ((MB // 100, 1), (MB // 100 + 1, 0)):
        for name, content in {"a.txt": line * lines, "a.csv": f'text,n\n"{line * lines}",1\nlast,2\n'}.items():
            (tmp_path / name).write_bytes(content.encode())
            for by in ("file", "paragraph"):
                found = list(read(str(tmp_path / name), replace(SMALL, text_rows=by)))  # type: ignore[arg-type]
                if name == "a.txt" or kept:
                    assert [type(one) for one in found][:1] == [Found if kept else Quarantined], (name, by)
                else:
                    assert "nothing closes them within reading.max_record_mb" in found[0].reason  # type: ignore[union-attr]
                    assert found[-1] == Found(row=Row(shape="text", text="last"), number=lines + 3)


def test_a_conversation_counts_as_a_whole(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "x" * (MB // 2)} for role in ("user", "assistant")]
    table = pa.table({"messages": [turns, turns[1:]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    long, short = read(str(tmp_path / "a.parquet"), SMALL)
    assert (type(long), type(short)) == (Quarantined, Found)


def test_no_more_of_a_line_is_held_than_its_limit() -> None:
    def blocks() -> Iterator[bytes]:
        yield b"\xef\xbb\xbf"
        yield from [b"x" * 1000] * 5000
        yield b"end\nnext\n"

    lines = list(Lines(blocks(), max_bytes=10_000))
    assert lines[1:] == [b"next"]
    assert 10_000 < len(lines[0]) < 12_000


def test_no_more_of_a_text_file_is_read_than_a_record_may_hold() -> None:
    given = 0

    def blocks() -> Iterator[bytes]:
        nonlocal given
        for _ in range(100):
            given += 1
            yield b"x" * (MB // 4)

    (record,) = read_text_file(blocks(), SMALL)
    assert isinstance(record, Quarantined)
    assert given == 5


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_few_long_rows_are_decoded_at_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmray.data.readers import columnar

    monkeypatch.setattr(columnar, "_BATCH_BYTES", 10_000)
    at_once: list[int] = []
    plain = columnar._rows_at_once

    def rows_at_once(num_rows: int, num_bytes: int) -> int:
        at_once.append(plain(num_rows, num_bytes))
        return at_once[-1]

    monkeypatch.setattr(columnar, "_rows_at_once", rows_at_once)
    texts = [f"{number:04d}" * 500 for number in range(300)]
    (tmp_path / f"a.{kind}").write_bytes(contents(kind, texts, SMALL))
    found = list(read(str(tmp_path / f"a.{kind}")))
    assert [one.row.text for one in found if isinstance(one, Found)] == texts
    assert [one.number for one in found] == list(range(1, 301))
    assert max(at_once) <= 5
