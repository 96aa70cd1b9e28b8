"""What a curation writes, as bytes: kept and removed rows, clusters, quarantine. Pure; rows in a fixed order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from llmray.data.config import CurateConfig
from llmray.data.decide import Candidates, Fates
from llmray.data.minhash import I64, U64
from llmray.data.rows import Row
from llmray.data.tables import CLUSTERS, CONTENT, REMOVED, SNAPSHOT, WORK, parquet_bytes
from llmray.digest import fraction_of

QUARANTINE = ("status", "source", "row", "reason", "raw", "lost_rows")


def parts(rows: I64, rows_per_part: int) -> list[I64]:
    """Rows cut into parts of one size; one empty part where there are none, so that the schema is on disk."""
    return [rows[low : low + rows_per_part] for low in range(0, max(1, len(rows)), rows_per_part)]


def collect(places: pa.Table, blocks: Mapping[int, pa.Table]) -> pa.Table:
    """Rows from the blocks that hold them, in the order of `places` (columns `block` and `at`)."""
    block_of, at = places["block"].to_numpy(), places["at"].to_numpy()
    taken, order = [], []
    for number, block in sorted(blocks.items()):
        here = np.flatnonzero(block_of == number)
        taken.append(block.take(pa.array(at[here])))
        order.append(here)
    if not taken:
        return WORK.empty_table()
    back = np.argsort(np.concatenate(order))
    return pa.concat_tables(taken).take(pa.array(back))


def kept(rows: pa.Table, _: None, config: CurateConfig) -> bytes:
    """A file of the snapshot."""
    keys = [group or id_ for group, id_ in zip(rows["group"].to_pylist(), rows["id"].to_pylist(), strict=True)]
    split = pa.array([split_of(key, config.heldout_fraction, config.validation_fraction) for key in keys], pa.string())
    return parquet_bytes(rows.append_column("split", split).select(SNAPSHOT.names).cast(SNAPSHOT))


def split_of(key: str, heldout_fraction: float, validation_fraction: float = 0.0) -> str:
    """The side on which a group, or a row without one, falls for ever."""
    place = fraction_of(key)
    if place < heldout_fraction:
        return "heldout"
    return "validation" if place < heldout_fraction + validation_fraction else "train"


def removed(rows: pa.Table, extra: pa.Table, _: CurateConfig) -> bytes:
    """A file of rows that went, and why."""
    table = rows.select(["id", "shape", "source", "row", "excerpt"])
    for name in extra.schema.names:
        table = table.append_column(extra.schema.field(name), extra[name])
    return parquet_bytes(table.select(REMOVED.names).cast(REMOVED))


def fate_columns(rows: I64, found: Candidates, fates: Fates) -> pa.Table:
    """The columns of removed rows that say why."""
    repeats = fates.match[rows] != ""
    matched = pa.array(found.table["id"].take(pa.array(fates.matched[rows])).to_pylist(), pa.string())
    reasons = [
        [{"rule": f.rule, "value": f.value, "threshold": f.threshold} for f in found.failures[row]] for row in rows
    ]
    no = pa.scalar(None)
    mask = pa.array(repeats)
    return pa.table(
        {
            "reasons": pa.array(reasons, REMOVED.field("reasons").type),
            "match": pa.compute.if_else(mask, pa.array(fates.match[rows].tolist(), pa.string()), no.cast(pa.string())),
            "matched_id": pa.compute.if_else(mask, matched, no.cast(pa.string())),
            "similarity": pa.compute.if_else(mask, pa.array(fates.similarity[rows]), no.cast(pa.float64())),
        }
    )


def clusters(found: Candidates, fates: Fates) -> bytes:
    """Every cluster of two rows or more, by its best row's id."""
    member = fates.cluster >= 0
    _, label, count = np.unique(fates.cluster[member], return_inverse=True, return_counts=True)
    rows = np.flatnonzero(member)[count[label] > 1]
    # Row numbers follow the ids, so this is by id of the cluster, then of the row.
    rows = rows[np.lexsort((rows, fates.cluster[rows]))]
    ids = found.table["id"]
    table = found.table.take(pa.array(rows))
    columns = {
        "cluster": ids.take(pa.array(fates.cluster[rows])),
        "kept_id": ids.take(pa.array(fates.matched[rows])),
        "similarity": pa.array(fates.similarity[rows]),
    }
    for name in ("id", "source", "row"):
        columns[name] = table[name]
    return parquet_bytes(pa.table({name: columns[name] for name in CLUSTERS.names}).cast(CLUSTERS))


def quarantine_records(tables: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """Quarantined records and losses of all blocks, by source and row."""
    records = [record for table in tables for record in table.to_pylist()]
    return sorted(records, key=lambda record: (record["source"], record["row"], record["status"]))


def lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines of what each record has to say."""
    return b"".join(
        orjson.dumps(
            {name: value for name, value in record.items() if value is not None and name != "status"},
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for record in records
    )


def near_texts(block: pa.Table, at: I64, config: CurateConfig) -> list[str]:
    """What of some rows of a block is compared for near repeats."""
    rows = rows_of(block.select(CONTENT).take(pa.array(at)))
    return [config.dedup.near_text(row) or "" for row in rows]


def rows_of(table: pa.Table) -> Iterator[Row]:
    """The rows of a table with the content columns."""
    for record in table.to_pylist():
        turns = record["messages"]
        yield Row(
            shape=record["shape"],
            text=record["text"],
            messages=None if turns is None else tuple((turn["role"], turn["content"]) for turn in turns),
            prompt=record["prompt"],
            chosen=record["chosen"],
            rejected=record["rejected"],
            choices=None if record["choices"] is None else tuple(record["choices"]),
            group=record["group"],
        )


def gather_shingles(found: Candidates, by_block: Mapping[int, tuple[U64, I64]]) -> tuple[U64, I64]:
    """Shingles that were made block by block, in the order of `found.compared`."""
    rows = found.documents[found.compared]
    block = found.table["block"].to_numpy()[rows]
    pieces: list[U64] = [np.zeros(0, np.uint64)] * len(rows)
    for number, (shingles_S, offsets_D1) in by_block.items():
        for document, place in enumerate(np.flatnonzero(block == number)):
            pieces[place] = shingles_S[offsets_D1[document] : offsets_D1[document + 1]]
    offsets = np.concatenate(([0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)))
    return np.concatenate([np.zeros(0, np.uint64), *pieces]), offsets.astype(np.int64)


def examples(wanted: Mapping[str, Sequence[Mapping[str, Any]]], blocks: Sequence[pa.Table]) -> dict[str, Any]:
    """Excerpts of the rows that the report shows, and of what they repeat."""

    def look(place: Mapping[str, Any]) -> dict[str, Any]:
        row = blocks[place["block"]].slice(place["at"], 1).select(["id", "source", "row", "excerpt"]).to_pylist()[0]
        return {**row, **{name: value for name, value in place.items() if name not in ("block", "at", "repeats")}}

    return {
        reason: [
            {**look(place), **({"repeats": look(place["repeats"])} if "repeats" in place else {})} for place in places
        ]
        for reason, places in wanted.items()
    }
