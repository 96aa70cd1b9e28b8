"""Plain text: one file, one paragraph or one line is a row."""

import gzip
from pathlib import Path
from typing import Literal

import pytest
import zstandard

from llmray.data.readers import Found, Loss, Quarantined, Reading, Record, read

By = Literal["file", "paragraph", "line"]


def records(folder: Path, content: bytes, by: By = "file", name: str = "a.txt") -> list[Record]:
    path = folder / name
    path.write_bytes(content)
    return list(read(str(path), Reading(text_rows=by)))


def texts(found: list[Record]) -> list[tuple[int, str | None]]:
    return [(record.number, record.row.text) for record in found if isinstance(record, Found)]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.TXT", "a.txt.gz", "a.txt.zst"])
def test_a_file_is_one_row_as_it_stands(tmp_path: Path, name: str) -> None:
    content = b'\xef\xbb\xbf# Title\r\n\r\n  a line, "quoted"\n{}\n'
    packed = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(name.rsplit(".", 1)[-1], bytes)
    assert texts(records(tmp_path, packed(content), name=name)) == [(1, '# Title\r\n\r\n  a line, "quoted"\n{}\n')]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("paragraph", [(2, "one\n  two"), (6, "three"), (8, "four")]),
        ("line", [(2, "one"), (3, "  two"), (6, "three"), (8, "four")]),
    ],
)
def test_paragraphs_and_lines(tmp_path: Path, by: By, expected: list[tuple[int, str]]) -> None:
    for content in (b"\none\n  two\n \t\n\nthree\n\nfour", b"\r\none\r\n  two\r\n\r\n\r\nthree\r\n\r\nfour\r\n\r\n"):
        assert texts(records(tmp_path, content, by)) == expected


@pytest.mark.parametrize("by", ["file", "paragraph", "line"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n\t"])
def test_blank_files_hold_no_row(tmp_path: Path, by: By, content: bytes) -> None:
    assert records(tmp_path, content, by) == []


@pytest.mark.parametrize(
    ("by", "good", "number"), [("file", [], 1), ("paragraph", ["e"], 1), ("line", ["a", "c", "e"], 2)]
)
def test_broken_encoding_costs_its_row(tmp_path: Path, by: By, good: list[str], number: int) -> None:
    found = records(tmp_path, b"a\nb\xe4\nc\n\ne\n", by)
    assert [text for _, text in texts(found)] == good
    (bad,) = [record for record in found if isinstance(record, Quarantined)]
    assert bad.number == number
    assert "broken encoding: not UTF-8 at byte" in bad.reason
    assert "b\\xe4" in bad.raw


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    content = b"\n".join(b"%d is line %d\n" % (number, number * 7919 % 10_007) for number in range(1, 30_001))
    packed = (gzip.compress if suffix == "gz" else zstandard.ZstdCompressor().compress)(content)
    packed = packed[: len(packed) // 2]
    for by in ("line", "paragraph"):
        *found, loss = records(tmp_path, packed, by, f"a.txt.{suffix}")
        whole = texts(found)
        assert len(whole) > 5_000
        assert whole == [(2 * n - 1, f"{n} is line {n * 7919 % 10_007}") for n in range(1, len(whole) + 1)]
        assert isinstance(loss, Loss)
        assert len(found) - len(whole) <= 1
    cut, loss = records(tmp_path, packed, "file", f"a.txt.{suffix}")
    assert isinstance(cut, Quarantined)
    assert cut.reason.startswith("cut off: truncated")
    assert cut.raw.startswith("1 is line 7919\n")
    assert isinstance(loss, Loss)


def test_a_paragraph_that_may_go_on_is_cut_off(tmp_path: Path) -> None:
    packed = gzip.compress(b"whole\n\nbegun\n" + bytes(range(1, 128)) * 40)
    whole = gzip.decompress(packed)
    # All lines are there, but the end of the stream is not.
    found = records(tmp_path, packed[:-8], "paragraph", "a.txt.gz")
    first, cut, loss = found
    assert texts([first]) == [(1, "whole")]
    assert isinstance(cut, Quarantined)
    assert (cut.number, cut.raw[:5]) == (3, "begun")
    assert isinstance(loss, Loss)
    assert whole.startswith(b"whole")
