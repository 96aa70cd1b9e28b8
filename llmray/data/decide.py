"""From the small table (ids, keys, buckets, failed rules) to a fate for every row. Pure; text never comes here.

Rows are first put in an order of their own, by id, source and row number, so that nothing depends on which block came
first. Then: rules, exact repeats, candidates. The shingles of the candidates are fetched from where the text lies, and
`settle` verifies and decides. A row costs some
hundred bytes here, so one task decides up to tens of millions of them; that seam is `find_candidates` and `settle`.
Rejected: Ray's shuffle, which costs more than all of this below that size, and moves the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray.data import near
from llmray.data.components import Resolution, resolve
from llmray.data.config import CurateConfig
from llmray.data.exact import first_of_each
from llmray.data.minhash import I64, U64
from llmray.data.rules import Failure, failure, robust_limits

SMALL = ("id", "source", "row", "shape", "kind", "length", "exact", "bands", "failed")
"""Columns of the work table that decide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """All rows in their own order, what is decided already, and whose shingles must be compared."""

    table: pa.Table
    """The small table without bands, and `block` and `at`, where each row lies; sorted [R]."""
    failures: list[list[Failure]]
    """Rules that each row failed [R]."""
    limits: dict[str, tuple[float, float]]
    """Lengths that count as usual, learned for each kind."""
    copy_of: I64
    """The row of which each is an exact copy: its own number where it is none, or has failed a rule [R]."""
    documents: I64
    """Rows that take part in the search for near repeats, by rank: the number of a document is its place here [D]."""
    buckets: near.Buckets
    """Documents that met in a bucket."""
    compared: I64
    """Documents that are in some bucket, sorted: their shingles are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fates:
    """What becomes of each row [R], in the order of `Candidates.table`."""

    kept: NDArray[np.bool_]
    match: NDArray[np.str_]
    """`exact`, `near`, or empty for a row that repeats nothing."""
    matched: I64
    """The kept row that each repeats; its own number where it repeats nothing."""
    similarity: NDArray[np.float64]
    cluster: I64
    """The best row of its cluster; its own number for a row without repeats, -1 for one that failed a rule."""
    num_candidates: int
    num_skipped: int


def find_candidates(config: CurateConfig, blocks: Sequence[pa.Table]) -> Candidates:
    """Judge rows by what is known of each, and find the pairs that must be looked at.

    Args:
        blocks: the `SMALL` columns of every block of rows; `block` and `at` name their places.
    """
    table = _in_order(blocks)
    failures, limits = _failures(table, config)
    rank = _rank(table, config)
    num_rows = table.num_rows
    alive = np.array([not failed for failed in failures], bool)
    copy_of = np.arange(num_rows)
    if config.dedup.exact:
        living = np.flatnonzero(alive)
        keys = _fixed_bytes(table["exact"])[living]
        copy_of[living] = living[first_of_each(keys, np.argsort(np.argsort(rank[living])))]
    original = alive & (copy_of == np.arange(num_rows))
    has_bands = np.asarray(table["bands"].combine_chunks().is_valid())
    documents = np.flatnonzero(original & has_bands)
    documents = documents[np.argsort(rank[documents])]
    bands = table["bands"].combine_chunks().take(pa.array(documents))
    num_bands = config.dedup.banding().num_bands
    bands_DN = bands.flatten().to_numpy().reshape(len(documents), num_bands)
    _, kind = np.unique(np.asarray(table["kind"].to_pylist(), dtype=str)[documents], return_inverse=True)
    buckets = near.candidates(bands_DN, kind)
    return Candidates(
        table=table.drop_columns(["bands", "exact", "failed"]),
        failures=failures,
        limits=limits,
        copy_of=copy_of,
        documents=documents,
        buckets=buckets,
        compared=buckets.documents(),
    )


def settle(config: CurateConfig, found: Candidates, shingles_S: U64, offsets_C1: I64) -> Fates:
    """Verify the candidates and decide every row.

    Args:
        shingles_S: shingles of the compared documents, one after another.
        offsets_C1: where each begins, in the order of `found.compared`.
    """
    num_rows = found.table.num_rows
    alive = np.array([not failed for failed in found.failures], bool)
    matched, similarity = found.copy_of.copy(), np.ones(num_rows)
    cluster = np.where(alive, np.arange(num_rows), -1)
    resolution, edges = _resolve(config, found, shingles_S, offsets_C1)
    rows = found.documents[found.compared]
    matched[rows] = rows[resolution.kept_for]
    similarity[rows] = resolution.similarity
    cluster[rows] = rows[resolution.cluster]
    # A copy follows its original: its words are the same, so it repeats the same kept row, just as closely.
    copies = np.flatnonzero(found.copy_of != np.arange(num_rows))
    originals = found.copy_of[copies]
    similarity[copies], cluster[copies] = similarity[originals], cluster[originals]
    match = np.where(matched == np.arange(num_rows), "", "near").astype("<U5")
    match[copies] = np.where(matched[originals] == originals, "exact", "near")
    matched[copies] = matched[originals]
    return Fates(
        kept=alive & (match == ""),
        match=match,
        matched=matched,
        similarity=similarity,
        cluster=cluster,
        num_candidates=edges.num_candidates,
        num_skipped=edges.num_skipped,
    )


def _resolve(
    config: CurateConfig, found: Candidates, shingles_S: U64, offsets_C1: I64
) -> tuple[Resolution, near.Edges]:
    number = np.full(len(found.documents), -1, np.int64)
    number[found.compared] = np.arange(len(found.compared))
    documents = near.Shingled(shingles_S, offsets_C1)
    edges = near.verify(found.buckets.renumbered(number), documents, config.dedup.threshold)
    return resolve(len(found.compared), edges, documents, config.dedup.threshold), edges


def _in_order(blocks: Sequence[pa.Table]) -> pa.Table:
    placed = [
        block.append_column("block", pa.array(np.full(block.num_rows, number, np.int64)))
        for number, block in enumerate(blocks)
    ]
    table = pa.concat_tables(placed)
    return table.sort_by([("id", "ascending"), ("source", "ascending"), ("row", "ascending")]).combine_chunks()


def _failures(table: pa.Table, config: CurateConfig) -> tuple[list[list[Failure]], dict[str, tuple[float, float]]]:
    failures = [[Failure(**failed) for failed in row or []] for row in table["failed"].to_pylist()]
    limits: dict[str, tuple[float, float]] = {}
    if "length_outlier" not in config.outliers.rules:
        return failures, limits
    kinds, lengths = np.asarray(table["kind"].to_pylist(), dtype=str), table["length"].to_numpy()
    sound = np.array([not failed for failed in failures], bool)
    for kind in sorted(set(kinds.tolist())):
        # Learned from rows that pass the other rules: a thousand empty rows must not make a usual length unusual.
        low, high = robust_limits(lengths[(kinds == kind) & sound], config.outliers.length_mads)
        limits[kind] = (low, high)
        for row in np.flatnonzero((kinds == kind) & ((lengths < low) | (lengths > high))):
            if (outlier := failure("length_outlier", float(lengths[row]), low, high)) is not None:
                failures[row].append(outlier)
    return failures, limits


def _rank(table: pa.Table, config: CurateConfig) -> I64:
    """A permutation of the rows, best first: longer, from a better source, then by content id and place."""
    sources = table["source"].combine_chunks().dictionary_encode()
    priority = np.array([_priority(source, config) for source in sources.dictionary.to_pylist()], np.int64)
    priority = priority[sources.indices.to_numpy()] if len(priority) else np.zeros(0, np.int64)
    # The table is in order of id, source and row, and the sort is stable: ties fall as they should.
    order = np.lexsort((priority, -table["length"].to_numpy()))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _priority(source: str, config: CurateConfig) -> int:
    matches = (place for place, pattern in enumerate(config.source_priority) if fnmatchcase(source, pattern))
    return next(matches, len(config.source_priority))


def _fixed_bytes(column: pa.ChunkedArray) -> NDArray[np.void]:
    array = column.combine_chunks()
    width = array.type.byte_width
    data = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    return data.view(f"V{width}")
