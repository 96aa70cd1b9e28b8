"""Read a dataset snapshot, and write one from rows that need no curation: feedback, corrections, preferences.

The columns are those of `tables.SNAPSHOT`. Reading needs neither Ray nor the text of the columns left out.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import dataset as arrow_dataset

from llmray import artifact, storage
from llmray.artifact import Artifact
from llmray.data import outputs
from llmray.data.rows import Row, RowError, Shape, parse_row
from llmray.data.tables import SNAPSHOT, content_columns, parquet_bytes
from llmray.errors import ConfigError, InputError, NotFoundError

if TYPE_CHECKING:
    import ray.data

Split = Literal["train", "validation", "heldout"]
_ROWS_PER_PART = 20_000


def load_rows(
    uri: str,
    *,
    shape: Shape | None = None,
    split: Split | None = None,
    columns: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> pa.Table:
    """Rows of a snapshot, in its own order, which is the same for the same rows: that of sources and of rows in them.

    Args:
        uri: the artifact's folder.
        columns: all of `tables.SNAPSHOT` by default.
        ids: only these rows; all by default.

    Raises:
        NotFoundError: there is no snapshot.
        ConfigError: a column that no snapshot has.
    """
    unknown = sorted(set(columns or ()) - set(SNAPSHOT.names))
    if unknown:
        raise ConfigError(f"a snapshot has no column {unknown[0]!r}: choose among {', '.join(SNAPSHOT.names)}")
    files = _files(uri)
    rows = arrow_dataset.dataset(files, schema=SNAPSHOT, format="parquet")
    wanted = _filter(shape, split)
    if ids is not None:
        named = arrow_dataset.field("id").isin(list(ids))
        wanted = named if wanted is None else wanted & named
    return rows.to_table(columns=None if columns is None else list(columns), filter=wanted)


def dataset(uri: str, *, shape: Shape | None = None, split: Split | None = None) -> "ray.data.Dataset":
    """The same rows as a Ray Dataset; Ray must be connected and see the files."""
    import ray.data
    from ray.data.expressions import col

    rows = ray.data.read_parquet(_files(uri))
    for name, value in (("shape", shape), ("split", split)):
        if value is not None:
            rows = rows.filter(expr=col(name) == value)
    return rows


def write_snapshot(
    records: Sequence[Mapping[str, Any]],
    *,
    source: str,
    heldout_fraction: float = 0.0,
    validation_fraction: float = 0.0,
    root_uri: str | None = None,
    parents: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    onto: str | None = None,
) -> Artifact:
    """Publish records as a snapshot, as they are: nothing is judged, and a row that is there twice is there once.

    Args:
        records: `{"text"}`, `{"messages"}`, `{"prompt", "chosen", "rejected"}` or `{"question", "answer"}`, with
            `choices` and `group` where they have some.
        source: what the rows come from: `feedback`, `corrections`.
        heldout_fraction: share of groups held out to judge finished models by.
        validation_fraction: share of groups held out to watch training by.
        onto: a snapshot whose rows come along, first; a row that both have keeps its old place and split.

    Raises:
        InputError: no records, or one that is no row.
    """
    rows: list[Row] = []
    for number, record in enumerate(records, 1):
        try:
            rows.append(parse_row(record))
        except RowError as error:
            raise InputError(f"record {number} of {source} is no row: {error}") from error
    table = _table(rows, source, heldout_fraction, validation_fraction)
    parents = dict(parents or {})
    if onto is not None:
        old = load_rows(onto)
        fresh = pa.array(~np.isin(np.asarray(table["id"]), np.asarray(old["id"])))
        table = pa.concat_tables([old, table.filter(fresh)])
        parents.setdefault("onto", artifact.load(onto).digest)
    if not table.num_rows:
        raise InputError(f"{source} holds no rows: a snapshot needs at least one")
    with artifact.draft("dataset", root_uri=root_uri) as draft:
        (draft.folder / "kept").mkdir()
        for number in range(outputs.num_parts(table.num_rows, _ROWS_PER_PART)):
            data = parquet_bytes(table.slice(number * _ROWS_PER_PART, _ROWS_PER_PART))
            (draft.folder / "kept" / f"part-{number:05d}.parquet").write_bytes(data)
        counts = {"in": len(rows), "kept": table.num_rows}
        return draft.seal(parents=parents, config={"source": source, **(config or {})}, report={"rows": counts})


def _table(rows: Sequence[Row], source: str, heldout_fraction: float, validation_fraction: float) -> pa.Table:
    """Snapshot rows by id, each once: the first record of several keeps its number."""
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        numbers.setdefault(row.id, number)
    chosen = [rows[number - 1] for _, number in sorted(numbers.items())]
    columns: dict[str, Any] = {
        **content_columns(chosen),
        "id": pa.array([row.id for row in chosen], pa.string()),
        "shape": pa.array([row.shape for row in chosen], pa.string()),
        "split": pa.array(
            [outputs.split_of(row.group or row.id, heldout_fraction, validation_fraction) for row in chosen],
            pa.string(),
        ),
        "source": pa.array([source] * len(chosen), pa.string()),
        "row": pa.array([number for _, number in sorted(numbers.items())], pa.int64()),
    }
    return pa.table({name: columns[name] for name in SNAPSHOT.names}).cast(SNAPSHOT)


def _files(uri: str) -> list[str]:
    if not storage.exists(storage.join(uri, artifact.MANIFEST)):
        raise NotFoundError(f"{uri} holds no dataset snapshot: it has no {artifact.MANIFEST}")
    folder = storage.local_copy(uri) / "kept"
    files = sorted(str(path) for path in folder.glob("part-*.parquet"))
    if not files:
        raise NotFoundError(f"{uri} holds no dataset snapshot: it has no kept/part-*.parquet")
    return files


def _filter(shape: Shape | None, split: Split | None) -> Any:
    wanted = None
    for name, value in (("shape", shape), ("split", split)):
        if value is not None:
            equal = arrow_dataset.field(name) == value
            wanted = equal if wanted is None else wanted & equal
    return wanted
