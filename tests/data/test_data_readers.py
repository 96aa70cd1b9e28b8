"""Broken files of every kind: nothing that could be read is lost, and what could not is named."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from llmray.data.readers import Found, Loss, Quarantined, read
from llmray.errors import InputError, NotFoundError

CHANCE = random.Random(7)
LINES = [
    orjson.dumps({"text": f"row {number} " + "".join(CHANCE.choices("abcdefghij ", k=200))})
    for number in range(1, 2001)
]
PLAIN = b"\n".join(LINES) + b"\n"


def texts(path: Path) -> list[str | None]:
    return [record.row.text for record in read(str(path)) if isinstance(record, Found)]


def losses(path: Path) -> list[Loss]:
    return [record for record in read(str(path)) if isinstance(record, Loss)]


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


ZIPPED: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.jsonl.gz", "a.jsonl.zst"])
def test_whole_files(tmp_path: Path, name: str) -> None:
    data = ZIPPED[name.rsplit(".", 1)[-1]](PLAIN) if name.count(".") > 1 else PLAIN
    records = list(read(str(write(tmp_path, name, data))))
    assert [record.number for record in records] == list(range(1, 2001))
    assert all(isinstance(record, Found) for record in records)


def test_types_stay_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"text": "001"}\n{"text": "2024-01-01T00:00:00"}\n{"text": 1}\n')
    first, second, third = read(str(path))
    assert isinstance(first, Found)
    assert first.row.text == "001"
    assert isinstance(second, Found)
    assert second.row.text == "2024-01-01T00:00:00"
    assert isinstance(third, Quarantined)
    assert (third.number, third.reason) == (3, "text is a number, not a string")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "malformed JSON"),
        (b"not json", "malformed JSON"),
        (b'{"text": NaN}', "malformed JSON"),
        (b'{"text": "\xff\xfe"}', "broken encoding: not UTF-8 at byte 10"),
        (b'{"text": "\\ud800"}', "malformed JSON"),
        (b"[1]", "not an object: a list"),
        (b'"text"', "not an object: a string"),
        (b'{"text": null}', "has no field"),
        (b"\x00\x00", "malformed JSON"),
    ],
)
def test_a_bad_line_is_quarantined_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path, "a.jsonl", b'{"text": "before"}\n' + line + b'\n\n  \n{"text": "after"}')
    before, bad, after = read(str(path))
    assert isinstance(bad, Quarantined)
    assert (bad.number, reason in bad.reason) == (2, True), bad.reason
    assert bad.raw
    assert isinstance(before, Found)
    assert isinstance(after, Found)
    assert (before.number, after.number, after.row.text) == (1, 5, "after")


def test_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    assert texts(path) == ["a", "b"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_members_one_after_another(tmp_path: Path, suffix: str) -> None:
    zip_ = ZIPPED[suffix]
    path = write(tmp_path, f"a.jsonl.{suffix}", zip_(LINES[0] + b"\n") + zip_(LINES[1] + b"\n"))
    assert len(texts(path)) == 2
    assert losses(path) == []
    padded = write(tmp_path, f"b.jsonl.{suffix}", zip_(LINES[0]) + b"\0" * 700)
    assert len(texts(padded)) == 1
    assert losses(padded) == []


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_give_up_what_is_there(tmp_path: Path, suffix: str, share: float) -> None:
    data = ZIPPED[suffix](PLAIN)
    path = write(tmp_path, f"a.jsonl.{suffix}", data[: int(len(data) * share)])
    records = list(read(str(path)))
    if share == 0.0:
        assert records == []  # An empty file holds no rows; nothing was cut.
        return
    found = [record for record in records if isinstance(record, Found)]
    assert [record.number for record in found] == list(range(1, len(found) + 1))
    *_, last = records
    assert isinstance(last, Loss)
    assert last.number == len(found)
    assert f"truncated {'gzip' if suffix == 'gz' else 'zstd'}" in last.reason
    assert sum(isinstance(record, Quarantined) for record in records) <= 1
    if suffix == "gz":
        # zlib itself, fed byte by byte, finds no more whole lines.
        assert len(found) == _lines_in(data[: int(len(data) * share)])


def _lines_in(data: bytes) -> int:
    import zlib

    state, out = zlib.decompressobj(wbits=31), b""
    for byte in data:
        try:
            out += state.decompress(bytes([byte]))
        except zlib.error:
            break
    return sum(bool(line.strip()) for line in out.split(b"\n")[:-1])


@pytest.mark.parametrize("place", [0.02, 0.3, 0.7, 0.98])
def test_damaged_gzip_gives_up_what_lies_before(tmp_path: Path, place: float) -> None:
    data = bytearray(ZIPPED["gz"](PLAIN))
    at = int(len(data) * place)
    data[at : at + 40] = b"\xff" * 40
    path = write(tmp_path, "a.jsonl.gz", bytes(data))
    *records, last = read(str(path))
    before = _lines_in(bytes(data[:at]))
    intact = [orjson.loads(line)["text"] for line in LINES]
    assert [record.row.text for record in records[:before] if isinstance(record, Found)] == intact[:before]
    # Until the decoder stumbles it may make noise of the damage: that is quarantined, and nothing is skipped.
    assert len(records) >= _lines_in(bytes(data))
    assert isinstance(last, Loss)
    assert "damaged gzip" in last.reason


def test_a_wrong_checksum_is_told(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(PLAIN, compresslevel=0, mtime=0))
    at = data.index(b"row 1000 ") + 4
    data[at : at + 4] = b"9999"
    path = write(tmp_path, "a.jsonl.gz", bytes(data))
    assert len(texts(path)) == 2000
    assert "checksum" in losses(path)[0].reason


def test_damaged_zstd_gives_up_what_lies_before(tmp_path: Path) -> None:
    data = bytearray(zstandard.ZstdCompressor(level=1, write_checksum=True).compress(PLAIN * 8))
    at = int(len(data) * 0.8)
    data[at : at + 40] = b"\xff" * 40
    path = write(tmp_path, "a.jsonl.zst", bytes(data))
    assert len(texts(path)) > 8000
    assert len(losses(path)) == 1


def test_not_compressed_at_all(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl.gz", PLAIN)
    assert texts(path) == []
    assert "damaged gzip" in losses(path)[0].reason


@given(st.binary(max_size=300), st.sampled_from(["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_never_an_exception(tmp_path: Path, noise: bytes, suffix: str) -> None:
    records = list(read(str(write(tmp_path, f"noise.{suffix}", noise))))
    assert all(isinstance(record, Found | Quarantined | Loss) for record in records)
    if suffix == "jsonl":
        assert len(records) == sum(bool(line.strip()) for line in noise.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60), st.integers(1, 50))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_do_not_depend_on_how_they_are_cut_into_blocks(
    tmp_path: Path, lines: list[tuple[bool, int]], block: int
) -> None:
    from llmray.data.readers import blocks

    written = [orjson.dumps({"text": "x" * size}) if good else b"{" * size for good, size in lines]
    path = write(tmp_path, "a.jsonl.gz", gzip.compress(b"\n".join(written), mtime=0))
    whole = list(read(str(path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_PACKED_READ_BYTES", block)
        assert list(read(str(path))) == whole
    assert len(whole) == len(lines)


def test_parquet(tmp_path: Path) -> None:
    rows = [
        {"text": "001", "messages": None, "number": 5},
        {
            "text": None,
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "number": 6,
        },
        {"text": None, "messages": None, "number": 7},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second, third = read(str(tmp_path / "a.parquet"))
    assert isinstance(first, Found)
    assert first.row.text == "001"
    assert isinstance(second, Found)
    assert second.row.answer == "a"
    assert isinstance(third, Quarantined)
    assert third.number == 3


def test_parquet_with_wrong_types_and_broken_encoding(tmp_path: Path) -> None:
    numbers = pa.table({"text": [1, 2]})
    parquet.write_table(numbers, tmp_path / "numbers.parquet")
    assert {record.reason for record in read(str(tmp_path / "numbers.parquet")) if isinstance(record, Quarantined)} == {
        "text is a number, not a string"
    }
    binary = pa.array([b"good", b"\xff\xfe", b"also good"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    parquet.write_table(pa.table({"text": strings}), tmp_path / "broken.parquet")
    assert texts(tmp_path / "broken.parquet") == ["good", "also good"]


def test_a_damaged_row_group_loses_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [orjson.loads(line)["text"] for line in LINES]})
    parquet.write_table(table, path, row_group_size=500, use_dictionary=False)
    chunk = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 60] = b"\xff" * 60
    path.write_bytes(bytes(data))
    records = list(read(str(path)))
    assert [record.number for record in records if isinstance(record, Found)] == [*range(1, 501), *range(1001, 2001)]
    (loss,) = [record for record in records if isinstance(record, Loss)]
    assert (loss.number, loss.rows) == (500, 500)
    assert "row group 1" in loss.reason


def test_no_such_file_and_no_such_format(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        list(read(str(tmp_path / "none.jsonl")))
    with pytest.raises(InputError, match=r"name files that end in \.jsonl"):
        list(read(str(write(tmp_path, "a.xlsx", b"text\na\n"))))
