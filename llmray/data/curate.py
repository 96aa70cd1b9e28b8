"""Curation on Ray: files in, a dataset snapshot out. This file is the only one of the package that curates with Ray.

Ray Data reads the files and prepares blocks of rows, which stay where they were made. The small columns of all blocks
meet in one task, which names the candidates; their shingles come from the blocks, and the same kind of task settles
every row's fate. Then each output file is put together from the blocks that hold its rows. Every output is in an order
of its own (by id), so cores, block sizes and file order change nothing. Rejected: Ray's shuffle (it would move all text
to compare a few hashes) and an actor that collects (a retried task would tell it twice).
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import ray
from ray.data import DataContext

from llmray import artifact, storage
from llmray.artifact import Artifact
from llmray.data import decide, minhash, outputs
from llmray.data.config import CurateConfig
from llmray.data.decide import Candidates, Fates
from llmray.data.page import render
from llmray.data.prepare import prepare_file
from llmray.data.readers import check_sources
from llmray.data.report import account
from llmray.digest import canonical_json
from llmray.errors import InputError

__all__ = ["CurateConfig", "curate"]

log = logging.getLogger(__name__)

_BATCH_ROWS = 4096
_PROGRESS_EVERY_S = 2.0

Blocks = list[Any]
"""References to work tables in Ray's object store."""


def curate(
    sources: Sequence[str],
    *,
    config: CurateConfig | None = None,
    root_uri: str | None = None,
    output_uri: str | None = None,
    parents: Mapping[str, str] | None = None,
) -> Artifact:
    """Read, judge, deduplicate and publish; Ray must be connected.

    Args:
        sources: URIs, globs or folders of jsonl, jsonl.gz, jsonl.zst and parquet files.
        root_uri: where artifacts live; `<home>/artifacts` by default.
        output_uri: a folder that gets a copy of the snapshot; the artifact is the one under the root.
        parents: role to digest of what the sources were made from.

    Returns:
        The snapshot: `kept/`, `removed/`, `clusters/` (Parquet), `quarantine/` (jsonl), `report.json`, `report.html`.

    Raises:
        NotFoundError: a source that names no file.
        InputError: a format that cannot be read, no row to be had, or no row left.
        ConfigError: an impossible option, or an output folder that holds something else.
    """
    config = config or CurateConfig()
    uris = storage.expand(sources)
    check_sources(uris)
    base, names = storage.names_below(uris)
    blocks = _read(list(zip(uris, names, strict=True)), config)
    quarantine = outputs.quarantine_records(ray.get([_select.remote(block, outputs.QUARANTINE) for block in blocks]))
    found, fates = _decide(blocks, config, quarantine)
    accounts = account(found, fates, quarantine, config)
    report = accounts.report()
    with artifact.draft("dataset", root_uri=root_uri) as draft:
        for name, data in _files(blocks, found, fates, quarantine, config):
            path = draft.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        examples = ray.get(_examples.remote(accounts.examples, *blocks)) if accounts.examples else {}
        (draft.folder / "report.json").write_bytes(orjson.dumps({**report, "examples": examples}, option=_JSON))
        (draft.folder / "report.html").write_text(render(accounts, examples, base), encoding="utf-8")
        made = draft.seal(
            parents=parents,
            config={**_plain(config), "source_root": base},
            report=report,
            outside_digest=("report.json", "report.html"),
        )
    log.info("curate: %s", accounts.summary())
    if output_uri is not None:
        artifact.copy(made, output_uri)
    return made


def _read(files: Sequence[tuple[str, str]], config: CurateConfig) -> Blocks:
    """Prepared blocks of rows, in whatever order they come."""
    with DataContext.current(_quiet(DataContext.get_current())):
        dataset = ray.data.from_items(
            [{"uri": uri, "source": name} for uri, name in files], override_num_blocks=len(files)
        ).map_batches(
            _prepare, batch_size=1, batch_format="pyarrow", fn_kwargs={"config": config}, zero_copy_batch=True
        )
        blocks: Blocks = []
        num_rows, began, spoke = 0, time.monotonic(), time.monotonic()
        for bundle in dataset.iter_internal_ref_bundles():
            blocks.extend(bundle.block_refs)
            num_rows += bundle.num_rows() or 0
            if (now := time.monotonic()) - spoke > _PROGRESS_EVERY_S:
                spoke = now
                log.info("curate: read %s rows, %s rows/s", f"{num_rows:,}", f"{num_rows / (now - began):,.0f}")
    if not num_rows:
        names = ", ".join(uri for uri, _ in files[:3])
        raise InputError(f'the sources hold no rows: {names}; each line must be a JSON object such as {{"text": …}}')
    return blocks


def _quiet(context: DataContext) -> DataContext:
    context = context.copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


def _prepare(batch: pa.Table, config: CurateConfig) -> Iterator[pa.Table]:
    for file in batch.to_pylist():
        yield from prepare_file(file["uri"], file["source"], config, _BATCH_ROWS)


def _decide(blocks: Blocks, config: CurateConfig, quarantine: Sequence[Mapping[str, Any]]) -> tuple[Candidates, Fates]:
    candidates = _candidates.remote(config, *[_small.remote(block) for block in blocks])
    found: Candidates = ray.get(candidates)
    if not found.table.num_rows:
        first = quarantine[0]
        raise InputError(
            f"none of the {len(quarantine):,} records can be read; the first is {first['source']}, row {first['row']}: "
            f"{first['reason']}"
        )
    wanted = _wanted(found)
    parts = [_shingles.remote(blocks[block], at, config) for block, at in wanted.items()]
    fates: Fates = ray.get(_settle.remote(config, candidates, list(wanted), *parts))
    if not fates.kept.any():
        raise InputError(
            f"all {len(fates.kept):,} rows were removed: loosen outliers.rules; the first failed {found.failures[0]}"
        )
    return found, fates


def _wanted(found: Candidates) -> dict[int, np.ndarray[Any, np.dtype[np.int64]]]:
    """Where the compared documents lie: row numbers by block."""
    rows = found.documents[found.compared]
    block, at = found.table["block"].to_numpy()[rows], found.table["at"].to_numpy()[rows]
    return {int(number): at[block == number] for number in np.unique(block)}


def _files(
    blocks: Blocks,
    found: Candidates,
    fates: Fates,
    quarantine: Sequence[Mapping[str, Any]],
    config: CurateConfig,
) -> Iterator[tuple[str, bytes]]:
    """Relative path and bytes of every data file."""
    tasks: dict[str, Any] = {}
    for folder, make, rows in (("kept", outputs.kept, fates.kept), ("removed", outputs.removed, ~fates.kept)):
        for number, part in enumerate(outputs.parts(np.flatnonzero(rows), config.rows_per_part)):
            places = found.table.select(["block", "at"]).take(pa.array(part))
            needed = np.unique(places["block"].to_numpy())
            extra = outputs.fate_columns(part, found, fates) if folder == "removed" else None
            tasks[f"{folder}/part-{number:05d}.parquet"] = _part.remote(
                make, places, extra, config, needed.tolist(), *[blocks[block] for block in needed]
            )
    for name, reference in tasks.items():
        yield name, ray.get(reference)
    yield "clusters/part-00000.parquet", outputs.clusters(found, fates)
    for name in ("quarantined", "lost"):
        yield f"quarantine/{name}.jsonl", outputs.lines(record for record in quarantine if record["status"] == name)


def _remote(function: Callable[..., Any]) -> Any:
    return ray.remote(num_cpus=1)(function)


@_remote
def _select(block: pa.Table, columns: Sequence[str]) -> pa.Table:
    return block.filter(pa.compute.not_equal(block["status"], "row")).select(columns)


@_remote
def _small(block: pa.Table) -> pa.Table:
    numbered = block.append_column("at", pa.array(np.arange(block.num_rows)))
    return numbered.filter(pa.compute.equal(block["status"], "row")).select([*decide.SMALL, "at"])


@_remote
def _candidates(config: CurateConfig, *small: pa.Table) -> Candidates:
    return decide.find_candidates(config, small)


@_remote
def _shingles(block: pa.Table, at: np.ndarray[Any, Any], config: CurateConfig) -> tuple[Any, Any]:
    return minhash.shingle_sets(outputs.near_texts(block, at, config), config.dedup.shingling())


@_remote
def _settle(config: CurateConfig, found: Candidates, order: Sequence[int], *parts: tuple[Any, Any]) -> Fates:
    shingles, offsets = outputs.gather_shingles(found, dict(zip(order, parts, strict=True)))
    return decide.settle(config, found, shingles, offsets)


@_remote
def _part(
    make: Callable[..., bytes],
    places: pa.Table,
    extra: pa.Table | None,
    config: CurateConfig,
    order: Sequence[int],
    *blocks: pa.Table,
) -> bytes:
    return make(outputs.collect(places, dict(zip(order, blocks, strict=True))), extra, config)


@_remote
def _examples(wanted: Mapping[str, Any], *blocks: pa.Table) -> dict[str, Any]:
    return outputs.examples(wanted, blocks)


def _plain(config: CurateConfig) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(canonical_json(config))
    return plain


_JSON = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
