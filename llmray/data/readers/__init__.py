"""Files to rows, losing nothing that could be read: a bad row is quarantined by itself, with file, number and reason.

jsonl, csv, tsv and plain text, each also in gzip and zstd; Parquet; Arrow files and the folders that Hugging Face
`datasets` saves; from any URI. `expand` names the files of the sources, `chunks` cuts a file into pieces of work,
`read_chunk` reads one. A truncated or damaged file gives up every row before the damage, a `Loss` says where it ended,
and the row that was cut is quarantined.
"""

from llmray.data.readers.chunks import CHUNK_BYTES, Chunk, Records, chunks, read, read_chunk
from llmray.data.readers.folders import expand
from llmray.data.readers.reading import SUFFIXES, Reading, check_sources
from llmray.data.readers.records import Found, Loss, Quarantined, Record

__all__ = [
    "CHUNK_BYTES",
    "SUFFIXES",
    "Chunk",
    "Found",
    "Loss",
    "Quarantined",
    "Reading",
    "Record",
    "Records",
    "check_sources",
    "chunks",
    "expand",
    "read",
    "read_chunk",
]
