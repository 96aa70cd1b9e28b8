"""Where every row of a curation lies: rows are numbered by source, then by place in the source, through all chunks.

The number of a row does not depend on how sources were cut, and following the numbers is reading the files in order.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray.data.config import CurateConfig
from llmray.data.readers import Chunk
from llmray.data.rows import Row
from llmray.data.tables import fixed_bytes, mapped, pick, said_bytes
from llmray.data.work import Work

I64 = NDArray[np.int64]


def chunk_name(number: int) -> str:
    """The piece of work that a chunk becomes."""
    return f"chunks/{number:06d}"


@dataclass(frozen=True, kw_only=True)
class Places:
    """The rows of all chunks, R of them."""

    work: Work
    sources: Sequence[str]
    """Names of the sources, in order."""
    source_C: I64
    """Source of each chunk."""
    bases_C1: I64
    """Number of the first row of each chunk; the last entry is R."""
    lines_C: I64
    """Lines of the same source before each chunk."""
    bad_C: I64
    """Records of each chunk that are no rows."""
    personal: Mapping[str, int]
    """Personal data that was found, by kind."""
    stripped: Mapping[str, int]
    """Boilerplate that was taken out: from how many rows, how many lines or paragraphs, how many characters."""

    @property
    def num_rows(self) -> int:
        return int(self.bases_C1[-1])

    @property
    def num_chunks(self) -> int:
        return len(self.source_C)

    @cached_property
    def source_bases(self) -> I64:
        """Number of the first row of each source; the last entry is R."""
        first = np.searchsorted(self.source_C, np.arange(len(self.sources)))
        return np.append(self.bases_C1[first], self.num_rows)

    def small(self, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Columns of the small table for all rows; binaries come as bytes [R, B]."""
        tables = [mapped(self._path(chunk) / "small.arrow").select(columns) for chunk in range(self.num_chunks)]
        whole = pa.concat_tables(tables)
        return {name: _array(whole[name]) for name in columns}

    def numbered(self, file: str, schema: pa.Schema) -> pa.Table:
        """The file of all chunks, whose column `row` counts within a chunk, with numbers of rows in it."""
        tables = [schema.empty_table()]
        for chunk in range(self.num_chunks):
            table = mapped(self._path(chunk) / file)
            tables.append(
                table.set_column(0, schema.field(0), pa.array(table["row"].to_numpy() + self.bases_C1[chunk]))
            )
        return pa.concat_tables(tables)

    def of(self, rows: I64, file: str, columns: Sequence[str]) -> pa.Table:
        """Columns of `content.arrow` or `small.arrow` for some rows, in any order and as often as they are named."""
        wanted, back = np.unique(rows, return_inverse=True)
        in_order = np.array_equal(wanted, rows)
        tables = [
            pick(self._path(chunk) / file, wanted[low:high] - self.bases_C1[chunk], columns)
            for chunk, low, high in self._runs(wanted)
        ]
        if not tables:
            return pick(self._path(0) / file, wanted, columns)
        table = pa.concat_tables(tables)
        return table if in_order else table.take(pa.array(back))

    def source_and_row(self, rows: I64) -> tuple[pa.Array, I64]:
        """The source's name and the number in it, from 1, of each row."""
        chunk = np.searchsorted(self.bases_C1, rows, side="right") - 1
        line = self.of(rows, "small.arrow", ["line"])["line"].to_numpy()
        names = pa.array(self.sources, pa.string()).take(pa.array(self.source_C[chunk]))
        return names, line + self.lines_C[chunk]

    def said_bytes(self, rows: I64) -> I64:
        """Bytes of what some rows, in ascending order, say [n]."""
        sizes = [
            said_bytes(self._path(chunk) / "content.arrow", rows[low:high] - self.bases_C1[chunk])
            for chunk, low, high in self._runs(rows)
        ]
        return np.concatenate([np.zeros(0, np.int64), *sizes])

    def ids(self, rows: I64) -> NDArray[np.uint8]:
        """Ids of some rows [n, 32]."""
        return fixed_bytes(self.of(rows, "small.arrow", ["id"])["id"])

    def compared_texts(self, rows: I64, config: CurateConfig) -> pa.Array:
        """What of some rows, in ascending order, is compared for near repeats."""
        return near_texts(self.of(rows, "content.arrow", COMPARED), config)

    def _runs(self, wanted: I64) -> list[tuple[int, int, int]]:
        cuts = np.searchsorted(wanted, self.bases_C1)
        return [(int(chunk), int(cuts[chunk]), int(cuts[chunk + 1])) for chunk in np.flatnonzero(np.diff(cuts))]

    def _path(self, chunk: int) -> Any:
        return self.work.path(chunk_name(chunk))


COMPARED = ("kind", "text", "messages", "prompt", "chosen", "rejected", "choices")


def locate(work: Work, chunks: Sequence[Chunk], facts: Sequence[Mapping[str, Any]]) -> Places:
    """Count through the chunks; `facts` say how many rows and lines each has."""
    sources = list(dict.fromkeys(chunk.source for chunk in chunks))
    number = {name: at for at, name in enumerate(sources)}
    source_C = np.array([number[chunk.source] for chunk in chunks], np.int64)
    lines = np.array([fact["lines"] for fact in facts], np.int64)
    before = np.cumsum(lines) - lines
    first = np.searchsorted(source_C, source_C)
    return Places(
        work=work,
        sources=sources,
        source_C=source_C,
        bases_C1=np.concatenate(([0], np.cumsum([fact["rows"] for fact in facts]))).astype(np.int64),
        lines_C=before - before[first],
        bad_C=np.array([fact["bad"] for fact in facts], np.int64),
        personal=_summed(facts, "personal"),
        stripped=_summed(facts, "stripped"),
    )


def _summed(facts: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    return dict(sum((Counter(fact[name]) for fact in facts), Counter()))


def near_texts(table: pa.Table, config: CurateConfig) -> pa.Array:
    """What is compared of rows with the columns `COMPARED`; nothing ("") where a row has no near repeats."""
    if not table["kind"].to_numpy().any():  # texts alone
        return table["text"].combine_chunks()
    return pa.array([config.dedup.near_text(row) or "" for row in rows_of(table)], pa.string())


def rows_of(table: pa.Table) -> list[Row]:
    """The rows of a table with the content columns."""
    return [
        Row(
            shape=_SHAPE[record["kind"]],  # type: ignore[arg-type]
            text=record["text"],
            messages=None if (turns := record["messages"]) is None else tuple((t["role"], t["content"]) for t in turns),
            prompt=record["prompt"],
            chosen=record["chosen"],
            rejected=record["rejected"],
            choices=None if record["choices"] is None else tuple(record["choices"]),
        )
        for record in table.to_pylist()
    ]


_SHAPE = ("text", "messages", "preference", "messages")


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_fixed_size_binary(column.type):
        return np.concatenate([np.zeros((0, column.type.byte_width), np.uint8), *map(fixed_bytes, column.chunks)])
    return np.asarray(column.to_numpy())
