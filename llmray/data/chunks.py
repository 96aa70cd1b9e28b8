"""Chunks: the pieces of work that sources are cut into, so that one big file keeps every core busy.

A line belongs to the chunk in which its first byte lies, and the last chunk of a file ends with the file; so wherever
the cuts fall, the same lines come out once and in order. Rows are numbered from 1 within a chunk: their numbers in the
file are known when the lines of the chunks before are counted. What cannot be cut (compressed files) is one chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llmray import storage
from llmray.data.readers import Record, _line, read

_READ_BYTES = 1 << 20
_MARK = b"\xef\xbb\xbf"
CHUNK_BYTES = 32 << 20
"""How much of a file is a piece of work, unless somebody says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A byte range of a file, or all of it."""

    uri: str
    source: str
    """The file's name in the snapshot."""
    start: int = 0
    end: int | None = None
    """Lines that begin from `start` to before `end`; None for the whole file, however it is read."""
    bytes: int
    """Size on disk, to tell how far the work has come."""


class Reading:
    """The records of a chunk, one after another; afterwards `lines` says how many lines or rows it had."""

    def __init__(self, chunk: Chunk) -> None:
        self.lines = 0
        self._chunk = chunk

    def __iter__(self) -> Iterator[Record]:
        if self._chunk.end is None:
            for record in read(self._chunk.uri):
                self.lines = max(self.lines, record.number)
                yield record
            return
        for line in _lines(self._chunk.uri, self._chunk.start, self._chunk.end):
            self.lines += 1
            # A byte order mark belongs to the first line of a file, not of every chunk.
            stray = self.lines == 1 and self._chunk.start > 0 and line.startswith(_MARK)
            found = _line(line, 2 if stray else self.lines)
            if found is not None:
                yield replace(found, number=1) if stray else found


def chunks(files: Sequence[tuple[str, str]], chunk_bytes: int) -> list[Chunk]:
    """The chunks of (URI, name) pairs, in the order of the files and of what is in them."""
    found = []
    for uri, name in files:
        size = storage.size(uri)
        if uri.lower().endswith(".jsonl"):
            starts = range(0, max(size, 1), chunk_bytes)
            ends = [min(start + chunk_bytes, size) for start in starts]
            found += [
                Chunk(uri=uri, source=name, start=start, end=end, bytes=end - start)
                for start, end in zip(starts, ends, strict=True)
            ]
        else:
            found.append(Chunk(uri=uri, source=name, bytes=size))
    return found


def read_chunk(chunk: Chunk) -> Reading:
    """The records of a chunk."""
    return Reading(chunk)


def _lines(uri: str, start: int, end: int) -> Iterator[bytes]:
    """Lines that begin in [start, end), without their ends."""
    with storage.open_read(uri) as file:
        if start:
            # The line that begins before us is the chunk's before: it ends with the first line feed from start - 1 on.
            file.seek(start - 1)
            start += len(file.readline()) - 1
        place, rest = start, b""
        while place < end and (block := file.read(_READ_BYTES)):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            for line in lines:
                if place >= end:
                    return
                place += len(line) + 1
                yield line
        if place < end and rest:
            yield rest
