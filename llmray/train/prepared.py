"""A run's data on disk: tokenized once, packed once, and mapped by every worker, also after a restart.

The folder is called after the digest of what went in and appears whole or not at all, so whoever finds it need not ask
how far its maker came. Rejected: a cache for all runs, which somebody would have to clean up; and the key of the run
alone, since a model or a dataset that is no artifact can change under its name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmray import storage
from llmray.digest import digest_of
from llmray.train.blocks import Blocks, heldout_blocks, train_blocks
from llmray.train.packed import PackedBlocks
from llmray.train.spec import TrainSpec

DATA = "data"
"""In a run folder, what is prepared, by key."""
_ABOUT = "about.json"
_READ_BY = ("objective", "max_length", "too_long", "template", "mix", "seed", "eval_rows", "data", "model")
_VERSION = 2
"""Of what this code writes and of how it tokenizes and packs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    train: PackedBlocks
    heldout: PackedBlocks
    counts: dict[str, float]
    """Rows and blocks to train on."""


def build(spec: TrainSpec, tokenizer: Any) -> Data:
    """The data of a run, in this process's memory.

    Raises:
        InputError: the snapshot or the tokenizer cannot be used.
    """
    made = train_blocks(spec, tokenizer)
    return Data(train=made.blocks, heldout=heldout_blocks(spec, tokenizer), counts=made.counts)


def prepare(spec: TrainSpec, tokenizer: Any, run_folder: Path) -> Path:
    """The folder with the data of a run, made in this process where it is not there yet.

    Raises:
        InputError: the snapshot or the tokenizer cannot be used.
    """

    def train(draft: Path) -> tuple[Blocks, list[str]]:
        made = train_blocks(spec, tokenizer)
        write_table(made.blocks.examples, draft / "train.arrow")
        return made, ["train.arrow"]

    folder = folder_of(spec, run_folder)
    return folder if folder.exists() else publish(spec, tokenizer, folder, train)


def folder_of(spec: TrainSpec, run_folder: Path) -> Path:
    """Where the data of a run lies, or will."""
    went_in = {name: getattr(spec, name) for name in _READ_BY}
    files = {uri: _stamps(uri) for uri in (storage.join(spec.data, "kept"), spec.model) if storage.exists(uri)}
    return run_folder / DATA / digest_of({"version": _VERSION, "spec": went_in, "files": files})[:24]


def publish(spec: TrainSpec, tokenizer: Any, folder: Path, train: Callable[[Path], tuple[Blocks, list[str]]]) -> Path:
    """Fill the folder of a run's data, all at once.

    Args:
        train: writes tables of examples into the folder that it is given; returns the blocks to train on, and the names
            of the files that hold their examples, in this order.
    """
    with storage.draft_folder(str(folder.parent)) as draft:
        made, files = train(draft)
        heldout = heldout_blocks(spec, tokenizer)
        write_table(heldout.examples, draft / "heldout.arrow")
        about = {
            "train": _save(made.blocks, draft / "train-blocks.arrow", files),
            "heldout": _save(heldout, draft / "heldout-blocks.arrow", ["heldout.arrow"]),
            "counts": made.counts,
        }
        (draft / _ABOUT).write_text(json.dumps(about))
        storage.publish_folder(draft, str(folder), last=_ABOUT)
    return folder


def open_prepared(folder: Path) -> Data:
    """What lies in such a folder, mapped: pages come in as they are looked at, and are shared by the node's workers."""
    about = json.loads((folder / _ABOUT).read_text())
    return Data(train=_load(about["train"], folder), heldout=_load(about["heldout"], folder), counts=about["counts"])


def write_table(table: pa.Table, path: Path) -> None:
    """A table as an Arrow file."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_table(path: Path) -> pa.Table:
    """The table of an Arrow file, mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _save(blocks: PackedBlocks, path: Path, files: Sequence[str]) -> dict[str, Any]:
    write_table(blocks.table, path)
    return {
        "files": list(files),
        "blocks": path.name,
        "max_length": blocks.max_length,
        "pad_id": blocks.pad_id,
        "named": blocks.named,
    }


def _load(about: Mapping[str, Any], folder: Path) -> PackedBlocks:
    return PackedBlocks(
        examples=pa.concat_tables([read_table(folder / name) for name in about["files"]]),
        table=read_table(folder / about["blocks"]),
        max_length=about["max_length"],
        pad_id=about["pad_id"],
        named=about["named"],
    )


def _stamps(uri: str) -> dict[str, str]:
    """What changes when a file below does."""
    return {file: storage.stamp(file) for file in storage.expand([uri])}
