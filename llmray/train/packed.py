"""Packed blocks as two Arrow tables: what was tokenized, and which of it lies together; a block is made when asked for.

The tables lie in memory or are mapped from files, so that what a worker holds does not grow with the data. The order of
blocks follows from ids and lengths alone, never from the order in which rows were tokenized or written. Rejected:
whole blocks on disk, which hold padding and positions, and would be written anew for each way to pack.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmray.train.packing import Block, Example, Row, best_fit, block_of

EXAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("window", pa.int32()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.uint8())),
        ("num_targets", pa.int32()),
    ]
)
"""One example a row, with the place in the snapshot that it came from; `window` counts the examples of one id."""

BLOCKS = pa.schema([("examples", pa.list_(pa.int64())), ("num_tokens", pa.int64()), ("num_targets", pa.int64())])
"""One block a row: where its documents stand among the examples, and what `Block` counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBlocks(Sequence[Block]):
    """Blocks out of a table of examples."""

    examples: pa.Table
    """As `EXAMPLES`, in any order."""
    table: pa.Table
    """As `BLOCKS`."""
    max_length: int
    pad_id: int
    named: bool
    """Whether a row's number stands behind the name of its source."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no block {index} among {len(self)}")
        documents = self.table["examples"][index % len(self)].as_py()
        return block_of([self._example(at) for at in documents], max_length=self.max_length, pad_id=self.pad_id)

    def __iter__(self) -> Iterator[Block]:
        return (self[at] for at in range(len(self)))

    def tokens_and_targets(self, indices: Sequence[int]) -> tuple[int, int]:
        """Tokens without padding, and targets, in some blocks, none of which is made."""
        some = self.table.take(indices)
        return sum(some["num_tokens"].to_pylist()), sum(some["num_targets"].to_pylist())

    def efficiency(self) -> float:
        """Share of the blocks' tokens that are not padding."""
        return float(pc.sum(self.table["num_tokens"]).as_py() or 0) / max(1, len(self) * self.max_length)

    def _example(self, at: int) -> Example:
        row: Row = self.examples["row"][at].as_py()
        return Example(
            input_ids=self.examples["input_ids"][at].values.to_numpy(),
            trained=self.examples["trained"][at].values.to_numpy(),
            row=f"{self.examples['source'][at]}:{row}" if self.named else row,
        )


def examples_table(rows: pa.Table, examples: Sequence[Sequence[Example]]) -> pa.Table:
    """The table of examples of some rows.

    Args:
        rows: with columns id, source and row.
        examples: those of each row.
    """
    flat = [example for those in examples for example in those]
    origin = np.repeat(np.arange(len(examples)), [len(those) for those in examples])
    ends = np.cumsum([0, *(len(example.input_ids) for example in flat)], dtype=np.int32)

    def lists(values: Iterable[Sequence[int]], of: type[np.generic]) -> pa.Array:
        whole = np.fromiter(chain.from_iterable(values), dtype=of, count=ends[-1])
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(whole))

    windows = np.fromiter(chain.from_iterable(range(len(those)) for those in examples), np.int32, count=len(flat))
    ids, trained = (
        lists((example.input_ids for example in flat), np.int32),
        lists((example.trained for example in flat), np.uint8),
    )
    targets = np.fromiter((example.num_targets for example in flat), np.int32, count=len(flat))
    names = [rows[name].take(origin) for name in ("id", "source", "row")]
    return pa.table([names[0], windows, *names[1:], ids, trained, targets], schema=EXAMPLES)


def pack_table(examples: pa.Table, *, max_length: int) -> list[np.ndarray]:
    """For each block, where its examples stand in the table; the same blocks for the same examples in any order."""
    order = pc.sort_indices(
        examples.select(["id", "window"]), [("id", "ascending"), ("window", "ascending")]
    ).to_numpy()
    lengths = pc.list_value_length(examples["input_ids"]).to_numpy()[order]
    return [order[group] for group in best_fit(lengths.tolist(), max_length)]


def blocks_table(examples: pa.Table, blocks: Sequence[np.ndarray]) -> pa.Table:
    """The table of blocks, from where each block's examples stand."""
    ends = np.cumsum([0, *map(len, blocks)], dtype=np.int32)
    placed = np.fromiter(chain.from_iterable(blocks), dtype=np.int64, count=ends[-1])
    counted = (pc.list_value_length(examples["input_ids"]), examples["num_targets"])
    sums = [np.concatenate([[0], np.cumsum(count.to_numpy()[placed], dtype=np.int64)])[ends] for count in counted]
    where = pa.ListArray.from_arrays(pa.array(ends), pa.array(placed))
    return pa.table([where, *map(np.diff, sums)], schema=BLOCKS)
