"""Arrow files and the folders of Hugging Face `datasets`: real ones, damaged ones, and what lies beside them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from pyarrow import ipc

from llmray import storage
from llmray.data.readers import Found, Loss, Quarantined, Record, check_sources, expand, read
from llmray.errors import InputError, NotFoundError, UnavailableError

ROWS = [{"text": f"row {number}", "label": number} for number in range(1, 2501)]


@pytest.fixture(params=["stream", "file"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write(path: Path, rows: Sequence[dict[str, Any]], form: str, batch: int = 1000, **options: Any) -> list[int]:
    """Write an Arrow file; where each batch ends."""
    table = pa.Table.from_pylist(rows)
    make = ipc.new_stream if form == "stream" else ipc.new_file
    ends = []
    with path.open("wb") as file, make(file, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        for at in range(0, len(rows), batch):
            writer.write_table(table.slice(at, batch))
            ends.append(file.tell())
    return ends


def texts(records: Sequence[Record]) -> list[tuple[int, str | None]]:
    return [(record.number, record.row.text) for record in records if isinstance(record, Found)]


EXPECTED = [(number, f"row {number}") for number in range(1, 2501)]


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_both_forms_are_read(tmp_path: Path, form: str, compression: str | None) -> None:
    write(tmp_path / "a.arrow", ROWS, form, compression=compression)
    records = list(read(str(tmp_path / "a.arrow")))
    assert texts(records) == EXPECTED
    assert len(records) == 2500


def test_conversations_and_strings_that_stay_strings(tmp_path: Path, form: str) -> None:
    rows = [
        {"text": "001", "messages": None},
        {"text": None, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"text": None, "messages": None},
    ]
    write(tmp_path / "a.arrow", rows, form)
    first, second, third = read(str(tmp_path / "a.arrow"))
    assert isinstance(first, Found)
    assert first.row.text == "001"
    assert isinstance(second, Found)
    assert second.row.answer == "a"
    assert isinstance(third, Quarantined)
    assert third.number == 3


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file_gives_up_its_whole_batches(tmp_path: Path, form: str, share: float) -> None:
    path = tmp_path / "a.arrow"
    ends = write(path, ROWS, form)
    size = int(ends[-1] * share)
    path.write_bytes(path.read_bytes()[:size])
    *records, loss = read(str(path))
    whole = 1000 * sum(end <= size for end in ends)
    assert texts(records) == EXPECTED[:whole]
    assert isinstance(loss, Loss)
    assert (loss.number, "truncated Arrow" in loss.reason) == (whole, True)


def test_a_file_cut_between_two_batches_is_told(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.arrow"
    ends = write(path, ROWS, form)
    path.write_bytes(path.read_bytes()[: ends[1]])
    *records, loss = read(str(path))
    assert texts(records) == EXPECTED[:2000]
    assert isinstance(loss, Loss)
    assert "the end mark is missing" in loss.reason


def test_an_index_that_is_lost_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    ends = write(path, ROWS, "file")
    path.write_bytes(path.read_bytes()[: ends[-1] + 8])
    assert texts(list(read(str(path)))) == EXPECTED
    assert len(list(read(str(path)))) == 2500


def test_wrong_offsets_lose_their_batch_alone(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.arrow"
    first, *_ = write(path, ROWS, form)
    data = bytearray(path.read_bytes())
    at = data.index(b"row 1001", first)
    data[at - 2000 : at - 1992] = b"\xff" * 8  # among the 1001 offsets before the text
    path.write_bytes(bytes(data))
    records = list(read(str(path)))
    assert texts(records) == EXPECTED[:1000] + EXPECTED[2000:]
    (loss,) = [record for record in records if isinstance(record, Loss)]
    assert (loss.number, loss.rows, "column text" in loss.reason) == (1000, 1000, True)


def test_broken_encoding_costs_its_row(tmp_path: Path, form: str) -> None:
    rows = [{"messages": [{"role": "assistant", "content": f"said {number}"}]} for number in range(1, 21)]
    path = tmp_path / "a.arrow"
    write(path, rows, form)
    data = bytearray(path.read_bytes())
    data[data.index(b"said 7")] = 0xFF
    path.write_bytes(bytes(data))
    records = list(read(str(path)))
    assert [record.number for record in records] == list(range(1, 21))
    (bad,) = [record for record in records if not isinstance(record, Found)]
    assert isinstance(bad, Quarantined)
    assert (bad.number, "broken encoding" in bad.reason) == (7, True)


def test_only_what_makes_rows_is_read(tmp_path: Path, form: str) -> None:
    # A column nobody wants, with offsets that would be refused.
    path = tmp_path / "a.arrow"
    write(path, [{"text": "a", "blob": "needle one"}, {"text": "b", "blob": "needle two"}], form)
    data = bytearray(path.read_bytes())
    at = data.index(b"needle one")
    data[at - 16 : at - 4] = b"\xff" * 12
    path.write_bytes(bytes(data))
    assert texts(list(read(str(path)))) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"ARROW1\0\0", b"\xff" * 100, b"\0" * 100, b"hello"])
def test_what_is_no_arrow_file_is_lost(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    (loss,) = read(str(tmp_path / "a.arrow"))
    assert isinstance(loss, Loss)
    assert loss.number == 0


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_a_store_that_fails_is_no_damage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager
    from io import BytesIO

    class Failing(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError("the store is away")

    @contextmanager
    def opened(uri: str) -> Any:
        yield Failing(b"PAR1" + b"\0" * 100 + b"PAR1")

    monkeypatch.setattr(storage, "open_read", opened)
    with pytest.raises(UnavailableError, match=f"reading {name} failed: the store is away"):
        list(read(name))


# What `datasets` saves.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset in three files, and a dictionary of two splits."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()
    chat = [
        {"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}]} for n in range(50)
    ]
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "plain", num_shards=3)
    shuffled = datasets.Dataset.from_list(chat).shuffle(seed=1)
    datasets.DatasetDict({"train": shuffled, "test": datasets.Dataset.from_list(chat[:5])}).save_to_disk(
        folder / "split"
    )
    return folder


def test_a_saved_dataset_is_a_source(saved: Path) -> None:
    files = expand([str(saved / "plain")])
    assert [Path(file).name for file in files] == [f"data-0000{n}-of-00003.arrow" for n in range(3)]
    check_sources(files)
    found = [text for file in files for _, text in texts(list(read(file)))]
    assert found == [row["text"] for row in ROWS]


def test_a_dictionary_of_datasets_is_a_source(saved: Path) -> None:
    import datasets

    files = expand([str(saved / "split")])
    assert [Path(file).parent.name for file in files] == ["test", "train"]
    for file in files:
        rows = [record.row.answer for record in read(file) if isinstance(record, Found)]
        peer = datasets.load_from_disk(Path(file).parent)
        assert rows == [turns[-1]["value"] for turns in peer["conversations"]]
    assert expand([str(saved / "split" / "test")]) == files[:1]


def test_what_lies_beside_the_data_is_left_out(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "plain", tmp_path / "copy")
    expected = expand([str(folder)])
    shutil.copy(folder / "data-00000-of-00003.arrow", folder / "cache-0123456789abcdef.arrow")
    (folder / "README.md").write_text("no row")
    assert expand([str(folder)]) == expected
    assert expand([str(folder / "data-*.arrow")]) == expected


def test_a_data_file_that_is_gone_is_named(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "plain", tmp_path / "copy")
    (folder / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(NotFoundError, match=r"data-00001-of-00003\.arrow does not exist"):
        expand([str(folder)])


@pytest.mark.parametrize("state", [b"{}", b"[]", b'{"_data_files": [1]}', b"no json", b'{"_data_files": 5}'])
def test_a_state_that_names_no_data_is_refused(saved: Path, tmp_path: Path, state: bytes) -> None:
    folder = shutil.copytree(saved / "plain", tmp_path / "copy")
    (folder / "state.json").write_bytes(state)
    with pytest.raises(InputError, match="does not name its data files"):
        expand([str(folder)])


def test_a_saved_dataset_in_another_store(saved: Path) -> None:
    for path in (saved / "plain").iterdir():
        storage.write_bytes(f"memory://saved/plain/{path.name}", path.read_bytes())
    files = expand(["memory://saved/plain"])
    assert len(files) == 3
    assert sum(len(list(read(file))) for file in files) == len(ROWS)


def test_other_files_are_as_they_were(tmp_path: Path) -> None:
    for name in ("state.json", "a.jsonl", "dataset_infos.json"):
        (tmp_path / name).write_bytes(orjson.dumps({}))
    assert [Path(file).name for file in expand([str(tmp_path)])] == ["a.jsonl", "dataset_infos.json", "state.json"]


def test_a_sequence_of_objects_as_older_datasets_keep_it(tmp_path: Path, form: str) -> None:
    turns = {"from": ["human", "gpt"], "value": ["q", "a"]}
    write(tmp_path / "a.arrow", [{"conversations": turns}], form)
    (found,) = read(str(tmp_path / "a.arrow"))
    assert isinstance(found, Found)
    assert found.row.messages == (("user", "q"), ("assistant", "a"))


def test_values_that_python_cannot_hold_are_quarantined(tmp_path: Path, form: str) -> None:
    # Year 292277: no datetime has it.
    column = pa.array(np.array([0, 2**62], np.int64)).cast(pa.timestamp("s"))
    table = pa.table({"text": column})
    path = tmp_path / "a.arrow"
    with path.open("wb") as file, (ipc.new_stream if form == "stream" else ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table)
    reasons = [record.reason for record in read(str(path)) if isinstance(record, Quarantined)]
    assert len(reasons) == 2
    assert "cannot be decoded" in reasons[1]
