"""Bytes of a file, block by block: the lines that begin in a range of it, or what is in a compressed one.

A compressed file is decompressed by hand. Where it is damaged, the member in question is decompressed once more up to
that place and then fed byte by byte, so that everything before the damage comes out; then `Damage` is raised. Rejected:
the gzip module (drops what it had decoded when the end is missing), and copying the decoder's state before each block
(slow for gzip, and zstd's decoder has no copy).
"""

import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any

READ_BYTES = 1 << 18
_PACKED_READ_BYTES = 1 << 16
_MARK = b"\xef\xbb\xbf"

Opener = Callable[[], AbstractContextManager[IO[bytes]]]
"""Opens the file at its beginning; it is called again where something must be read twice."""


class Damage(Exception):  # noqa: N818  # What has happened to the file; no fault of the program.
    """The blocks end here, and why; never leaves the readers."""


class Lines:
    """Lines without their ends; once they have run out, `damage` says whether the file went on, and `cut` how.

    A line of more than `max_bytes` may come without its end, so that it does not fill the memory; it still has more.
    """

    def __init__(self, blocks: Iterator[bytes], *, max_bytes: int, at_start: bool = True) -> None:
        self.damage: str | None = None
        """Why the file could not be read further."""
        self.cut = b""
        """The piece of a line before the damage: even if it makes sense, it is not known to be whole."""
        self._lines = self._split(blocks, max_bytes + len(_MARK), at_start)

    def __iter__(self) -> Iterator[bytes]:
        return self._lines

    def _split(self, blocks: Iterator[bytes], most: int, at_start: bool) -> Iterator[bytes]:
        rest: list[bytes] = []
        held = 0
        marked = at_start
        try:
            for block in blocks:
                if b"\n" not in block:
                    if held <= most:
                        rest.append(block)
                        held += len(block)
                    continue
                first, *whole, last = block.split(b"\n")
                if rest:
                    first = b"".join([*rest, first])
                yield first.removeprefix(_MARK) if marked else first
                marked = False
                yield from whole
                rest, held = [last], len(last)
        except Damage as damage:
            self.damage = str(damage)
        line = b"".join(rest)
        if marked:
            line = line.removeprefix(_MARK)
        if self.damage is not None:
            self.cut = line
        elif line:
            yield line


def lines_between(file: IO[bytes], start: int, end: int | None) -> Iterator[bytes]:
    """The bytes of the lines that begin at `start` or later and before `end`: each line is in one range and one only."""
    position = 0
    skipping = start > 0
    if skipping:
        position = start - 1  # A line begins at `start` where the byte before ends one.
        file.seek(position)
    while block := file.read(READ_BYTES):
        if skipping:
            after = block.find(b"\n") + 1
            if not after:
                position += len(block)
                if end is not None and position >= end:
                    return
                continue
            position, block, skipping = position + after, block[after:], False
            if end is not None and position >= end:
                return
        if end is None or position + len(block) < end:
            yield block
        elif stop := block.find(b"\n", max(0, end - 1 - position)) + 1:
            yield block[:stop]
            return
        else:
            yield block
        position += len(block)


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """A compression: members (gzip) or frames (zstd), one after another."""

    name: str
    decoder: Callable[[], Any]
    """Makes an object with `decompress`, `eof` and `unused_data`."""
    error: type[Exception]


def gzip_codec() -> Codec:
    """RFC 1952."""
    return Codec(name="gzip", decoder=lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), error=zlib.error)


def zstd_codec() -> Codec:
    """RFC 8878; windows of up to 2 GiB, as `zstd --long=31` makes them."""
    import zstandard

    return Codec(
        name="zstd",
        decoder=lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
        error=zstandard.ZstdError,
    )


def decompressed(opener: Opener, codec: Codec) -> Generator[bytes, None, None]:
    """Decompressed blocks of one member after another.

    Raises:
        Damage: after everything that can be read, where the file is damaged or its end is missing.
    """
    decoder, member, fresh = codec.decoder(), 0, True
    with opener() as file:
        position = 0
        while data := file.read(_PACKED_READ_BYTES):
            while data:
                if fresh and member and not data.strip(b"\0"):
                    position += len(data)
                    break  # Zero padding after the last member, as tapes and tar leave it.
                try:
                    block = decoder.decompress(data)
                except codec.error as error:
                    at = yield from _salvaged(opener, codec, member, position, len(data))
                    raise Damage(_reason(codec, error, at)) from error
                fresh = False
                if block:
                    yield block
                unused = decoder.unused_data if decoder.eof else b""
                position += len(data) - len(unused)
                if decoder.eof:
                    decoder, member, fresh = codec.decoder(), position, True
                data = unused
    if not fresh:
        raise Damage(f"truncated {codec.name}: the end of the file is missing")


def _salvaged(opener: Opener, codec: Codec, member: int, position: int, size: int) -> Generator[bytes, None, int]:
    """What can be made of the `size` bytes at `position`, in which the decoder of a member stumbled; returns where."""
    decoder = codec.decoder()
    with opener() as file:
        _skip(file, member)
        remaining = position - member
        while remaining:
            data = file.read(min(remaining, _PACKED_READ_BYTES))
            decoder.decompress(data)
            remaining -= len(data)
        for at, byte in enumerate(file.read(size), position):
            try:
                block = decoder.decompress(bytes([byte]))
            except codec.error:
                return at
            if block:
                yield block
    return position + size


def _skip(file: IO[bytes], size: int) -> None:
    while size and (data := file.read(min(size, READ_BYTES))):
        size -= len(data)


def _reason(codec: Codec, error: Exception, at: int) -> str:
    if any(word in str(error) for word in ("data check", "checksum")):
        return f"damaged {codec.name}: the checksum does not match, so rows of this file may be altered"
    return f"damaged {codec.name} at byte {at:,}: {error}"
