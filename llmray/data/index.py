"""A snapshot's index: what later curations need to know of its kept rows without reading their text.

    index/<generation>/exact-<shard>.npy        exact keys as two numbers [K, 2], sorted
    index/<generation>/exact-rows-<shard>.npy   whose they are
    index/<generation>/bands-<shard>.npy        bucket names [E], sorted
    index/<generation>/bands-rows-<shard>.npy   whose they are
    index/<generation>/ids.npy                  content ids [K, 32]
    index/<generation>/segment.json             first row and part, number of rows, of rows in a part, and of shards
    index/settings.json                         what the names were made with, the learned limits, and how they were learned

Rows are numbered through all generations, in the snapshot's own order. A shard is a range of names, so that one task
makes it. Curating against a snapshot adds a generation and leaves the older ones as they are. Everything is looked up
by binary search in mapped files: what is not looked at is not read. Rejected: a key-value store (a dependency, and
bytes that depend on the order of insertion), and merging generations (it would rewrite the old ones each time).
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from llmray.data.buckets import shard_bounds
from llmray.data.config import CurateConfig
from llmray.data.limits import Limits, axes
from llmray.data.places import near_texts
from llmray.data.tables import KINDS, array
from llmray.digest import canonical_json
from llmray.errors import ConfigError, InputError

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

SETTINGS = "settings.json"
SHARD_ENTRIES = 50_000_000
"""Bucket names in a shard, about."""


@dataclass(frozen=True, kw_only=True)
class OldRows:
    """The kept rows of a snapshot that is added to."""

    folder: Path
    """The snapshot."""

    @cached_property
    def segments(self) -> list[tuple[Path, dict[str, int]]]:
        """Folder and facts of each generation."""
        folders = sorted(path for path in (self.folder / "index").iterdir() if path.is_dir())
        return [(path, json.loads((path / "segment.json").read_bytes())) for path in folders]

    @property
    def num_rows(self) -> int:
        return sum(facts["rows"] for _, facts in self.segments)

    @property
    def num_parts(self) -> int:
        return len(self._parts)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the index was made with."""
        found: dict[str, Any] = json.loads((self.folder / "index" / SETTINGS).read_bytes())
        return found

    @property
    def limits(self) -> Limits:
        """Learned limits of the first generation."""
        return {
            rule: {kind: (_number(low, -np.inf), _number(high, np.inf)) for kind, (low, high) in kinds.items()}
            for rule, kinds in self.settings["limits"].items()
        }

    def exact(self) -> Iterator[tuple[U64, U64, NDArray[np.uint32]]]:
        """Exact keys, shard by shard."""
        for folder, facts in self.segments:
            for shard in range(facts["shards"]):
                keys = array(folder / f"exact-{shard:05d}.npy")
                yield keys[0], keys[1], array(folder / f"exact-rows-{shard:05d}.npy")

    def bands(self) -> Iterator[tuple[U64, NDArray[np.uint32]]]:
        """Bucket names, shard by shard."""
        for folder, facts in self.segments:
            for shard in range(facts["shards"]):
                names = array(folder / f"bands-{shard:05d}.npy")
                yield names, array(folder / f"bands-rows-{shard:05d}.npy")

    def ids(self, rows: I64) -> NDArray[np.uint8]:
        """Ids of some rows, in any order [n, 32]."""
        found = np.zeros((len(rows), 32), np.uint8)
        for folder, facts in self.segments:
            here = np.flatnonzero((rows >= facts["first_row"]) & (rows < facts["first_row"] + facts["rows"]))
            if len(here):
                found[here] = array(folder / "ids.npy")[rows[here] - facts["first_row"]]
        return found

    def read(self, rows: I64, columns: Sequence[str]) -> pa.Table:
        """Columns of some rows, in ascending order: only the row groups that hold them are read."""
        taken = []
        for path, base, size in self._parts:
            low, high = np.searchsorted(rows, base), np.searchsorted(rows, base + size)
            if low == high:
                continue
            mine = rows[low:high] - base
            with parquet.ParquetFile(path, memory_map=True) as file:
                held = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                groups = np.concatenate(([0], np.cumsum(held)))
                group = np.searchsorted(groups, mine, side="right") - 1
                needed, which = np.unique(group, return_inverse=True)
                sizes = np.diff(groups)[needed]
                place = (np.cumsum(sizes) - sizes)[which] + mine - groups[group]
                table = file.read_row_groups(needed.tolist(), columns=list(columns), use_threads=False)
            taken.append(table.take(pa.array(place)))
        return pa.concat_tables(taken)

    def compared_texts(self, rows: I64, config: CurateConfig) -> pa.Array:
        """What of some rows, in ascending order, is compared for near repeats."""
        if not len(rows):
            return pa.array([], pa.string())
        texts = self.read(rows, ["text"])["text"]
        if not texts.null_count:
            return texts.combine_chunks()
        table = self.read(rows, ["shape", "text", "messages", "prompt", "chosen", "rejected", "choices"])
        shape = [KINDS.index(name) for name in table["shape"].to_pylist()]
        choice = np.asarray(table["choices"].is_valid())
        kinds = np.where(choice, KINDS.index("choice"), shape).astype(np.int8)
        return near_texts(table.append_column("kind", pa.array(kinds)), config)

    @cached_property
    def _parts(self) -> list[tuple[Path, int, int]]:
        """File, first row and number of rows of each part."""
        found = []
        for _, facts in self.segments:
            for part, low in enumerate(range(0, facts["rows"], facts["rows_per_part"]), facts["first_part"]):
                path = self.folder / "kept" / f"part-{part:05d}.parquet"
                found.append((path, facts["first_row"] + low, min(facts["rows_per_part"], facts["rows"] - low)))
        return found


FORMAT = 2
"""Of keys and bucket names: what they are made of, and how. Changed where either changes."""


def settings_of(config: CurateConfig) -> dict[str, Any]:
    """What index entries and learned limits depend on: a snapshot can only be added to with the same."""
    dedup = config.dedup
    plain: dict[str, Any] = json.loads(
        canonical_json(
            {
                "dedup.exact": dedup.exact,
                "dedup.exact_by": dedup.exact_by,
                "dedup.normalization": dedup.normalization,
                "dedup.near": dedup.near,
                "dedup.messages_by": dedup.messages_by,
                "dedup.shingling": dedup.shingling,
                "dedup.num_bands": dedup.banding().num_bands,
                "dedup.rows_per_band": dedup.banding().rows_per_band,
                "statistics.min_rows": config.statistics.min_rows,
                "seed": config.seed,
                "format": FORMAT,
                "Unicode": unicodedata.unidata_version,
            }
        )
    )
    return plain


def settings_bytes(config: CurateConfig, limits: Limits) -> bytes:
    """The file that says what an index was made with."""
    plain = {
        rule: {
            kind: [float(low) if np.isfinite(low) else None, float(high) if np.isfinite(high) else None]
            for kind, (low, high) in kinds.items()
        }
        for rule, kinds in limits.items()
    }
    found = {**settings_of(config), "limits": plain, "axes": _axes(config)}
    return orjson.dumps(found, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)


def open_index(folder: Path, config: CurateConfig) -> OldRows:
    """The rows of a snapshot that is to be added to.

    Raises:
        InputError: the snapshot has no index.
        ConfigError: the index was made with other settings, or its limits were learned in another way.
    """
    if not (folder / "index" / SETTINGS).is_file():
        raise InputError(
            f"{folder} has no index: it was written without curation. Curate it once by itself (sources={folder}/kept), "
            f"and add to what comes of that"
        )
    found = OldRows(folder=folder)
    for name, value in settings_of(config).items():
        if (old := found.settings.get(name)) != value:
            raise ConfigError(
                f"{name} is {_shown(value)}, and the snapshot that is added to was made with {_shown(old)}: set it to "
                f"that, or curate everything anew"
            )
    for name, axis in _axes(config).items():
        # A measure that was not asked for then has no limits yet; they are learned from what is added.
        if (old := found.settings.get("axes", {}).get(name, axis)) != axis:
            differs = next(field for field in axis if old[field] != axis[field])
            raise ConfigError(
                f"statistics: {differs} of the measure {name} is {_shown(axis[differs])}, and the limits of the snapshot "
                f"that is added to, which stay, were learned with {_shown(old[differs])}: set statistics.mads, or the "
                f"measure's own {differs}, to that, or curate everything anew"
            )
    return found


def num_shards(num_entries: int) -> int:
    """Shards of an index segment: by size alone, so that its bytes do not depend on who makes it."""
    return max(1, -(-num_entries // SHARD_ENTRIES))


def write_shard(
    folder: Path,
    shard: int,
    *,
    keys: tuple[U64, U64],
    key_rows: I64,
    names: U64,
    name_rows: I64,
) -> None:
    """The files of one shard, from entries of its range; those of one name must come in the order of their rows."""
    order = np.lexsort((key_rows, keys[1], keys[0]))
    np.save(folder / f"exact-{shard:05d}.npy", np.stack((keys[0][order], keys[1][order])))
    np.save(folder / f"exact-rows-{shard:05d}.npy", key_rows[order].astype(np.uint32))
    order = np.argsort(names, kind="stable")  # chunks come sorted, and this sort merges what is sorted
    np.save(folder / f"bands-{shard:05d}.npy", names[order])
    np.save(folder / f"bands-rows-{shard:05d}.npy", name_rows[order].astype(np.uint32))


def in_shard(names: U64, shard: int, shards: int) -> NDArray[np.bool_]:
    """Which names are in a shard."""
    low, high = shard_bounds(shard, shards)
    return np.asarray((names >= np.uint64(low)) & (names <= np.uint64(high)))


def segment_facts(*, old: OldRows | None, rows: int, rows_per_part: int, shards: int) -> bytes:
    """The file that says what a generation holds, after those of `old`."""
    facts: Mapping[str, int] = {
        "first_row": 0 if old is None else old.num_rows,
        "first_part": 0 if old is None else old.num_parts,
        "rows": rows,
        "rows_per_part": rows_per_part,
        "shards": shards,
    }
    return orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)


def _axes(config: CurateConfig) -> dict[str, dict[str, Any]]:
    """How the limits of each measure are learned, by the names of `Axis`."""
    return {name: asdict(axis) for name, axis in axes(config).items()}


def _number(value: float | None, missing: float) -> float:
    return missing if value is None else value


def _shown(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
