"""How files become rows where their names do not say it all: one frozen config, and the format of a file.

A file's format is the end of its name, or what `formats` says. Rejected: looking into the file to guess (a corpus of
tab-separated lines and one of sentences with a tab look alike, and a guess may change with the first line).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, get_args

from llmray.data.rows import FIELDS
from llmray.errors import ConfigError, InputError

Kind = Literal["jsonl", "csv", "tsv", "text", "parquet", "arrow"]
Packing = Literal["gzip", "zstd"]

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_PACKINGS: dict[str, Packing] = {".gz": "gzip", ".zst": "zstd"}
_PACKED = (".jsonl", ".csv", ".tsv", ".txt")
_MOST_MB = 1024
SUFFIXES = (*_KINDS, *(suffix + packing for suffix in _PACKED for packing in _PACKINGS))
"""Ends of the names of files that can be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How files become rows."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """What the files call a row's field, where it has another name there, as field: name (`text: sentence`)."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Format (jsonl, csv, tsv, text, parquet, arrow) of files whose names do not tell, as pattern: format."""
    header: tuple[str, ...] = ()
    """Names of the columns of csv and tsv files that have no header row; by default the first row has them."""
    quotes: bool = True
    """Whether fields of csv and tsv files may stand in double quotes; without, a quote is a character like any."""
    text_rows: Literal["file", "paragraph", "line"] = "file"
    """What of a plain text file is a row; paragraphs are parted by blank lines."""
    max_record_mb: int = 256
    """Largest record, in MiB of its line or lines, or of what its fields hold; a larger one is quarantined."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.columns) - FIELDS):
            raise ConfigError(
                f"reading.columns names {unknown[0]!r}, which is no field of a row: choose among "
                f"{', '.join(sorted(FIELDS))}, and write field: name in the file"
            )
        if unknown := sorted(set(self.formats.values()) - set(get_args(Kind))):
            raise ConfigError(
                f"reading.formats ({unknown[0]!r}) must be one of {', '.join(get_args(Kind))}: try '*.txt': tsv"
            )
        if len(set(self.header)) < len(self.header):
            raise ConfigError("reading.header names a column twice: give each its own name")
        if not 1 <= self.max_record_mb <= _MOST_MB:
            raise ConfigError(
                f"reading.max_record_mb ({self.max_record_mb}) must be between 1 and {_MOST_MB:,}, so that a batch of "
                f"rows fits an Arrow column (2 GiB): try 256"
            )

    @property
    def wanted(self) -> frozenset[str]:
        """Names that a file may have for something in a row; columns of other names need not be read."""
        return FIELDS | frozenset(self.columns.values())

    @property
    def max_record_bytes(self) -> int:
        """Bytes of the largest record."""
        return self.max_record_mb << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """What a file's bytes are."""

    kind: Kind
    packing: Packing | None


def format_of(uri: str, reading: Reading) -> Format:
    """The format of a file.

    Raises:
        InputError: neither its name nor `reading.formats` tells one that can be read.
    """
    name = uri.lower()
    packing = next((packing for suffix, packing in _PACKINGS.items() if name.endswith(suffix)), None)
    for pattern, kind in reading.formats.items():
        if any(fnmatchcase(written, pattern) for written in (uri, uri.rsplit("/", 1)[-1])):
            if packing and kind in ("parquet", "arrow"):
                raise InputError(f"{uri} cannot be read: {kind} files are compressed inside, not as a whole")
            return Format(kind=kind, packing=packing)  # type: ignore[arg-type]  # __post_init__ has checked it
    if name.endswith(SUFFIXES):
        suffix = "." + name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[-1]
        return Format(kind=_KINDS[suffix], packing=packing)
    raise InputError(
        f"{uri} cannot be read: name files that end in {', '.join(SUFFIXES)}, or say what it is in reading.formats"
    )


def check_sources(uris: Sequence[str], reading: Reading | None = None) -> None:
    """Make sure that every file has a format that can be read.

    Raises:
        InputError: one has another suffix.
    """
    for uri in uris:
        format_of(uri, reading or Reading())
