"""Curation on Ray: files in, a dataset snapshot out. This file and `tasks` are all of the package that curates with Ray.

    chunks -> PREPARE -> [SURVEY -> FIT -> SCORE] -> DECIDE -> VERIFY -> SETTLE -> OUTPUT

Every piece is a function of `stages` on a work folder that all nodes see; this file says which pieces there are and in
which order, and runs them: Ray Data maps `prepare` over the chunks, tasks do the rest. Neither text nor tables go
through the object store or the driver, only the names of pieces; so memory is that of a chunk a core, a killed worker's
piece is made again elsewhere, and a run that was stopped goes on with what is not done. Rejected: Ray's shuffle (it would
move all text to compare a few hashes), and an actor that collects (a retried task would tell it twice).
"""

import logging
import os
import pickle
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import ray
from ray.data import DataContext
from ray.exceptions import RayError

from llmray import artifact, storage
from llmray.artifact import Artifact
from llmray.data import looks, stages
from llmray.data.config import CurateConfig
from llmray.data.index import SETTINGS, open_index, settings_bytes
from llmray.data.limits import corpus_measures
from llmray.data.outputs import bad_records, num_parts
from llmray.data.places import Places, chunk_name, locate
from llmray.data.prepare import judges_of
from llmray.data.progress import Progress, rows_in_hand
from llmray.data.readers import CHUNK_BYTES, Chunk, check_sources, chunks, expand
from llmray.data.stages import Job
from llmray.data.tasks import Call, finished, in_our_words, run_all
from llmray.data.work import Work, locked, other_files, work_key
from llmray.digest import canonical_json
from llmray.errors import ConfigError, InputError, LLMRayError, UserError

__all__ = ["CurateConfig", "curate"]

log = logging.getLogger(__name__)

CHUNKS_ALONE = 128
"""Chunks up to which tasks of our own prepare them: a stream of Ray Data takes 2 to 5 s to set up and to drain, a tenth
of what 4 GiB take on two cores; measured in docs/design/curation.md."""
_LEAST_CHUNK_BYTES = 1 << 20
NAMES_ALONE = 2_000_000
"""Bucket names up to which one task is as fast as several; measured in docs/design/curation.md."""
NAMES_AT_MOST = 20_000_000
"""Bucket names that a task may have to sort, in some 65 bytes each."""


def curate(
    sources: Sequence[str],
    *,
    config: CurateConfig | None = None,
    root_uri: str | None = None,
    output_uri: str | None = None,
    parents: Mapping[str, str] | None = None,
    against: str | None = None,
    work_uri: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Artifact:
    """Read, judge, deduplicate and publish; Ray must be connected.

    Args:
        sources: URIs, globs or folders of files that `llmray.data.readers` reads.
        root_uri: where artifacts live; `<home>/artifacts` by default.
        output_uri: a folder that gets a copy of the snapshot; the artifact is the one under the root.
        parents: role to digest of what the sources were made from.
        against: URI of a snapshot that is added to: all its rows stay, and new rows that repeat one go.
        work_uri: a folder that every node sees, for work in hand; `<home>/work` by default. A run that was stopped goes
            on from what is there; it is emptied when the snapshot is published.
        chunk_bytes: how much of a file is a piece of work at most; changes nothing of what comes out.

    Returns:
        The snapshot: `kept/`, `removed/`, `clusters/` (Parquet), `quarantine/` (jsonl), `index/`, `report.json`,
        `report.html`.

    Raises:
        NotFoundError: a source that names no file.
        InputError: a format that cannot be read, no row to be had, or no row left.
        ConfigError: an impossible option, an output folder that holds something else, or a snapshot to add to that was
            made with other settings.
    """
    config = config or CurateConfig()
    judges_of(config)
    corpus_measures(config)
    uris = expand(sources)
    check_sources(uris, config.reading)
    base, names = storage.names_below(uris)
    onto = None if against is None else artifact.load(against)
    if onto is not None:
        if config.second_look:
            raise ConfigError(
                f"second_look ({', '.join(config.second_look)}) learns from all of the data, which an addition is not: "
                "leave it out, or curate old and new together"
            )
        open_index(onto.local(), config)
    stamps = [(name, uri, storage.stamp(uri)) for uri, name in zip(uris, names, strict=True)]
    stamps += [("", uri, storage.stamp(uri)) for uri in other_files(config)]
    pieces = _cut(uris, names, config, chunk_bytes)
    key = work_key(config, stamps, onto=onto and onto.digest, chunks=[(piece.start, piece.end) for piece in pieces])
    work = Work(uri=storage.join(work_uri or storage.join(storage.home(), "work"), key))
    with locked(work.uri):
        try:
            job = _prepare(pieces, config, work, base, onto)
            _check_rows(job.places, uris)
            _second_looks(job)
            _decide(job)
            settled = _settle(job)
            made = _publish(job, settled, root_uri, parents, onto)
        except (LLMRayError, RayError) as error:
            ours = in_our_words(error)
            if isinstance(ours, UserError):
                work.remove()  # Started again, it would end the same way.
            if ours is None or ours is error:
                raise
            raise ours from error
        work.remove()
    log.info("curate: %s", settled["summary"])
    if output_uri is not None:
        artifact.copy(made, output_uri)
    return made


def _cut(uris: Sequence[str], names: Sequence[str], config: CurateConfig, chunk_bytes: int) -> list[Chunk]:
    """The chunks of all files; smaller ones where there would be fewer than two for each core."""

    def cut(most: int) -> list[Chunk]:
        files = zip(uris, names, strict=True)
        return [piece for uri, name in files for piece in chunks(uri, name, reading=config.reading, chunk_bytes=most)]

    pieces = cut(chunk_bytes)
    wanted = 2 * int(ray.cluster_resources().get("CPU", 1))
    if len(pieces) >= wanted:
        return pieces
    share = sum(piece.num_bytes or 0 for piece in pieces) // wanted
    return cut(min(chunk_bytes, max(_LEAST_CHUNK_BYTES, share)))


def _prepare(pieces: Sequence[Chunk], config: CurateConfig, work: Work, base: str, onto: Artifact | None) -> Job:
    """Make the files of all chunks, in whatever order."""
    if work.counts is not None:
        shutil.rmtree(work.counts, ignore_errors=True)  # of workers that were killed
    waiting = [number for number in range(len(pieces)) if not work.has(chunk_name(number))]
    if len(waiting) < len(pieces):
        log.info("curate: %d of %d chunks are prepared already", len(pieces) - len(waiting), len(pieces))
    if config.boilerplate.action != "off":
        _count_lines(pieces, config, work)
    began = time.monotonic()
    # A store may not say how large a file is: then each counts the same.
    sizes = {number: pieces[number].num_bytes or 1 for number in waiting}
    progress = Progress("prepare", sum(sizes.values()), in_hand=lambda: rows_in_hand(work.counts))
    with progress.ticking(), closing(_prepared(pieces, waiting, config, work)) as prepared:
        for number, rows in prepared:
            progress.add(sizes[number], rows)
    log.debug("curate: prepare took %.1f s", time.monotonic() - began)
    facts = [work.facts(chunk_name(number)) for number in range(len(pieces))]
    places = locate(work, pieces, facts)
    return Job(
        config=config,
        work=work,
        places=places,
        base=base,
        entries=sum(fact["entries"] for fact in facts),
        onto=None if onto is None else (onto.uri, onto.digest),
    )


def _count_lines(pieces: Sequence[Chunk], config: CurateConfig, work: Work) -> None:
    """A look at all texts before rows are made of them."""
    if work.has("repeated"):
        return
    calls = [(looks.lines, (config, work, number, piece)) for number, piece in enumerate(pieces)]
    run_all("lines", work, None, calls, rows=lambda _, texts: int(texts))
    looks.repeated(config, work, len(pieces))


def _prepared(
    pieces: Sequence[Chunk], waiting: Sequence[int], config: CurateConfig, work: Work
) -> Generator[tuple[int, int], None, None]:
    """Numbers of the chunks that waited, as they are done, and their rows. Closed early, it leaves nothing running."""
    if len(waiting) <= CHUNKS_ALONE:
        calls = [(stages.chunk, (config, work, number, pieces[number])) for number in waiting]
        with closing(finished(None, calls)) as ended:
            for at, facts in ended:
                yield waiting[at], facts["rows"]
        return
    items = [{"number": number, "chunk": pieces[number]} for number in waiting]
    with DataContext.current(_quiet(DataContext.get_current())):
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _prepare_chunk, fn_kwargs={"config": config, "work": work}
        )
        # Closed, not left to the garbage collector: Ray Data then ends its tasks, and waits until they have ended.
        with closing(iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))) as batches:
            for batch in batches:
                for done in batch.to_pylist():
                    if done["error"]:
                        raise pickle.loads(done["error"])  # noqa: S301 (by `_prepare_chunk`)
                    yield done["number"], done["rows"]


def _prepare_chunk(item: Mapping[str, Any], config: CurateConfig, work: Work) -> dict[str, Any]:
    """A chunk as Ray Data's row; what is to be told the user is a value, since Ray Data loses the cause of an error."""
    try:
        facts = stages.chunk(config, work, item["number"], item["chunk"])
    except LLMRayError as error:
        return {"number": item["number"], "rows": 0, "error": pickle.dumps(error)}
    return {"number": item["number"], "rows": facts["rows"], "error": b""}


def _quiet(context: DataContext) -> DataContext:
    context = context.copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


def _check_rows(places: Places, uris: Sequence[str]) -> None:
    if places.num_rows:
        return
    first = next(bad_records(places), None)
    if first is None:
        raise InputError(
            f'the sources hold no rows: {", ".join(uris[:3])}; each line must be a JSON object such as {{"text": …}}'
        )
    raise InputError(
        f"none of the {int(places.bad_C.sum()):,} records can be read; the first is {first['source']}, row "
        f"{first['row']}: {first['reason']}"
    )


def _second_looks(job: Job) -> None:
    measures = range(len(corpus_measures(job.config)))
    each = [(measure, number) for measure in measures for number in range(job.places.num_chunks)]
    held = np.diff(job.places.bases_C1).tolist()
    if measures:
        _run("surveyed", looks.surveyed, job, [()])
        _run("survey", looks.survey, job, each, rows=lambda at, _: held[each[at][1]])
        _run("fit", looks.fit, job, [(measure,) for measure in measures])
        _run("score", looks.score, job, each, rows=lambda at, _: held[each[at][1]])


def _decide(job: Job) -> None:
    """From small tables to what became of every document that met another."""
    shards = num_shards(job.entries, int(ray.cluster_resources().get("CPU", 1)))
    if shards == 1:
        batches = _run("decide", stages.decide_at_once, job, [()])[0]
    else:
        _run("judge", stages.judge, job, [()])
        _run("match", stages.shard, job, [(number, shards) for number in range(shards)])
        batches = _run("join", stages.join, job, [(shards,)])[0]
    _run("verify", stages.verify, job, [(number,) for number in range(batches)], rows=lambda _, compared: int(compared))
    if job.config.semantic.embedding is not None:
        _run("survivors", looks.survivors, job, [()])
        chunks_of = [(number,) for number in range(job.places.num_chunks)]
        _run("vectors", looks.vectors, job, chunks_of, rows=lambda _, embedded: int(embedded))
        _run("meanings", looks.meanings, job, [()])


def num_shards(names: int, cores: int) -> int:
    """Tasks that share the bucket names: one while that is fastest, then some a core, or as many as memory asks for."""
    if names <= NAMES_ALONE:
        return 1
    return max(-(-names // NAMES_AT_MOST), min(-(-names // NAMES_ALONE), 4 * cores))


def _settle(job: Job) -> dict[str, Any]:
    settled: dict[str, Any] = _run("settle", stages.settle, job, [()])[0]
    if not settled["kept"] and job.onto is None:
        rules = ", ".join(f"{count:,} by {rule}" for rule, count in settled["report"]["rules"].items())
        raise InputError(f"all {settled['removed']:,} rows were removed: loosen outliers.rules ({rules})")
    return settled


def _publish(
    job: Job,
    settled: Mapping[str, Any],
    root_uri: str | None,
    parents: Mapping[str, str] | None,
    onto: Artifact | None,
) -> Artifact:
    """Write what is published, piece by piece, and seal it."""
    per_part, work = job.config.rows_per_part, job.work
    kept = 0 if onto is not None and not settled["kept"] else num_parts(settled["kept"], per_part)
    removed = num_parts(settled["removed"], per_part)
    shards = stages.index_shards(job, settled["kept"]) if kept else 0
    calls: list[Call] = [
        *((stages.index_shard, (number, shards)) for number in range(shards)),
        *((stages.kept, (part,)) for part in range(kept)),
        *((stages.removed, (part,)) for part in range(removed)),
        (stages.clusters, ()),
    ]
    run_all("write", work, job, calls, rows=lambda _, written: int(written or 0))
    with artifact.draft("dataset", root_uri=root_uri) as draft:
        files = _Files(draft.folder)
        first = generation = 0
        if onto is not None:
            first, generation = files.take_over(onto)
        for part in range(kept):
            files.take(work, f"kept/{part:05d}", {"part.parquet": f"kept/part-{first + part:05d}.parquet"})
        for part in range(removed):
            files.take(work, f"removed/{part:05d}", {"part.parquet": f"removed/part-{part:05d}.parquet"})
        files.take(work, "clusters", {"part.parquet": "clusters/part-00000.parquet"})
        for shard in range(shards):
            name = f"index/{shard:05d}"
            files.take(work, name, {file: f"index/{generation:05d}/{file}" for file in work.facts(name)})
        if onto is None:
            (draft.folder / "index" / SETTINGS).write_bytes(settings_bytes(job.config, stages.limits(job)))
        quarantine = {f"{name}.jsonl": f"quarantine/{name}.jsonl" for name in ("quarantined", "lost")}
        files.take(work, "fates", {**quarantine, "report.json": "report.json", "report.html": "report.html"})
        return draft.seal(
            parents={**(parents or {}), **({} if onto is None else {"against": onto.digest})},
            config={**_plain(job.config), "source_root": job.base},
            report=settled["report"],
            outside_digest=("report.json", "report.html"),
            known=files.known,
        )


class _Files:
    """A snapshot's folder being filled with links where that can be, else copies; digests that are known are kept."""

    def __init__(self, folder: Path) -> None:
        self.known: dict[str, str] = {}
        self._folder = folder

    def take(self, work: Work, piece: str, names: Mapping[str, str]) -> None:
        """Files of a piece, under their names in the snapshot."""
        facts, folder = work.facts(piece), work.path(piece)
        for file, name in names.items():
            self._link(folder / file, name)
            digest = facts.get(file) or (facts.get("sha256") if file == "part.parquet" else None)
            if digest is not None:
                self.known[name] = digest

    def take_over(self, onto: Artifact) -> tuple[int, int]:
        """The rows and index of another snapshot; returns how many parts and generations it has."""
        folder = onto.local()
        for name, digest in artifact.digests(onto).items():
            if name.startswith(("kept/", "index/")):
                self._link(folder / name, name)
                self.known[name] = digest
        parts = [name for name in self.known if name.startswith("kept/")]
        return len(parts), len({name.split("/")[1] for name in self.known if name.count("/") == 2})

    def _link(self, source: Path, name: str) -> None:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another disk
            shutil.copyfile(source, target)


def _run(
    stage: str,
    function: Callable[..., Any],
    job: Job,
    calls: Sequence[tuple[int, ...]],
    rows: Callable[[int, Any], int] = lambda _number, _result: 0,
) -> list[Any]:
    """Call a function of `stages` for each tuple of arguments, as Ray tasks; results in order of the calls."""
    return run_all(stage, job.work, job, [(function, call) for call in calls], rows=rows)


def _plain(config: CurateConfig) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(canonical_json(config))
    return plain
