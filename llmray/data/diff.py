"""Two snapshots, row by row: ids are digests of content, so what changed is a difference of sets."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray.data.snapshot import load_rows

_EXCERPT = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class RowDiff:
    """What `b` has and has not, against `a`."""

    added: int
    """Rows that only b has."""
    removed: int
    """Rows that only a has."""
    kept: int
    """Rows that both have."""
    moved: int
    """Rows of both that lie on another side of the split."""
    added_examples: list[dict[str, str]]
    """id, shape and excerpt of the first few by id."""
    removed_examples: list[dict[str, str]]


def diff(uri_a: str, uri_b: str, *, examples: int = 5) -> RowDiff:
    """Compare two snapshots.

    Raises:
        NotFoundError: one of them is no snapshot.
    """
    a, b = (load_rows(uri, columns=["id", "split"]) for uri in (uri_a, uri_b))
    ids_a, ids_b = (_ids(table["id"]) for table in (a, b))
    shared, at_a, at_b = np.intersect1d(ids_a, ids_b, return_indices=True)
    added, removed = np.setdiff1d(ids_b, ids_a), np.setdiff1d(ids_a, ids_b)
    return RowDiff(
        added=len(added),
        removed=len(removed),
        kept=len(shared),
        moved=int((_split(a)[at_a] != _split(b)[at_b]).sum()),
        added_examples=_show(uri_b, added[:examples]),
        removed_examples=_show(uri_a, removed[:examples]),
    )


def _ids(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    return np.asarray(column.cast(pa.binary()).to_pylist(), dtype="S64")


def _split(table: pa.Table) -> NDArray[np.str_]:
    return np.asarray(table["split"].to_pylist(), dtype=str)


def _show(uri: str, ids: NDArray[np.bytes_]) -> list[dict[str, str]]:
    if not len(ids):
        return []
    wanted = [id_.decode() for id_ in ids.tolist()]
    rows = {row["id"]: row for row in load_rows(uri, ids=wanted).to_pylist()}
    return [{"id": id_, "shape": rows[id_]["shape"], "excerpt": _excerpt(rows[id_])} for id_ in wanted]


def _excerpt(row: dict[str, Any]) -> str:
    said = row["text"] or row["prompt"] or " / ".join(turn["content"] for turn in row["messages"] or ())
    return " ".join(said.split())[:_EXCERPT]
