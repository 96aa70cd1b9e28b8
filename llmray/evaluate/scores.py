"""What an evaluation says, item by item: the value that the gate reads.

One row an item, sorted, so that two evaluations of the same rows pair up by id. Rejected: keeping averages alone; two
averages cannot be compared without the variance of the difference between them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmray import artifact
from llmray.errors import InputError

ITEMS = "items.parquet"
SUBJECT = "subject.json"
SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("id", pa.string()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
        ("metric", pa.string()),
        ("cluster", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScores:
    metric: str
    """What a value is: `accuracy`, `nll_per_token`, …"""
    ids: tuple[str, ...]
    """Row ids, sorted, each once."""
    values: NDArray[np.float64]
    """One per item."""
    weights: NDArray[np.float64]
    """One per item: tokens for a loss per token, else 1."""
    clusters: tuple[str, ...]
    """What each item is about; an item that shares it with none is its own cluster."""

    @property
    def mean(self) -> float:
        """Weighted mean."""
        return float(np.average(self.values, weights=self.weights))

    @property
    def independent(self) -> bool:
        """Whether no two items share a cluster."""
        return len(set(self.clusters)) == len(self.clusters)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    model: str
    """Digest (or name) of the model that was scored."""
    data: str
    """Digest of the snapshot that the items come from."""
    tasks: Mapping[str, TaskScores]
    """By the task's name."""


def load_scores(uri: str) -> Scores:
    """Read the scores of an evaluation artifact.

    Raises:
        NotFoundError: there is no artifact.
        InputError: it is no evaluation.
    """
    evaluation = artifact.load(uri)
    if evaluation.kind != "evaluation":
        raise InputError(f"{uri} is a {evaluation.kind}, not an evaluation")
    folder = evaluation.local()
    subject = json.loads((folder / SUBJECT).read_bytes())
    return Scores(model=subject["model"], data=subject["data"], tasks=from_table(pq.read_table(folder / ITEMS)))


def from_table(table: pa.Table) -> dict[str, TaskScores]:
    """Group a table of items by task."""
    table = table.sort_by([("task", "ascending"), ("id", "ascending")])
    names = table["task"].to_pylist()
    return {task: _task_scores(table.filter(pa.array([name == task for name in names]))) for task in sorted(set(names))}


def _task_scores(table: pa.Table) -> TaskScores:
    ids = tuple(table["id"].to_pylist())
    clusters = zip(table["cluster"].to_pylist(), ids, strict=True)
    return TaskScores(
        metric=table["metric"][0].as_py(),
        ids=ids,
        values=table["value"].to_numpy(),
        weights=table["weight"].to_numpy(),
        clusters=tuple(item if cluster is None else f"group:{cluster}" for cluster, item in clusters),
    )
