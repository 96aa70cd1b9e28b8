"""Parquet and Arrow files: batch by batch, so that a damaged part loses itself and not what lies before it.

Arrow files are read as streams, whichever of the two forms they have: the file form is a stream between its magic and
its index, so one that has lost its index gives up its rows. What an Arrow file says about its buffers is checked before
a value is touched, since a wrong offset would read memory that is not its own. Rejected: memory maps (only for local
files), and `datasets` itself (it reads such folders, but whole or not at all).
"""

import reprlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import pyarrow as pa
from pyarrow import ipc, parquet

from llmray.data.readers.reading import Reading
from llmray.data.readers.records import Found, Loss, Numbered, Quarantined, one_line, record_of, too_long
from llmray.errors import UnavailableError

_BATCH_ROWS = 1024
_BATCH_BYTES = 8 << 20
_TROUBLE = (pa.ArrowException, OSError, MemoryError, ValueError, OverflowError)
"""What pyarrow raises when bytes make no sense; sizes read from damaged bytes may ask for any amount of memory."""
_MAGIC = b"ARROW1\0\0"
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = 200
_END = b"\xff\xff\xff\xff\0\0\0\0"


class _Watched:
    """A file that remembers that reading it failed: a store that is away is no damage of the file."""

    def __init__(self, file: IO[bytes], uri: str) -> None:
        self._file, self._uri = file, uri
        self._error: Exception | None = None
        self._size: int | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            if self._size is None:
                here = self._file.tell()
                self._size = self._file.seek(0, 2)
                self._file.seek(here)
            # A damaged file may ask for exabytes, and a local file's read makes room for what it is asked for.
            left = max(0, self._size - self._file.tell())
            return self._file.read(left if size < 0 else min(size, left))
        except Exception as error:
            self._error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Whoever opened the file closes it."""

    def check(self) -> None:
        """Raises UnavailableError: reading has failed."""
        if self._error is not None:
            raise UnavailableError(f"reading {self._uri} failed: {one_line(self._error)}") from self._error


def row_group_bytes(file: IO[bytes], uri: str) -> list[int] | None:
    """Uncompressed size of each row group of a Parquet file; None where its index is damaged."""
    watched = _Watched(file, uri)
    try:
        metadata = parquet.ParquetFile(watched).metadata
        return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    except _TROUBLE:
        watched.check()
        return None


def read_parquet(file: IO[bytes], uri: str, groups: range | None, reading: Reading) -> Numbered:
    """A record from each row of some row groups, or of all."""
    watched = _Watched(file, uri)
    try:
        table = parquet.ParquetFile(watched, page_checksum_verification=True)
        # Columns of other names may be of any type and size: they are not read.
        columns = [name for name in table.schema_arrow.names if name in reading.wanted] or None
        groups = groups or range(table.num_row_groups)
        sizes = {group: table.metadata.row_group(group).num_rows for group in groups}
        at_once = {group: _rows_at_once(sizes[group], _bytes_of(table.metadata, group, columns)) for group in groups}
    except _TROUBLE as error:
        watched.check()
        yield Loss(number=0, reason=f"damaged Parquet: {one_line(error)}")
        return 0
    number = 0
    for group, size in sizes.items():
        end = number + size
        batches = table.iter_batches(batch_size=at_once[group], row_groups=[group], columns=columns, use_threads=False)
        reason = "it has fewer rows than the index says"
        while True:
            try:
                batch = next(batches, None)
            except _TROUBLE as error:
                watched.check()
                reason = one_line(error)
                break
            if batch is None:
                break
            yield from _records(batch, number, reading)
            number += batch.num_rows
        if number < end:
            yield Loss(number=number, reason=f"damaged Parquet row group {group}: {reason}", rows=end - number)
            number = end
    return number


def read_arrow(file: IO[bytes], uri: str, reading: Reading) -> Numbered:
    """A record from each row of an Arrow stream or file."""
    watched = _Watched(file, uri)
    batches = _stream(watched, reading)
    number = 0
    while True:
        try:
            batch = next(batches, None)
        except _TROUBLE as error:
            watched.check()
            yield Loss(number=number, reason=f"damaged or truncated Arrow: {one_line(error)}")
            return number
        if batch is None:
            break
        if trouble := _broken_buffers(batch):
            yield Loss(number=number, reason=f"damaged Arrow batch: {trouble}", rows=batch.num_rows)
        else:
            yield from _records(batch, number, reading)
        number += batch.num_rows
    if not _ended(watched):
        yield Loss(number=number, reason="truncated Arrow: the end mark is missing, so rows may be, too")
    return number


def _stream(file: _Watched, reading: Reading) -> Iterator[Any]:
    begin = len(_MAGIC) if file.read(len(_MAGIC)) == _MAGIC else 0
    file.seek(begin)
    names = ipc.open_stream(file).schema.names
    file.seek(begin)
    wanted = [at for at, name in enumerate(names) if name in reading.wanted] or None
    yield from ipc.open_stream(file, options=ipc.IpcReadOptions(included_fields=wanted, use_threads=False))


def _ended(file: _Watched) -> bool:
    """Whether the stream has come to its own end, and not only to that of the file."""
    end = file.tell()
    file.seek(max(0, end - len(_END)))
    return file.read(len(_END)) == _END


def _broken_buffers(batch: Any) -> str | None:
    """Why the values of a batch cannot be looked at; broken encoding is no reason, since rows differ in that."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except _TROUBLE:
            try:
                column.view(_undecoded(column.type)).validate(full=True)
            except _TROUBLE as error:
                return f"column {name}: {one_line(error)}"
    return None


def _undecoded(kind: Any) -> Any:
    """The same type with bytes in place of strings."""
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([(field.name, _undecoded(field.type)) for field in kind])
    for is_list, make in ((types.is_list, pa.list_), (types.is_large_list, pa.large_list)):
        if is_list(kind):
            return make(pa.field(kind.value_field.name, _undecoded(kind.value_type)))
    bytes_of = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return bytes_of.get(kind, kind)


def _records(batch: Any, before: int, reading: Reading) -> Iterator[Found | Quarantined]:
    """The rows of a record batch, some at a time; where a value cannot be decoded or may be too long, one by one."""
    at_once = _rows_at_once(batch.num_rows, batch.nbytes)
    for begin in range(0, batch.num_rows, at_once):
        part = batch.slice(begin, at_once)
        number = before + begin + 1
        try:
            rows = part.to_pylist() if part.nbytes <= reading.max_record_bytes else None
        except _TROUBLE:
            rows = None
        if rows is None:
            for at in range(part.num_rows):
                yield _record(part.slice(at, 1), number + at, reading)
            continue
        for at, fields in enumerate(rows):
            yield record_of(fields, number + at, reading.columns)


def _bytes_of(metadata: Any, group: int, columns: list[str] | None) -> int:
    """Uncompressed size of some columns of a row group, or of all."""
    parts = (metadata.row_group(group).column(at) for at in range(metadata.num_columns))
    begins = ("",) if columns is None else tuple(f"{name}." for name in columns)
    return sum(part.total_uncompressed_size for part in parts if f"{part.path_in_schema}.".startswith(begins))


def _rows_at_once(num_rows: int, num_bytes: int) -> int:
    """Rows to be decoded together: so many that memory stays bounded, whatever they are like."""
    return max(1, min(_BATCH_ROWS, num_rows * _BATCH_BYTES // max(1, num_bytes)))


def _record(row: Any, number: int, reading: Reading) -> Found | Quarantined:
    try:
        (fields,) = row.to_pylist()
    except UnicodeDecodeError as error:
        return Quarantined(number=number, reason=f"broken encoding: {one_line(error)}", raw="")
    except _TROUBLE as error:
        return Quarantined(number=number, reason=f"a value cannot be decoded: {one_line(error)}", raw="")
    if _size(fields) > reading.max_record_bytes:
        return too_long(_BRIEF.repr(fields).encode(), number, reading)
    return record_of(fields, number, reading.columns)


def _size(value: Any) -> int:
    """Bytes of the texts in a decoded value."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
