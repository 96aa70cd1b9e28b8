"""From a dataset snapshot to packed blocks: read the rows, tokenize, pack, count.

The blocks and their order follow from the snapshot, the tokenizer and the spec alone, so that a position of the cursor
means the same block everywhere, and the number of trained tokens in a global batch is known without asking the others.
`prepared.py` keeps them on disk for a run's workers; `streamed.py` tokenizes large snapshots by Ray Data.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from llmray import storage
from llmray.errors import InputError
from llmray.train.packed import EXAMPLES, PackedBlocks, blocks_table, examples_table, pack_table
from llmray.train.packing import Row
from llmray.train.spec import TrainSpec
from llmray.train.template import conversations, texts

Shape = Literal["text", "messages"]
Counts = Mapping[str, int]

_ROWS_AT_ONCE = 512
"""Python holds a token of theirs in tens of bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    blocks: PackedBlocks
    counts: dict[str, float]
    """Rows read, cut, split or left out, and packing efficiency."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenized:
    """The rows of one shape and split."""

    examples: pa.Table
    """As `packed.EXAMPLES`."""
    counts: Counts
    """Rows read, cut, split or left out."""


def shapes(spec: TrainSpec) -> tuple[Shape, Shape]:
    """The shape of the rows that the objective trains on, and the other, which `spec.mix` adds."""
    return ("messages", "text") if spec.objective == "sft" else ("text", "messages")


def rows_of(data_uri: str, *, shape: Shape, split: str, limit: int | None = None) -> pa.Table:
    """Rows of a snapshot in the order of their ids: id, source, row, and the column that their shape is called after.

    Args:
        limit: how many at most; None for all.
    """
    data = pads.dataset(kept_folder(data_uri), format="parquet")
    rows = wanted(shape, split)
    if limit is not None:
        ids = sorted(data.to_table(columns=["id"], filter=rows)["id"].to_pylist())
        rows &= pc.field("id").isin(pa.array(ids[:limit], pa.string()))
    return data.to_table(columns=columns_of(shape), filter=rows).sort_by("id")


def wanted(shape: Shape, split: str) -> pc.Expression:
    """What the rows of a shape and split have in common."""
    return (pc.field("shape") == shape) & (pc.field("split") == split)


def columns_of(shape: Shape) -> list[str]:
    """What is read of them."""
    return ["id", "source", "row", shape]


def kept_folder(data_uri: str) -> str:
    """Where the rows of a snapshot lie on this machine.

    Raises:
        InputError: it is no snapshot.
    """
    folder = storage.local_copy(data_uri) / "kept"
    if not folder.is_dir():
        raise InputError(f"{data_uri} is no dataset snapshot: it has no folder kept/")
    return str(folder)


def read_rows(data_uri: str, *, shape: Shape, split: str, limit: int | None = None) -> list[tuple[Row, Any]]:
    """The same as (row, content): a string, or a list of role/content mappings."""
    table = rows_of(data_uri, shape=shape, split=split, limit=limit)
    rows: list[Row] = table["row"].to_pylist()
    if len(table["source"].unique()) > 1:
        rows = [f"{source}:{row}" for source, row in zip(table["source"].to_pylist(), rows, strict=True)]
    return list(zip(rows, table[shape].to_pylist(), strict=True))


def train_blocks(spec: TrainSpec, tokenizer: Any) -> Blocks:
    """Everything there is to train on, packed in this process.

    Raises:
        InputError: as `pack_all`.
    """
    main, other = shapes(spec)
    mixed = tokenize(rows_of(spec.data, shape=other, split="train"), spec, tokenizer, other) if spec.mix else None
    return pack_all(
        spec, tokenize(rows_of(spec.data, shape=main, split="train"), spec, tokenizer, main), mixed,
        pad_id=pad_id_of(tokenizer),
    )  # fmt: skip


def heldout_blocks(spec: TrainSpec, tokenizer: Any) -> PackedBlocks:
    """The first `spec.eval_rows` held-out rows of the objective's shape, packed; none if there are none.

    Raises:
        InputError: there are none, and the spec decides by them.
    """
    shape, _ = shapes(spec)
    examples = EXAMPLES.empty_table()
    if spec.eval_rows:
        rows = rows_of(spec.data, shape=shape, split="validation", limit=spec.eval_rows)
        if not len(rows) and spec.needs_heldout:
            raise InputError(
                f"{spec.data} has no validation rows of shape {shape!r}, by which train.patience and train.export best go"
            )
        examples = tokenize(rows, spec, tokenizer, shape).examples
    return _packed(spec, examples, pack_table(examples, max_length=spec.max_length), pad_id_of(tokenizer))


def tokenize(rows: pa.Table, spec: TrainSpec, tokenizer: Any, shape: Shape) -> Tokenized:
    """The examples of rows, a few at a time.

    Args:
        rows: as `rows_of` gives them.
    """
    pieces = [_tokenize(piece, spec, tokenizer, shape) for piece in _pieces(rows)]
    return joined(pieces)


def joined(pieces: Sequence[Tokenized]) -> Tokenized:
    """What was tokenized apart, as one."""
    counts: dict[str, int] = {}
    for piece in pieces:
        for name, count in piece.counts.items():
            counts[name] = counts.get(name, 0) + count
    tables = [piece.examples for piece in pieces]
    return Tokenized(examples=pa.concat_tables(tables) if tables else EXAMPLES.empty_table(), counts=counts)


def pack_all(spec: TrainSpec, main: Tokenized, mixed: Tokenized | None, *, pad_id: int) -> Blocks:
    """The blocks of the objective's shape; `spec.mix` of the blocks are of the other, where that is given.

    Raises:
        InputError: there is nothing to train on.
    """
    places = pack_table(main.examples, max_length=spec.max_length)
    counts: dict[str, float] = dict(main.counts)
    if not places:
        raise InputError(_nothing(spec, main.counts))
    examples = main.examples
    if mixed is not None:
        share = round(len(places) * spec.mix / (1 - spec.mix))
        extra = pack_table(mixed.examples, max_length=spec.max_length)
        order = np.random.default_rng([spec.seed, 1]).permutation(len(extra))[:share]
        places += [extra[index] + len(examples) for index in sorted(order)]
        examples = pa.concat_tables([examples, mixed.examples])
        counts["mixed_blocks"] = len(order)
    packed = _packed(spec, examples, places, pad_id)
    counts["blocks"] = len(packed)
    counts["packing_efficiency"] = round(packed.efficiency(), 4)
    return Blocks(blocks=packed, counts=counts)


def pad_id_of(tokenizer: Any) -> int:
    """The token that fills blocks up; any will do, since nothing looks at it."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def _packed(spec: TrainSpec, examples: pa.Table, places: Sequence[np.ndarray], pad_id: int) -> PackedBlocks:
    return PackedBlocks(
        examples=examples,
        table=blocks_table(examples, places),
        max_length=spec.max_length,
        pad_id=pad_id,
        named=len(examples["source"].unique()) > 1,
    )


def _pieces(rows: pa.Table) -> Iterator[pa.Table]:
    return (rows.slice(at, _ROWS_AT_ONCE) for at in range(0, len(rows), _ROWS_AT_ONCE))


def _tokenize(rows: pa.Table, spec: TrainSpec, tokenizer: Any, shape: Shape) -> Tokenized:
    names = [
        f"{row} of {source}" for row, source in zip(rows["row"].to_pylist(), rows["source"].to_pylist(), strict=True)
    ]
    named = list(zip(names, rows[shape].to_pylist(), strict=True))
    if shape == "text":
        too_long = "split" if spec.too_long == "by_shape" else spec.too_long
        examples, counts = texts(tokenizer, named, max_length=spec.max_length, too_long=too_long)
    else:
        too_long = "truncate" if spec.too_long == "by_shape" else spec.too_long
        examples, counts = conversations(
            tokenizer,
            named,
            max_length=spec.max_length,
            too_long=too_long,
            all_tokens=spec.objective == "pretrain",
        )
    return Tokenized(examples=examples_table(rows, examples), counts=counts)


def _nothing(spec: TrainSpec, counts: Counts) -> str:
    shape, _ = shapes(spec)
    if not counts.get("rows"):
        return f"{spec.data} has no train rows of shape {shape!r}, which train.objective {spec.objective!r} needs"
    return (
        f"none of the {counts['rows']} train rows of shape {shape!r} in {spec.data} has anything to train within "
        f"train.max_length ({spec.max_length}): raise that, choose train.too_long split, or see whether they have answers"
    )
