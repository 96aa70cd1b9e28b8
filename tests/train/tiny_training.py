"""A tokenizer, a base model and a snapshot, all tiny and real."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmray import artifact
from llmray.artifact import Artifact
from llmray.data.snapshot import load_rows, write_snapshot
from llmray.data.tables import parquet_bytes
from llmray.train.base_model import BOS, EOS, PAD, BaseModelSpec, learn_tokenizer, make_base
from llmray.train.named_templates import NAMED

SHAPE = BaseModelSpec(
    vocab_size=320, hidden_size=64, intermediate_size=64, num_layers=1, num_heads=2, max_positions=128
)
WORDS = [
    "join",
    "splits",
    "a",
    "path;",
    "loads",
    "reads",
    "JSON;",
    "sleep",
    "waits;",
    "sorted",
    "returns",
    "a",
    "list;",
    "open",
    "opens",
    "a",
    "file",
]


def conversations(count: int) -> list[dict[str, Any]]:
    """Short questions and answers of several lengths."""
    return [
        {"question": f"What is {WORDS[i % len(WORDS)]} {i}?", "answer": " ".join(WORDS[: 2 + i % 6])}
        for i in range(count)
    ]


def snapshot(
    root: Path, *, count: int = 24, more: Sequence[dict[str, Any]] = (), validation: Sequence[int] = ()
) -> Artifact:
    """Conversations 1 to `count`, a text, and `more`, all to train on but the rows of `validation`."""
    records = [*conversations(count), {"text": " ".join(WORDS)}, *more]
    written = write_snapshot(records, source="test", root_uri=str(root))
    if not validation:
        return written
    rows = load_rows(written.uri)
    split = ["validation" if row in validation else "train" for row in rows["row"].to_pylist()]
    rows = rows.set_column(rows.schema.get_field_index("split"), "split", pa.array(split))
    with artifact.draft("dataset", root_uri=str(root)) as draft:
        (draft.folder / "kept").mkdir()
        (draft.folder / "kept" / "part-00000.parquet").write_bytes(parquet_bytes(rows))
        return draft.seal()


def base(root: Path, data: Artifact) -> Artifact:
    return make_base(data.uri, SHAPE, root_uri=str(root))


def tokenizer(template: str | None = NAMED["plain"].jinja) -> Any:
    from transformers import PreTrainedTokenizerFast

    core = learn_tokenizer([" ".join(WORDS)], vocab_size=320)
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    made.chat_template = template
    return made
