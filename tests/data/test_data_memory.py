"""Memory is bounded by bytes, not by rows alone: long rows are prepared and written a few at a time, unseen outside."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pure_curation import run_stages
from pyarrow import ipc, parquet

from llmray.data import outputs, prepare, stages, tables
from llmray.data.config import CurateConfig, Dedup
from llmray.data.outputs import write_kept, write_removed
from llmray.data.places import Places
from llmray.data.prepare import judges_of, prepare_records
from llmray.data.readers import Found, Quarantined, Record
from llmray.data.rows import parse_row
from llmray.data.rules import Outliers
from llmray.data.tables import mapped

MB = 1 << 20
NO_RULES = CurateConfig(outliers=Outliers(rules=()))


def json_lines(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path = folder / "a.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


def found_rows(records: list[Mapping[str, Any]]) -> list[Record]:
    return [Found(row=parse_row(record), number=number) for number, record in enumerate(records, 1)]


def test_batches_are_bounded_record_by_record(tmp_path: Path) -> None:
    long = 3 * MB
    rows = found_rows([{"text": f"{number} " + "x" * long} for number in range(20)])
    prepare_records(iter(rows), judges_of(NO_RULES), tmp_path, lambda _: None)
    file = ipc.open_file(str(tmp_path / "content.arrow"))
    sizes = [file.get_batch(number).num_rows for number in range(file.num_record_batches)]
    assert sum(sizes) == 20
    assert max(sizes) == 3  # The third fills the 8 MiB.


def test_batches_hold_all_records_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Quarantined(number=3, reason="none", raw="")
    records = [*found_rows([{"text": "x" * size, "group": "g" * 4} for size in (5, 50, 1, 1, 200, 3)]), bad]
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 30)
    batches = list(prepare._batches(iter(records)))
    assert [one for batch in batches for one in batch] == records
    assert [len(batch) for batch in batches] == [2, 3, 2]
    monkeypatch.setattr(prepare, "_BATCH_ROWS", 2)
    assert [len(batch) for batch in prepare._batches(iter(records))] == [2, 2, 1, 2]
    assert list(prepare._batches(iter([]))) == []


def mixed(num: int) -> list[Mapping[str, Any]]:
    """Rows of all shapes and of many lengths, some of them repeats."""
    chance = random.Random(5)

    def text() -> str:
        words = chance.choices(
            ["rain", "on", "the", "plain", "Straße", "日本", "in", "Spain"], k=chance.randint(5, 300)
        )
        return " ".join(words) * (40 if chance.random() < 0.05 else 1)

    makers = [
        lambda: {"text": text(), "group": chance.choice(["a", "b"])},
        lambda: {"question": text(), "answer": text()},
        lambda: {"prompt": text(), "chosen": text(), "rejected": text()},
        lambda: {"messages": [{"role": "assistant", "content": "y"}], "choices": ["y", text()]},
    ]
    rows = [chance.choice(makers)() for _ in range(num)]
    return [*rows, *rows[: num // 4]]


@pytest.mark.parametrize("rows", [mixed(2400), [{"text": f"{number} " * (number % 9)} for number in range(5000)]])
def test_what_is_written_does_not_depend_on_what_is_in_memory(
    tmp_path: Path, rows: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many bytes of rows are held at a time, but row groups end where they would if all were held at once.
    held: list[NDArray[np.int64]] = []
    plain = Places.of

    def of(self: Places, rows: NDArray[np.int64], file: str, columns: Sequence[str]) -> pa.Table:
        if file == "content.arrow":
            held.append(rows)
        return plain(self, rows, file, columns)

    config = replace(NO_RULES, dedup=Dedup(near=False))
    with run_stages([json_lines(tmp_path, rows)], config) as (job, _):
        every = np.arange(job.places.num_rows)
        size_R = job.places.said_bytes(every)
        fates, failures = stages._fates(job), mapped(job.work.path("judged") / "failures.arrow")
        monkeypatch.setattr(Places, "of", of)
        written = []
        for most in (1 << 40, 700_000, 40_000):
            monkeypatch.setattr(outputs, "_BYTES_AT_ONCE", most)
            held.clear()
            write_kept(tmp_path / "kept.parquet", job.places, every, config)
            write_removed(tmp_path / "removed.parquet", job.places, every, fates=fates, failures=failures, old=None)
            assert all(size_R[some[:-1]].sum() < most for some in held)
            assert np.concatenate(held).tolist() == [*every, *every]
            written.append([(tmp_path / f"{name}.parquet").read_bytes() for name in ("kept", "removed")])
    assert written[0] == written[1] == written[2]
    assert parquet.ParquetFile(tmp_path / "kept.parquet").metadata.num_row_groups > len(rows) // 2048


def test_bytes_of_rows_are_told_without_their_text(tmp_path: Path) -> None:
    rows = mixed(400)

    def size(value: Any) -> int:
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        return len(value.encode()) if isinstance(value, str) else sum(map(size, value))

    expected = [size(row) + 13 * ("question" in row) for row in rows]  # "user" and "assistant"
    with run_stages([json_lines(tmp_path, rows)], CurateConfig(), chunk_bytes=50_000) as (job, _):
        every = np.arange(job.places.num_rows)
        assert job.places.said_bytes(every).tolist() == expected
        assert job.places.said_bytes(every[7::13]).tolist() == expected[7::13]
        assert job.places.said_bytes(every[:0]).tolist() == []


def test_row_groups_of_conversations_are_cut_by_what_is_said() -> None:
    schema = pa.schema([tables.SNAPSHOT.field("messages")])

    def table(size: int) -> pa.Table:
        return pa.table({"messages": [[{"role": "user", "content": "x" * size}]] * 10}, schema=schema)

    assert tables.group_cuts(table(100)) == [0, 10]
    assert tables.group_cuts(table(200_000)) == [0, 2, 4, 6, 8, 10]
    assert tables.group_cuts(table(400_000)) == list(range(11))


def test_kept_rows_are_written_where_there_are_none(tmp_path: Path) -> None:
    with run_stages([json_lines(tmp_path, [{"text": "one"}])], NO_RULES) as (job, _):
        write_kept(tmp_path / "part.parquet", job.places, np.arange(0), job.config)
    assert parquet.read_table(tmp_path / "part.parquet").num_rows == 0
