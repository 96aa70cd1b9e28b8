"""Pieces of work: chunks of files, the work folder, its lock, its name, and how progress is told."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.data.chunks import chunks, read_chunk
from llmray.data.config import CurateConfig
from llmray.data.progress import EVERY_S, Progress
from llmray.data.readers import Found
from llmray.data.work import Work, locked, work_key

LINES = st.lists(
    st.sampled_from([b'{"text": "a"}', b'{"text": "longer than the others"}', b"", b"{", b"\xef\xbb\xbf{}", b"\r"]),
    max_size=12,
).map(b"\n".join)


@given(LINES, st.integers(1, 40), st.sampled_from([b"", b"\n", b"\xef\xbb\xbf"]))
@settings(deadline=None)
def test_wherever_a_file_is_cut_its_lines_come_out_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk_bytes: int, mark: bytes
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    path.write_bytes(mark + data + mark.replace(b"\xef\xbb\xbf", b""))
    (whole,) = chunks([(str(path), "a.jsonl")], 1 << 20)
    reading = read_chunk(whole)
    expected = list(reading)
    lines, found = 0, []
    pieces = chunks([(str(path), "a.jsonl")], chunk_bytes)
    assert sum(piece.bytes for piece in pieces) == path.stat().st_size
    for piece in pieces:
        part = read_chunk(piece)
        found += [replace(record, number=record.number + lines) for record in part]
        lines += part.lines
    assert found == expected
    assert lines == reading.lines


def test_a_line_longer_than_a_chunk_is_in_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = "x" * 5000
    path.write_text(f'{{"text": "first"}}\n{{"text": "{long}"}}\n{{"text": "last"}}')
    pieces = chunks([(str(path), "a.jsonl")], 1000)
    found = [[record.row.text for record in read_chunk(piece) if isinstance(record, Found)] for piece in pieces]
    assert [texts for texts in found if texts] == [["first", long], ["last"]]
    assert len(pieces) == 6


def test_a_piece_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    work = Work(uri=str(tmp_path / "work"))

    def half() -> None:
        with work.piece("one") as piece:
            (piece.folder / "data").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert not work.has("one")
    for said in ("first", "second"):
        with work.piece("one") as piece:
            (piece.folder / "data").write_text(said)
            piece.finish(said=said)
    assert work.facts("one") == {"said": "first"}
    assert (work.path("one") / "data").read_text() == "first"
    work.remove()
    assert not work.has("one")


def test_a_second_run_waits_for_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = str(tmp_path / "work")
    held, order = threading.Event(), []
    code = (
        "import sys\nfrom llmray.data.work import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()\n    print('done', flush=True)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"

    def second() -> None:
        with locked(uri):
            order.append("second")
        held.set()

    with caplog.at_level("INFO", "llmray"):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not held.wait(0.05)
        said, _ = other.communicate("")
        order.insert(0, said.strip())
        waiting.join()
    assert order == ["done", "second"]
    assert "another run" in caplog.text
    assert not (tmp_path / "work.lock").exists()


def test_the_work_is_named_by_what_decides() -> None:
    config = CurateConfig()
    sources = [("a.jsonl", "/raw/a.jsonl", "10:5")]
    one = work_key(config, sources, onto=None)
    assert work_key(CurateConfig(), list(sources), onto=None) == one
    assert work_key(replace(config, seed=1), sources, onto=None) != one
    assert work_key(config, [("a.jsonl", "/raw/a.jsonl", "10:6")], onto=None) != one
    assert work_key(config, sources, onto="f" * 64) != one


def test_code_of_ones_own_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_quality.py").write_text("def rate(row):\n    return 1.0\n")
    config = CurateConfig(quality="own_quality:rate")
    one = work_key(config, [])
    (tmp_path / "own_quality.py").write_text("def rate(row):\n    return 2.0\n")
    assert work_key(config, []) != one


def test_progress_is_told_now_and_then() -> None:
    now, told = [0.0], list[str]()
    progress = Progress("prepare", 1000, tell=told.append, clock=lambda: now[0])
    progress.add(100, 50)
    assert told == []
    now[0] = EVERY_S * 5
    progress.add(150, 50)
    assert told == ["curate: prepare 25%, 100 rows, 10 rows/s, 0:30 left"]
    progress.add(250)
    assert len(told) == 1
    now[0] = EVERY_S * 10
    progress.add(500)
    assert len(told) == 1  # what is done needs no time left
