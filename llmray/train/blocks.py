"""From a dataset snapshot to packed blocks: read the rows, tokenize, pack, count.

Every worker reads the same rows and makes the same blocks, so that a position of the cursor means the same block
everywhere, and the number of trained tokens in a global batch is known without asking the others. Rejected for now:
streaming by Ray Data, which pays from some gigabytes up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as pads

from llmray import storage
from llmray.errors import InputError
from llmray.train.packing import Block, Example, Row, efficiency, pack
from llmray.train.spec import TrainSpec
from llmray.train.template import conversations, texts


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    blocks: Sequence[Block]
    counts: dict[str, float]
    """Rows read, cut, split or left out, and packing efficiency."""


def read_rows(data_uri: str, *, shape: str, split: str, limit: int | None = None) -> list[tuple[Row, Any]]:
    """Rows of a snapshot as (row, content), in the order of their ids.

    Args:
        shape: `text` (content is a string) or `messages` (a list of role/content mappings).
        limit: how many at most; None for all.
    """
    column = {"text": "text", "messages": "messages"}[shape]
    folder = storage.local_copy(data_uri) / "kept"
    if not folder.is_dir():
        raise InputError(f"{data_uri} is no dataset snapshot: it has no folder kept/")
    table = pads.dataset(folder, format="parquet").to_table(
        columns=["id", "source", "row", column], filter=(pc.field("shape") == shape) & (pc.field("split") == split)
    )
    table = table.sort_by("id").slice(0, limit)
    rows: list[Row] = table["row"].to_pylist()
    if len(table["source"].unique()) > 1:
        rows = [f"{source}:{row}" for source, row in zip(table["source"].to_pylist(), rows, strict=True)]
    return list(zip(rows, table[column].to_pylist(), strict=True))


def train_blocks(spec: TrainSpec, tokenizer: Any) -> Blocks:
    """Everything there is to train on, packed; `spec.mix` of the blocks are of the other shape.

    Raises:
        InputError: the snapshot has no train rows of the objective's shape.
    """
    main, other = ("messages", "text") if spec.objective == "sft" else ("text", "messages")
    packed, counts = _pack(spec, tokenizer, main, read_rows(spec.data, shape=main, split="train"))
    if not packed:
        raise InputError(
            f"{spec.data} has no train rows of shape {main!r}, which train.objective {spec.objective!r} needs"
        )
    if spec.mix:
        wanted = round(len(packed) * spec.mix / (1 - spec.mix))
        extra, _ = _pack(spec, tokenizer, other, read_rows(spec.data, shape=other, split="train"))
        order = np.random.default_rng([spec.seed, 1]).permutation(len(extra))[:wanted]
        packed += [extra[index] for index in sorted(order)]
        counts["mixed_blocks"] = len(order)
    counts["blocks"] = len(packed)
    counts["packing_efficiency"] = round(efficiency(packed, spec.max_length), 4)
    return Blocks(blocks=packed, counts=counts)


def heldout_blocks(spec: TrainSpec, tokenizer: Any) -> list[Block]:
    """The first `spec.eval_rows` held-out rows of the objective's shape, packed; none if there are none.

    Raises:
        InputError: there are none, and the spec decides by them.
    """
    if not spec.eval_rows:
        return []
    shape = "messages" if spec.objective == "sft" else "text"
    rows = read_rows(spec.data, shape=shape, split="validation", limit=spec.eval_rows)
    if not rows and spec.needs_heldout:
        raise InputError(
            f"{spec.data} has no validation rows of shape {shape!r}, by which train.patience and train.export best go"
        )
    return _pack(spec, tokenizer, shape, rows)[0]


def _pack(
    spec: TrainSpec, tokenizer: Any, shape: str, rows: Sequence[tuple[Row, Any]]
) -> tuple[list[Block], dict[str, float]]:
    examples: list[Example]
    if shape == "text":
        examples, counts = texts(tokenizer, rows, max_length=spec.max_length)
    elif rows:
        examples, counts = conversations(
            tokenizer, rows, max_length=spec.max_length, all_tokens=spec.objective == "pretrain"
        )
    else:
        return [], {}
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return pack(examples, max_length=spec.max_length, pad_id=pad_id), {**counts}
