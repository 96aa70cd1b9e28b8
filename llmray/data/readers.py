"""Files to rows, losing nothing that could be read: a bad row is quarantined by itself, with file, number and reason.

jsonl, jsonl.gz, jsonl.zst and parquet, from any URI. Lines are decoded one by one with orjson, so "001" stays a string
and one bad line costs one row. Compressed files are decompressed by hand: a truncated or damaged file gives up every
line before the damage, a `Loss` says where it ended, and the cut line is quarantined. Rejected: Ray Data's `read_json`
(turns "001" into 1 and fails the whole read on one bad line) and the gzip module (drops what it had decoded when the
end is missing).
"""

import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

import orjson

from llmray import storage
from llmray.data.rows import FIELDS, Row, RowError, parse_row
from llmray.errors import InputError

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_READ_BYTES = 1 << 16
_ZSTD_READ_BYTES = 1 << 12
"""Small, because a damaged zstd block takes with it what was decoded in the same call."""
_EXCERPT = 500
_BATCH_ROWS = 1024
_MAGIC = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A row, and where it came from."""

    row: Row
    number: int
    """Line of the file, or row of the Parquet file, from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A line or record that is no row."""

    number: int
    reason: str
    raw: str
    """How it begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """A part of a file that could not be read at all."""

    number: int
    """Last line or row before the loss."""
    reason: str
    rows: int | None = None
    """Rows that it held, where the file says so."""


Record = Found | Quarantined | Loss


def check_sources(uris: list[str]) -> None:
    """Make sure that every file has a format that can be read.

    Raises:
        InputError: one has another suffix.
    """
    for uri in uris:
        if not uri.lower().endswith(SUFFIXES):
            raise InputError(f"{uri} cannot be read: name files that end in {', '.join(SUFFIXES)}")


def read(uri: str) -> Iterator[Record]:
    """Every row of a file, every record that is none, and every part that could not be read, in order.

    Raises:
        NotFoundError: there is no such file.
        InputError: the suffix names no format that can be read.
    """
    check_sources([uri])
    with storage.open_read(uri) as file:
        if uri.lower().endswith(".parquet"):
            yield from _parquet(file)
        elif uri.lower().endswith(".gz"):
            yield from _lines(_decompressed(file, _gzip_decoder, _READ_BYTES, "gzip"))
        elif uri.lower().endswith(".zst"):
            yield from _lines(_decompressed(file, _zstd_decoder, _ZSTD_READ_BYTES, "zstd"))
        else:
            yield from _lines(iter(lambda: file.read(_READ_BYTES), b""))


def _lines(blocks: Iterator[bytes | Loss]) -> Iterator[Record]:
    number, rest, loss = 0, [b""], None
    for block in blocks:
        if isinstance(block, Loss):
            loss = block
            break
        *whole, last = block.split(b"\n")
        if whole:
            whole[0] = b"".join([*rest, whole[0]])
            rest = []
            for line in whole:
                number += 1
                if (record := _line(line, number)) is not None:
                    yield record
        rest.append(last)
    line = b"".join(rest)
    if loss is None:
        if (record := _line(line, number + 1)) is not None:
            yield record
        return
    if line.strip():
        # Even if the piece happens to decode, it is not known to be whole.
        yield Quarantined(number=number + 1, reason=f"cut off: {loss.reason}", raw=_excerpt(line))
    yield Loss(number=number, reason=loss.reason)


def _line(line: bytes, number: int) -> Found | Quarantined | None:
    if number == 1:
        line = line.removeprefix(_MAGIC)
    if not line.strip():
        return None
    try:
        return Found(row=parse_row(orjson.loads(line)), number=number)
    except orjson.JSONDecodeError as error:
        reason = f"malformed JSON: {error.msg} at column {error.colno}"
        try:
            line.decode()
        except UnicodeDecodeError as broken:
            reason = f"broken encoding: not UTF-8 at byte {broken.start}"
    except RowError as error:
        reason = str(error)
    return Quarantined(number=number, reason=reason, raw=_excerpt(line))


class _Decoder(Protocol):
    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes) -> bytes: ...


def _decompressed(
    file: IO[bytes], decoder: Callable[[], _Decoder], read_bytes: int, name: str
) -> Iterator[bytes | Loss]:
    """Decompressed blocks of one member after another; what is readable before any damage, then a `Loss`."""
    state, fresh, at_start = decoder(), True, True
    while data := file.read(read_bytes):
        while data:
            if fresh and not at_start and not data.strip(b"\0"):
                break  # Zero padding after the last member, as tapes and tar leave it.
            try:
                block = state.decompress(data)
            except Exception as error:
                yield from _salvaged(state, data)
                wrong_sum = "data check" in str(error) or "checksum" in str(error)
                what = "the checksum does not match, so rows of this file may be altered" if wrong_sum else error
                yield Loss(number=0, reason=f"damaged {name}: {what}")
                return
            fresh = at_start = False
            if block:
                yield block
            if not state.eof:
                break
            data, state, fresh = state.unused_data, decoder(), True
    if not fresh:
        yield Loss(number=0, reason=f"truncated {name}: the end of the file is missing")


def _salvaged(state: Any, data: bytes) -> Iterator[bytes]:
    """What a gzip decoder can still make of the block in which it stumbled, byte by byte."""
    before = getattr(state, "before", None)
    if before is None:
        return
    for byte in data:
        try:
            if block := before.decompress(bytes([byte])):
                yield block
        except zlib.error:
            return


class _GzipDecoder:
    """zlib's decoder, remembering its state before the latest block."""

    def __init__(self) -> None:
        self._state = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self.before = self._state.copy()

    def decompress(self, data: bytes) -> bytes:
        self.before = self._state.copy()
        return self._state.decompress(data)

    @property
    def eof(self) -> bool:
        return self._state.eof

    @property
    def unused_data(self) -> bytes:
        return self._state.unused_data


def _gzip_decoder() -> Any:
    return _GzipDecoder()


def _zstd_decoder() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


def _parquet(file: IO[bytes]) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        yield Loss(number=0, reason=f"damaged Parquet: {_one_line(error)}")
        return
    # Columns of other names may be of any type and size: they are not read.
    columns = [name for name in table.schema_arrow.names if name in FIELDS] or None
    number = 0
    for group in range(table.num_row_groups):
        end = number + table.metadata.row_group(group).num_rows
        try:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=columns):
                for record in _records(batch, number):
                    number += 1
                    yield record
        except (pa.ArrowException, OSError) as error:
            reason = f"damaged Parquet row group {group}: {_one_line(error)}"
            yield Loss(number=number, reason=reason, rows=end - number)
            number = end


def _records(batch: Any, before: int) -> Iterator[Found | Quarantined]:
    """The rows of a record batch; where some value has a broken encoding, one by one."""
    for at in range(batch.num_rows):
        number = before + at + 1
        try:
            record = batch.slice(at, 1).to_pylist()[0]
            found = Found(row=parse_row(record), number=number)
        except UnicodeDecodeError as error:
            yield Quarantined(number=number, reason=f"broken encoding: {_one_line(error)}", raw="")
        except RowError as error:
            yield Quarantined(number=number, reason=str(error), raw=repr(record)[:_EXCERPT])
        else:
            yield found


def _excerpt(line: bytes) -> str:
    return line[:_EXCERPT].decode(errors="backslashreplace")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
