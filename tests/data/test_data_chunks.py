"""Chunks of a file, read apart and put together, are the file: for any content and any size of chunk."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from llmray.data.readers import Chunk, Found, Loss, Reading, Record, chunks, read, read_chunk
from llmray.data.readers.blocks import lines_between
from llmray.errors import InputError, NotFoundError

anything = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

LINE = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"", b"\r", b" ", b"\xef\xbb\xbf", b'{"text": "\xff"}', b"[1]", b'{"text": 1}']),
    st.text(max_size=8).map(lambda text: orjson.dumps({"text": text})),
)
CONTENT = st.lists(LINE, max_size=12).map(b"\n".join)


def together(uri: str, chunk_bytes: int, reading: Reading | None = None) -> tuple[list[Record], int]:
    """The records of all chunks with their numbers in the file, and how many lines or rows there were."""
    found: list[Record] = []
    before = 0
    for chunk in chunks(uri, "source", reading=reading, chunk_bytes=chunk_bytes):
        records = read_chunk(chunk, reading)
        found.extend(dataclasses.replace(record, number=record.number + before) for record in records)
        before += records.num_held
    return found, before


def written(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


@given(CONTENT, st.integers(1, 40))
@anything
def test_chunks_of_json_lines_are_the_file(tmp_path: Path, content: bytes, chunk_bytes: int) -> None:
    uri = written(tmp_path, "a.jsonl", content)
    records, held = together(uri, chunk_bytes)
    assert records == list(read(uri))
    *whole, last = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert held == len(whole) + bool(last)


@given(CONTENT, st.integers(1, 40))
@anything
def test_chunks_of_lines_of_text_are_the_file(tmp_path: Path, content: bytes, chunk_bytes: int) -> None:
    reading = Reading(text_rows="line")
    uri = written(tmp_path, "a.txt", content)
    assert together(uri, chunk_bytes, reading)[0] == list(read(uri, reading))


@given(st.binary(max_size=200).map(lambda data: data.replace(b"\x01", b"\n")), st.integers(1, 50), st.integers(1, 30))
@settings(deadline=None)
def test_ranges_hold_each_byte_once_and_whole_lines(content: bytes, size: int, block: int) -> None:
    from llmray.data.readers import blocks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "READ_BYTES", block)
        starts = range(0, len(content) + 1, size)
        parts = [b"".join(lines_between(io.BytesIO(content), start, start + size)) for start in starts]
    assert b"".join(parts) == content
    for part, start in zip(parts, starts, strict=True):
        first = sum(map(len, parts[: start // size]))
        assert not part or (first == 0 or content[first - 1 : first] == b"\n")
        # A line belongs where it begins.
        assert not part or start <= first < start + size


def test_a_range_reads_no_further_than_its_last_line() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    file = Counting((b"x" * 99 + b"\n") * 100_000)
    assert len(b"".join(lines_between(file, 5_000_000, 5_001_000))) == 1_000
    assert file.taken < 1 << 20
    endless = Counting(b"x" * 10_000_000)
    assert list(lines_between(endless, 5_000_000, 5_001_000)) == []
    assert endless.taken < 1 << 20


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 2_000))
@anything
def test_chunks_of_parquet_are_the_file(tmp_path: Path, groups: list[int], chunk_bytes: int) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"text": None if number % 5 == 4 else f"row {number}"} for number in range(sum(groups))]
    table = pa.Table.from_pylist(rows, pa.schema([("text", pa.string())]))
    with parquet.ParquetWriter(path, table.schema) as writer:
        begin = 0
        for size in groups:
            writer.write_table(table.slice(begin, size))
            begin += size
    records, held = together(str(path), chunk_bytes)
    assert records == list(read(str(path)))
    assert held == sum(groups)
    assert len(chunks(str(path), "source", chunk_bytes=1)) == len(groups)
    assert len(chunks(str(path), "source", chunk_bytes=1 << 30)) == 1


def test_what_is_lost_in_a_chunk_still_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pa.table({"text": [f"row {number}" for number in range(300)]}), path, row_group_size=100, use_dictionary=False
    )
    page = parquet.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[page.data_page_offset : page.data_page_offset + 60] = b"\xff" * 60
    path.write_bytes(bytes(data))
    records, held = together(str(path), 1)
    assert held == 300
    loss, *rest = records
    assert isinstance(loss, Loss)
    assert (loss.number, loss.rows) == (0, 100)
    assert [(record.number, record.row.text) for record in rest if isinstance(record, Found)] == [
        (number + 1, f"row {number}") for number in range(100, 300)
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.txt", "a.arrow", "a.parquet"])
def test_what_cannot_be_entered_in_its_middle_is_one_chunk(tmp_path: Path, name: str) -> None:
    uri = written(tmp_path, name, b"x" * 500)
    assert chunks(uri, "s", chunk_bytes=10) == [Chunk(uri=uri, source="s", num_bytes=500)]


def test_an_empty_file_is_one_empty_chunk(tmp_path: Path) -> None:
    uri = written(tmp_path, "a.jsonl", b"")
    (chunk,) = chunks(uri, "s")
    records = read_chunk(chunk)
    assert (list(records), records.num_held) == ([], 0)


def test_the_work_of_chunks_adds_up(tmp_path: Path, write_lines: Callable[..., str]) -> None:
    uri = write_lines("a.jsonl", [{"text": "x" * number} for number in range(100)])
    found = chunks(uri, "s", chunk_bytes=1000)
    assert len(found) > 5
    assert sum(chunk.num_bytes or 0 for chunk in found) == Path(uri).stat().st_size
    assert {chunk.source for chunk in found} == {"s"}


def test_records_come_from_one_pass(write_lines: Callable[..., str]) -> None:
    records = read_chunk(Chunk(uri=write_lines("a.jsonl", [{"text": "a"}, {"text": "b"}]), source="s"))
    assert next(records).number == 1
    with pytest.raises(AssertionError, match="to their end"):
        _ = records.num_held
    assert [record.number for record in records] == [2]
    assert records.num_held == 2


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        chunks(str(tmp_path / "none.jsonl"), "s")
    with pytest.raises(InputError, match=r"reading\.formats"):
        chunks(written(tmp_path, "a.xlsx", b""), "s")
