"""Files in chunks of about equal work, and the records of a chunk.

A chunk is a range of bytes of a file of lines, a run of row groups of a Parquet file, or a whole file of any other
kind, since nothing else can be entered in its middle. Numbers begin at 1 in every chunk, and how many lines or rows it
held is known once it has been read: a row's number in its file is its number in the chunk plus what the chunks before
held. Rejected: counting lines beforehand, which reads every file twice.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import IO

from llmray import storage
from llmray.data.readers import blocks
from llmray.data.readers.blocks import Lines
from llmray.data.readers.columnar import read_arrow, read_parquet, row_group_bytes
from llmray.data.readers.lines import read_jsonl, read_text, read_text_file
from llmray.data.readers.reading import Format, Reading, format_of
from llmray.data.readers.records import Numbered, Record
from llmray.data.readers.tabular import read_table

CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A part of a file that is read by itself."""

    uri: str
    source: str
    """The file's name in the snapshot."""
    start: int = 0
    """First byte of a file of lines, or first row group of a Parquet file; a line belongs to the chunk it begins in."""
    end: int | None = None
    """Byte or row group before which it ends; None for the end of the file."""
    num_bytes: int | None = None
    """How much there is to read, as a measure of the work; None where the store does not say."""


class Records:
    """The records of a chunk, in order, to be gone through once."""

    def __init__(self, records: Numbered) -> None:
        self._num_held: int | None = None
        self._records = self._counted(records)

    def __iter__(self) -> Iterator[Record]:
        return self._records

    def __next__(self) -> Record:
        return next(self._records)

    @property
    def num_held(self) -> int:
        """Lines or rows that the chunk held, blank and unreadable ones too; known when all records have been read."""
        assert self._num_held is not None, "read the records to their end first"
        return self._num_held

    def _counted(self, records: Numbered) -> Iterator[Record]:
        self._num_held = yield from records


def chunks(uri: str, source: str, *, reading: Reading | None = None, chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
    """The chunks of a file, in order: together they hold each of its rows once.

    Raises:
        NotFoundError: there is no such file.
        InputError: it has no format that can be read.
    """
    reading = reading or Reading()
    form = format_of(uri, reading)
    with storage.open_read(uri) as file:
        size = _size(file)
        if form.kind == "parquet":
            groups = row_group_bytes(file, uri)
            if groups:
                return _runs(uri, source, groups, chunk_bytes)
        elif _in_lines(form, reading) and size is not None:
            starts = range(0, max(size, 1), chunk_bytes)
            return [
                Chunk(
                    uri=uri,
                    source=source,
                    start=start,
                    end=start + chunk_bytes if start + chunk_bytes < size else None,
                    num_bytes=min(chunk_bytes, size - start),
                )
                for start in starts
            ]
    return [Chunk(uri=uri, source=source, num_bytes=size)]


def read_chunk(chunk: Chunk, reading: Reading | None = None) -> Records:
    """Every row of a chunk, every record that is none, and every part that could not be read.

    Raises:
        NotFoundError: there is no such file.
        InputError: it has no format that can be read.
        UnavailableError: the store failed while the file was being read.
    """
    return Records(_read(chunk, reading or Reading()))


def read(uri: str, reading: Reading | None = None) -> Iterator[Record]:
    """The records of a whole file: what `read_chunk` gives for the chunk that is all of it."""
    return iter(read_chunk(Chunk(uri=uri, source=uri), reading))


def _read(chunk: Chunk, reading: Reading) -> Numbered:
    form = format_of(chunk.uri, reading)
    opener = partial(storage.open_read, chunk.uri)
    if form.kind in ("parquet", "arrow"):
        with opener() as file:
            if form.kind == "arrow":
                return (yield from read_arrow(file, chunk.uri, reading))
            groups = None if chunk.end is None and not chunk.start else range(chunk.start, chunk.end or 0)
            return (yield from read_parquet(file, chunk.uri, groups, reading))
    if form.packing is not None:
        codec = blocks.gzip_codec() if form.packing == "gzip" else blocks.zstd_codec()
        with closing(blocks.decompressed(opener, codec)) as data:
            return (yield from _decoded(data, form, reading, at_start=True))
    with opener() as file:
        in_range = blocks.lines_between(file, chunk.start, chunk.end)
        return (yield from _decoded(in_range, form, reading, at_start=chunk.start == 0))


def _decoded(data: Iterator[bytes], form: Format, reading: Reading, *, at_start: bool) -> Numbered:
    if form.kind == "text" and reading.text_rows == "file":
        return read_text_file(data, reading)
    lines = Lines(data, max_bytes=reading.max_record_bytes, at_start=at_start)
    if form.kind == "jsonl":
        return read_jsonl(lines, reading)
    if form.kind == "text":
        return read_text(lines, reading)
    return read_table(lines, "," if form.kind == "csv" else "\t", reading)


def _in_lines(form: Format, reading: Reading) -> bool:
    """Whether rows are lines, so that the file can be entered anywhere."""
    line_by_line = form.kind == "jsonl" or (form.kind == "text" and reading.text_rows == "line")
    return line_by_line and form.packing is None


def _runs(uri: str, source: str, group_bytes: list[int], chunk_bytes: int) -> list[Chunk]:
    """Runs of row groups of at least `chunk_bytes`, but for the last."""
    runs: list[Chunk] = []
    start, held = 0, 0
    for group, size in enumerate(group_bytes, 1):
        held += size
        if held >= chunk_bytes or group == len(group_bytes):
            runs.append(Chunk(uri=uri, source=source, start=start, end=group, num_bytes=held))
            start, held = group, 0
    return runs


def _size(file: IO[bytes]) -> int | None:
    """Bytes of an open file; None where the store can only stream it."""
    try:
        return file.seek(0, 2)
    except (OSError, ValueError):
        return None
