"""Empty files, blank lines, byte order marks, carriage returns and NUL in every format of lines: nothing goes unsaid."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from llmray.data.readers import Found, Loss, Quarantined, Reading, chunks, read_chunk

MARK = b"\xef\xbb\xbf"
KINDS = ["csv", "tsv", "jsonl", "txt"]
Outcome = list[tuple[int, str | None]]
"""(line, text) of each row; no text where it is quarantined."""


def outcome(path: Path, reading: Reading | None = None) -> Outcome:
    found: Outcome = []
    for chunk in chunks(str(path), "source", reading=reading):
        for record in read_chunk(chunk, reading):
            assert not isinstance(record, Loss)
            found.append((record.number, record.row.text if isinstance(record, Found) else None))
    return found


def written(folder: Path, kind: str, lines: list[str], end: bytes, before: bytes = b"") -> Path:
    """One text a line, as each format writes it; csv and tsv have a header and a second column."""
    texts = [line.encode() for line in lines]
    if kind == "jsonl":
        texts = [b'{"text": "%s"}' % text if text.strip() else text for text in texts]
    elif kind != "txt":
        delimiter = b"," if kind == "csv" else b"\t"
        texts = [b"text%sn" % delimiter, *(text + delimiter + b"1" if text.strip() else text for text in texts)]
    path = folder / f"a.{kind}"
    path.write_bytes(before + b"".join(text + end for text in texts))
    return path


BY_LINE = Reading(text_rows="line")


@pytest.mark.parametrize("by", ["file", "paragraph", "line"])
@pytest.mark.parametrize("kind", [*KINDS, "csv.gz", "jsonl.zst"])
@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\r\n", b" \n\n  \r\n", b"\r", MARK, MARK + b"\n \n"])
def test_files_of_nothing(tmp_path: Path, kind: str, by: str, content: bytes) -> None:
    path = tmp_path / f"a.{kind}"
    if kind.endswith(("gz", "zst")):
        content = pa.compress(content, codec="gzip" if kind.endswith("gz") else "zstd", asbytes=True)
    path.write_bytes(content)
    assert outcome(path, Reading(text_rows=by)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("before", [b"", MARK])
def test_line_ends_and_byte_order_marks(tmp_path: Path, kind: str, end: bytes, before: bytes) -> None:
    path = written(tmp_path, kind, ["one", "", "two"], end, before)
    first = 2 if kind in ("csv", "tsv") else 1
    assert outcome(path, BY_LINE) == [(first, "one"), (first + 2, "two")]


@pytest.mark.parametrize("kind", KINDS)
def test_carriage_returns_alone_are_no_line_ends(tmp_path: Path, kind: str) -> None:
    # In a table all would be header, and nothing left to complain of.
    path = written(tmp_path, kind, ["one", "two"], b"\r")
    assert outcome(path, BY_LINE) == [(1, "one\rtwo" if kind == "txt" else None)]
    (record,) = read_chunk(chunks(str(path), "source")[0])
    if kind in ("csv", "tsv"):
        assert isinstance(record, Quarantined)
        assert "end lines with line feeds" in record.reason


@pytest.mark.parametrize("kind", ["csv", "tsv", "txt"])
def test_a_carriage_return_inside_a_line_stays(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind, ["o\rne", "two"], b"\n")
    assert [text for _, text in outcome(path, BY_LINE)] == ["o\rne", "two"]


@pytest.mark.parametrize("kind", KINDS)
def test_nul(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind, ["o\0ne", "two"], b"\n")
    texts = [text for _, text in outcome(path, BY_LINE)]
    # JSON has no NUL in strings but as \u0000.
    assert texts == [None if kind == "jsonl" else "o\0ne", "two"]


def test_tables_without_columns_or_rows(tmp_path: Path) -> None:
    for name, table in {
        "no columns": pa.table({}),
        "no rows": pa.table({"text": pa.array([], pa.string())}),
        "no columns but rows": pa.table({"x": [1, 2]}).select([]),
    }.items():
        parquet.write_table(table, tmp_path / "a.parquet")
        held = parquet.ParquetFile(tmp_path / "a.parquet").metadata.num_rows
        assert outcome(tmp_path / "a.parquet") == [(number + 1, None) for number in range(held)], name
        for make in (ipc.new_file, ipc.new_stream):
            with make(str(tmp_path / "a.arrow"), table.schema) as writer:
                writer.write_table(table)
            expected = table.num_rows
            assert outcome(tmp_path / "a.arrow") == [(number + 1, None) for number in range(expected)], name
