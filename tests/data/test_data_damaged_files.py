"""A corpus of damaged files: nothing before the damage changes, every line is accounted for, and nothing escapes.

Each case writes a file of one format whose rows are known, and says where in the file each row has ended; then bytes
are cut off, overwritten, inserted or turned over. What lies before the damage must come out as if nothing had happened.
"""

import csv
import dataclasses
import gzip
import io
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
import zstandard
from pyarrow import ipc, parquet

from llmray.data.readers import Found, Loss, Quarantined, Reading, Record, chunks, read, read_chunk

WORDS = ["plain", "süß", "日本語", "𝄞", "tab", "comma", "quote", "brace", "001", "null"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """An undamaged file."""

    name: str
    data: bytes
    ends: Sequence[int]
    """Where in the file (unpacked, where it is packed) the records end that come before each of the others."""
    reading: Reading = dataclasses.field(default_factory=Reading)


def rows(chance: random.Random, num: int) -> list[dict[str, Any]]:
    """Rows of all shapes, and some that are none: of the wrong type, or null."""
    made: list[dict[str, Any]] = []
    for number in range(num):
        text = f"{number} " + " ".join(chance.choices(WORDS, k=chance.randint(1, 30)))
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]
        makers: list[dict[str, Any]] = [
            {"text": text},
            {"messages": turns},
            {"prompt": text, "chosen": "a", "rejected": "b"},
            {"instruction": text, "output": "x"},
            {"text": None},
            {"text": number},
            {"messages": "none"},
        ]
        made.append(chance.choices(makers, weights=[8, 4, 2, 2, 1, 1, 1])[0])
    return made


def texts(chance: random.Random, num: int) -> list[str]:
    return [f"{number} " + " ".join(chance.choices(WORDS, k=chance.randint(1, 30))) for number in range(num)]


def json_lines(chance: random.Random) -> Case:
    lines = [orjson.dumps(row) + b"\n" for row in rows(chance, 60)]
    return Case(name="a.jsonl", data=b"".join(lines), ends=ends_of(lines))


def text_lines(chance: random.Random) -> Case:
    lines = [text.encode() + b"\n" for text in texts(chance, 60)]
    return Case(name="a.txt", data=b"".join(lines), ends=ends_of(lines), reading=Reading(text_rows="line"))


def paragraphs(chance: random.Random) -> Case:
    parts = [text.replace(" ", "\n", 3).encode() + b"\n\n" for text in texts(chance, 40)]
    return Case(name="a.txt", data=b"".join(parts), ends=ends_of(parts), reading=Reading(text_rows="paragraph"))


def table(chance: random.Random, delimiter: str = ",") -> Case:
    lines = []
    for text in [None, *texts(chance, 60)]:
        buffer = io.StringIO()
        quoted = text and text.replace("quote", '"').replace("comma", ",").replace("tab", "\t").replace("brace", "\n")
        csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerow([quoted or "text", "label"])
        lines.append(buffer.getvalue().encode())
    name = "a.csv" if delimiter == "," else "a.tsv"
    return Case(name=name, data=b"".join(lines), ends=ends_of(lines)[1:])


def tabs(chance: random.Random) -> Case:
    return table(chance, "\t")


def zipped(make: Callable[[random.Random], Case]) -> Callable[[random.Random], Case]:
    def made(chance: random.Random) -> Case:
        case = make(chance)
        return dataclasses.replace(case, name=f"{case.name}.gz", data=gzip.compress(case.data, mtime=0))

    return made


def zstd(make: Callable[[random.Random], Case]) -> Callable[[random.Random], Case]:
    def made(chance: random.Random) -> Case:
        case = make(chance)
        # Small frames, so that much of the file lies before the damage.
        packer = zstandard.ZstdCompressor(write_checksum=chance.random() < 0.5)
        parts = [packer.compress(case.data[at : at + 700]) for at in range(0, len(case.data), 700)]
        return dataclasses.replace(case, name=f"{case.name}.zst", data=b"".join(parts))

    return made


def parquet_file(chance: random.Random) -> Case:
    columns = columns_of(texts(chance, 60))
    sink = io.BytesIO()
    ends: list[int] = []
    with parquet.ParquetWriter(sink, columns.schema, compression=chance.choice(["none", "snappy", "zstd"])) as writer:
        for at in range(0, columns.num_rows, 10):
            writer.write_table(columns.slice(at, 10))
            ends += [sink.tell()] * 10
    return Case(name="a.parquet", data=sink.getvalue(), ends=ends)


def arrow_stream(chance: random.Random, make: Any = ipc.new_stream) -> Case:
    columns = columns_of(texts(chance, 60))
    sink = io.BytesIO()
    ends: list[int] = []
    options = ipc.IpcWriteOptions(compression=chance.choice([None, "lz4", "zstd"]))
    with make(sink, columns.schema, options=options) as writer:
        for at in range(0, columns.num_rows, 10):
            writer.write_table(columns.slice(at, 10))
            ends += [sink.tell()] * 10
    return Case(name="a.arrow", data=sink.getvalue(), ends=ends)


def arrow_file(chance: random.Random) -> Case:
    return arrow_stream(chance, ipc.new_file)


def columns_of(made: Sequence[str]) -> pa.Table:
    """Texts, conversations and nulls by turns."""
    turns = [[{"role": "assistant", "content": text}] if number % 3 == 1 else None for number, text in enumerate(made)]
    return pa.table({"text": [None if number % 3 else text for number, text in enumerate(made)], "messages": turns})


def ends_of(parts: Sequence[bytes]) -> list[int]:
    return [sum(map(len, parts[: number + 1])) for number in range(len(parts))]


def cut(chance: random.Random, data: bytes) -> tuple[bytes, int]:
    at = chance.randrange(len(data))
    return data[:at], at


def overwrite(chance: random.Random, data: bytes) -> tuple[bytes, int]:
    at = chance.randrange(len(data))
    noise = chance.choice([b"\xff\xfe", b"\0" * 20, chance.randbytes(30), b'"', b"\n", b"{"])
    return data[:at] + noise + data[at + len(noise) :], at


def insert(chance: random.Random, data: bytes) -> tuple[bytes, int]:
    at = chance.randrange(len(data))
    noise = chance.choice([b"\xe4", b"\xed\xa0\x80", b"\xf5", b'"', b"\n\n", b"\0", chance.randbytes(5)])
    return data[:at] + noise + data[at:], at


def flip(chance: random.Random, data: bytes) -> tuple[bytes, int]:
    places = sorted(chance.randrange(len(data)) for _ in range(chance.randint(1, 6)))
    damaged = bytearray(data)
    for place in places:
        damaged[place] ^= 1 << chance.randrange(8)
    return bytes(damaged), places[0]


MAKERS: dict[str, Callable[[random.Random], Case]] = {
    **{make.__name__: make for make in (json_lines, text_lines, paragraphs, table, tabs)},
    **{f"{make.__name__}.gz": zipped(make) for make in (json_lines, text_lines, paragraphs, table)},
    **{f"{make.__name__}.zst": zstd(make) for make in (json_lines, text_lines, tabs)},
    **{make.__name__: make for make in (parquet_file, arrow_stream, arrow_file)},
}
SEEDS = range(40)


@pytest.mark.parametrize("name", MAKERS)
def test_what_lies_before_the_damage_comes_out_unchanged(tmp_path: Path, name: str) -> None:
    spared = 0
    for seed in SEEDS:
        chance = random.Random(f"{name} {seed}")
        case = MAKERS[name](chance)
        whole = records(tmp_path, case, case.data)
        data, at = chance.choice([cut, overwrite, insert, flip])(chance, case.data)
        damaged = records(tmp_path, case, data)
        before = num_before(case, data, at)
        assert damaged[:before] == whole[:before], f"seed {seed}"
        assert all(isinstance(record, Found | Quarantined | Loss) for record in damaged)
        assert in_order(damaged), f"seed {seed}"
        spared += before
    assert spared > 0


@pytest.mark.parametrize("name", ["json_lines", "text_lines"])
def test_every_line_is_accounted_for_under_its_number(tmp_path: Path, name: str) -> None:
    for seed in SEEDS:
        chance = random.Random(f"lines {name} {seed}")
        case = MAKERS[name](chance)
        data, _ = chance.choice([overwrite, insert, flip])(chance, case.data)
        found = records(tmp_path, case, data)
        lines = data.split(b"\n")
        assert [record.number for record in found] == [n for n, line in enumerate(lines, 1) if line.strip()]
        for record in found:
            line = lines[record.number - 1]
            if isinstance(record, Quarantined):
                assert line.decode(errors="backslashreplace").startswith(record.raw)
            elif isinstance(record, Found) and record.row.shape == "text":
                assert record.row.text == (orjson.loads(line)["text"] if name == "json_lines" else line.decode())


@pytest.mark.parametrize("name", ["json_lines", "text_lines", "parquet_file"])
def test_damage_does_not_depend_on_the_chunks(tmp_path: Path, name: str) -> None:
    for seed in SEEDS:
        chance = random.Random(f"chunks {name} {seed}")
        case = MAKERS[name](chance)
        data, _ = chance.choice([cut, overwrite, insert, flip])(chance, case.data)
        whole = records(tmp_path, case, data)
        apart: list[Record] = []
        before = 0
        for chunk in chunks(str(tmp_path / case.name), "s", reading=case.reading, chunk_bytes=chance.randint(1, 2000)):
            part = read_chunk(chunk, case.reading)
            apart += [dataclasses.replace(record, number=record.number + before) for record in part]
            before += part.num_held
        assert apart == whole, f"seed {seed}"


def test_rows_that_are_lost_and_rows_that_are_found_add_up(tmp_path: Path) -> None:
    num_lost = 0
    for seed in SEEDS:
        chance = random.Random(f"sum {seed}")
        case = parquet_file(chance)
        begin_of_index = len(case.data) - 8 - int.from_bytes(case.data[-8:-4], "little")
        damaged, _ = chance.choice([overwrite, flip])(chance, case.data[:begin_of_index])
        data = damaged[:begin_of_index] + case.data[begin_of_index:]
        found = records(tmp_path, case, data)
        lost = [record for record in found if isinstance(record, Loss)]
        assert len(found) - len(lost) + sum(loss.rows or 0 for loss in lost) == 60, f"seed {seed}"
        num_lost += len(lost)
    assert num_lost > 0


def test_a_row_group_with_fewer_rows_than_the_index_says(tmp_path: Path) -> None:
    case = parquet_file(random.Random(1))
    metadata = parquet.ParquetFile(io.BytesIO(case.data)).metadata
    assert metadata.row_group(0).num_rows == 10
    index = len(case.data) - 8 - int.from_bytes(case.data[-8:-4], "little")
    # The number of rows is a field of type i64, written as twice itself in one byte, after the size of the group.
    losses = []
    for at in range(index, len(case.data) - 8):
        if case.data[at] != 20:
            continue
        data = case.data[:at] + b"\x28" + case.data[at + 1 :]
        found = records(tmp_path, case, data)
        assert in_order(found)
        losses += [record for record in found if isinstance(record, Loss) and "fewer rows" in record.reason]
    assert losses
    assert {loss.rows for loss in losses} == {10}


def records(folder: Path, case: Case, data: bytes) -> list[Record]:
    (folder / case.name).write_bytes(data)
    return list(read(str(folder / case.name), case.reading))


def num_before(case: Case, data: bytes, at: int) -> int:
    """Records that the damage at byte `at` cannot have touched."""
    if case.name.endswith(".gz"):
        at = len(zlib.decompressobj(wbits=31).decompress(data[:at]))
    elif case.name.endswith(".zst"):
        at = len(zstandard.ZstdDecompressor().stream_reader(data[:at], read_across_frames=True).read())
    elif case.name.endswith(".parquet"):
        # Nothing can be found without the index at its end.
        index = int.from_bytes(case.data[-8:-4], "little") + 8
        at = at if len(data) == len(case.data) and data[-index:] == case.data[-index:] else 0
    return sum(end <= at for end in case.ends)


def in_order(found: Sequence[Record]) -> bool:
    """Whether numbers rise, and a loss comes after what it follows."""
    numbers = [record.number for record in found if not isinstance(record, Loss)]
    return numbers == sorted(set(numbers)) and all(isinstance(record, Loss) or record.number >= 1 for record in found)
