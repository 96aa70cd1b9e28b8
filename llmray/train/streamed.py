"""Tokenize a large snapshot by Ray Data: each task reads some row groups, and writes the examples that come of them.

Text never passes through the object store, and what comes back is a line a task. The blocks are packed by the driver from
ids and lengths alone, so that they are those that one process makes. Below `FROM_BYTES` the first worker does it
while its run starts: Ray Data and its workers' imports take seconds. Rejected: `ray.data.read_parquet`, whose blocks
of rows travel from task to task, and Ray Train's dataset shards, which drop rows to equalise and know no position to go
on from.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyarrow import parquet

from llmray.errors import InputError
from llmray.train.blocks import (
    Blocks,
    Shape,
    Tokenized,
    columns_of,
    joined,
    kept_folder,
    pack_all,
    pad_id_of,
    shapes,
    tokenize,
    wanted,
)
from llmray.train.prepared import folder_of, publish, read_table, write_table
from llmray.train.spec import TrainSpec
from llmray.train.template import load_tokenizer

FROM_BYTES = 80_000_000
"""Uncompressed text from which on Ray Data pays, measured on two cores; see docs/log.md."""
_TASK_BYTES = 16_000_000
"""Uncompressed text of one task."""


def prepare_if_large(spec: TrainSpec, run_folder: Path, *, from_bytes: int = FROM_BYTES) -> None:
    """Have the data of a run ready for its workers where the snapshot is large; Ray must be connected.

    Raises:
        InputError: the snapshot or the tokenizer cannot be used.
    """
    folder = folder_of(spec, run_folder)
    if folder.exists():
        return
    parts = list(_parts(spec))
    if sum(part["bytes"] for part in parts) < from_bytes:
        return
    tokenizer = _tokenizer(spec.model, spec.template)

    def train(draft: Path) -> tuple[Blocks, list[str]]:
        main, other = shapes(spec)
        made = _tokenized(spec, parts, main, draft)
        mixed = _tokenized(spec, parts, other, draft) if spec.mix else None
        used = (main, other) if spec.mix else (main,)
        files = [_file(shape, part["number"]) for shape in used for part in parts]
        return pack_all(spec, made, mixed, pad_id=pad_id_of(tokenizer)), files

    publish(spec, tokenizer, folder, train)


def _parts(spec: TrainSpec) -> Iterator[dict[str, Any]]:
    """Row groups that lie together, of a task's size."""
    number = 0
    for path in sorted(Path(kept_folder(spec.data)).glob("*.parquet")):
        about = parquet.read_metadata(path)
        sizes = [about.row_group(at).total_byte_size for at in range(about.num_row_groups)]
        first = 0
        for at in range(len(sizes)):
            if at + 1 == len(sizes) or sum(sizes[first : at + 1]) >= _TASK_BYTES:
                groups = range(first, at + 1)
                yield {"number": number, "file": path.name, "groups": [*groups], "bytes": sum(sizes[g] for g in groups)}
                first, number = at + 1, number + 1


def _tokenized(spec: TrainSpec, parts: list[dict[str, Any]], shape: Shape, draft: Path) -> Tokenized:
    import ray.data

    quiet = ray.data.DataContext.get_current().copy()
    quiet.enable_progress_bars = quiet.print_on_execution_start = False
    pieces = {}
    with ray.data.DataContext.current(quiet):
        work = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
            _tokenize_part, fn_kwargs={"spec": spec, "shape": shape, "draft": str(draft)}
        )
        with closing(iter(work.iter_rows())) as answers:  # closed, Ray Data takes back what is left of its tasks
            for answer in answers:
                if answer["error"]:
                    raise InputError(answer["error"])
                examples = read_table(draft / _file(shape, answer["number"]))
                pieces[answer["number"]] = Tokenized(examples=examples, counts=json.loads(answer["counts"]))
    return joined([pieces[part["number"]] for part in parts])


def _file(shape: Shape, number: int) -> str:
    return f"{shape}-{number:06}.arrow"


def _tokenize_part(part: Mapping[str, Any], spec: TrainSpec, shape: Shape, draft: str) -> dict[str, Any]:
    """A task; what a user must mend comes back as a value, since raised Ray would wrap it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a task has one core
    try:
        with parquet.ParquetFile(Path(kept_folder(spec.data)) / part["file"]) as file:
            rows = file.read_row_groups(
                [int(at) for at in part["groups"]], columns=["shape", "split", *columns_of(shape)]
            )
        rows = rows.filter(wanted(shape, "train")).select(columns_of(shape))
        made = tokenize(rows, spec, _tokenizer(spec.model, spec.template), shape)
    except InputError as error:
        return {"number": part["number"], "error": str(error), "counts": ""}
    path = Path(draft) / _file(shape, part["number"])
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # another try of this task may be at it
    write_table(made.examples, unfinished)
    unfinished.replace(path)
    return {"number": part["number"], "error": "", "counts": json.dumps(made.counts)}


@lru_cache(maxsize=1)
def _tokenizer(model: str, template: str) -> Any:
    """Ray's workers take many tasks."""
    return load_tokenizer(model, template)
