"""Looks at the text beyond the first: lines that many texts share, measures of the whole corpus, and what rows mean.

Pieces of the work folder like those of `stages`, for what not every curation asks for.

    lines/<n>       before anything else: which texts of a chunk each line stands in (`boilerplate`)
    repeated        the lines that are boilerplate
    surveyed        how many different rows pass the fixed rules
    survey/<m>/<n>  what the rows of a chunk have to say to a measure (`corpus`)
    fit/<m>         what it learned from all
    score/<m>/<n>   what it says of each row
    survivors       rows that near repeats left, best first
    vectors/<n>     their embeddings
    meanings        which of them mean the same (`semantic`)
"""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmray.data import boilerplate, decide, embedding
from llmray.data.boilerplate import Counts
from llmray.data.buckets import between, shard_bounds
from llmray.data.components import resolve
from llmray.data.config import CurateConfig
from llmray.data.decide import KEPT
from llmray.data.exact import halves
from llmray.data.limits import corpus_measures
from llmray.data.places import COMPARED, chunk_name, near_texts
from llmray.data.progress import counting
from llmray.data.readers import Chunk, Found, read_chunk
from llmray.data.semantic import Embedded, semantic_pairs
from llmray.data.stages import Job, near_verdicts, save
from llmray.data.tables import array, mapped
from llmray.data.verify import Verdicts
from llmray.data.work import Work

PAIRS_AT_ONCE = 10_000_000
"""Lines, with a text that each stands in, that are put together at once: about half a GB."""
_EMBEDDED_AT_ONCE = 256


def lines(config: CurateConfig, work: Work, number: int, what: Chunk) -> int:
    """Count the lines of a chunk's texts; returns how many texts there are."""
    name = f"lines/{number:06d}"
    if not work.has(name):
        _lines(config, work, name, what)
    return int(work.facts(name)["texts"])


def _lines(config: CurateConfig, work: Work, name: str, what: Chunk) -> None:
    num_texts = 0

    def texts() -> Iterator[str]:
        nonlocal num_texts
        for one in read_chunk(what, config.reading):
            if isinstance(one, Found) and one.row.text is not None:
                yield one.row.text
                num_texts += 1
                told(num_texts)

    with counting(work.counts, name) as told:
        counted = boilerplate.count(texts(), config.boilerplate, config.dedup.normalization)
    with work.piece(name) as piece:
        np.save(piece.folder / "keys.npy", counted.keys)
        np.save(piece.folder / "texts.npy", counted.texts)
        piece.finish(texts=num_texts)


def repeated(config: CurateConfig, work: Work, num_chunks: int) -> None:
    """The lines that enough texts have: range by range of their names, so that memory stays bounded."""
    if work.has("repeated"):
        return
    folders = [work.path(f"lines/{number:06d}") for number in range(num_chunks)]
    shards = max(1, -(-sum(len(array(folder / "keys.npy")) for folder in folders) // PAIRS_AT_ONCE))
    keys = [np.zeros(0, np.uint64)]
    for shard in range(shards):
        counts = [_lines_between(folder, *shard_bounds(shard, shards)) for folder in folders]
        keys.append(boilerplate.repeated(boilerplate.merge(counts, config.boilerplate), config.boilerplate))
    with work.piece("repeated") as piece:
        np.save(piece.folder / "keys.npy", np.concatenate(keys))
        piece.finish()


def surveyed(job: Job) -> int:
    """How many different rows pass the fixed rules: those that measures of the whole corpus learn from."""
    if not job.work.has("surveyed"):
        sound = np.ones(job.places.num_rows, bool)
        sound[decide.read_failed(job.places)["row"].to_numpy()] = False
        # Half an id: that two different rows share one is rare, and the number may be one off.
        high, _ = halves(job.places.small(["id"])["id"][sound])
        with job.work.piece("surveyed") as piece:
            piece.finish(rows=len(np.unique(high)))
    return int(job.work.facts("surveyed")["rows"])


def survey(job: Job, measure: int, number: int) -> None:
    """What the rows of a chunk that pass the fixed rules have to say to a measure."""
    name = f"survey/{measure}/{number:06d}"
    if job.work.has(name):
        return
    look = corpus_measures(job.config)[measure]
    folder = job.work.path(chunk_name(number))
    failed = mapped(folder / "failed.arrow")["row"].to_numpy()
    surveys, total = [], surveyed(job)
    with counting(job.work.counts, name) as told:
        for low, table in pieces_of(folder):
            told(low)
            sound = np.ones(table.num_rows, bool)
            sound[failed[(failed >= low) & (failed < low + table.num_rows)] - low] = False
            rows = table.filter(pa.array(sound))
            texts, ids = near_texts(rows, job.config).to_pylist(), rows["id"].to_pylist()
            surveys.append(look.survey(texts, ids, total=total))
    with job.work.piece(name) as piece:
        (piece.folder / "surveys.pickle").write_bytes(pickle.dumps([look.merge(surveys)] if surveys else []))
        piece.finish()


def fit(job: Job, measure: int) -> None:
    """What a measure learns from all surveys."""
    name = f"fit/{measure}"
    if job.work.has(name):
        return
    surveys = []
    for number in range(job.places.num_chunks):
        path = job.work.path(f"survey/{measure}/{number:06d}") / "surveys.pickle"
        surveys += pickle.loads(path.read_bytes())  # noqa: S301 (by `survey`)
    with job.work.piece(name) as piece:
        model = corpus_measures(job.config)[measure].fit(surveys)
        (piece.folder / "model.pickle").write_bytes(pickle.dumps(model))
        piece.finish()


def score(job: Job, measure: int, number: int) -> None:
    """The value of every row of a chunk."""
    name = f"score/{measure}/{number:06d}"
    if job.work.has(name):
        return
    model = pickle.loads((job.work.path(f"fit/{measure}") / "model.pickle").read_bytes())  # noqa: S301 (by `fit`)
    look = corpus_measures(job.config)[measure]
    values = []
    with counting(job.work.counts, name) as told:
        for low, table in pieces_of(job.work.path(chunk_name(number))):
            told(low)
            texts, ids = near_texts(table, job.config).to_pylist(), table["id"].to_pylist()
            values.append(np.asarray(look.score(texts, ids, model), np.float64))
    with job.work.piece(name) as piece:
        np.save(piece.folder / "values.npy", np.concatenate([np.zeros(0), *values]))
        piece.finish()


def survivors(job: Job) -> None:
    """The rows that near repeats left, best first."""
    if job.work.has("survivors"):
        return
    judged, verdicts, _ = near_verdicts(job)
    rows = np.flatnonzero(decide.settle(judged, verdicts).fate_R == KEPT)
    with job.work.piece("survivors") as piece:
        np.save(piece.folder / "rows.npy", rows[np.argsort(judged.rank_R[rows])])
        piece.finish()


def vectors(job: Job, number: int) -> int:
    """Embeddings of the survivors of a chunk, in order of their numbers; zeros where there is nothing to compare.

    Returns how many there are.
    """
    name = f"vectors/{number:06d}"
    if not job.work.has(name):
        _vectors(job, number, name)
    return int(job.work.facts(name)["rows"])


def _vectors(job: Job, number: int, name: str) -> None:
    assert job.config.semantic.embedding is not None
    survivors_S = np.sort(array(job.work.path("survivors") / "rows.npy"))
    low, high = np.searchsorted(survivors_S, job.places.bases_C1[number : number + 2])
    rows = survivors_S[low:high]
    texts = job.places.compared_texts(rows, job.config).to_pylist() if len(rows) else []
    embedder = embedding.load(job.config.semantic.embedding)
    made = []
    with counting(job.work.counts, name) as told:
        for begin in range(0, max(1, len(texts)), _EMBEDDED_AT_ONCE):
            told(begin)
            made.append(embedding.embed(embedder, texts[begin : begin + _EMBEDDED_AT_ONCE]).astype(np.int16))
    made_ND = np.concatenate(made)
    made_ND[[not text.strip() for text in texts]] = 0
    with job.work.piece(name) as piece:
        np.save(piece.folder / "vectors.npy", made_ND)
        piece.finish(rows=len(rows))


def meanings(job: Job) -> None:
    """Which survivors mean the same as a better one; kinds are never compared."""
    if job.work.has("meanings"):
        return
    wanted = job.config.semantic
    by_rank = np.asarray(array(job.work.path("survivors") / "rows.npy"))
    folders = (job.work.path(f"vectors/{number:06d}") for number in range(job.places.num_chunks))
    found = [some for folder in folders if len(some := np.load(folder / "vectors.npy"))]
    vectors_ND = np.concatenate(found)[np.argsort(np.argsort(by_rank))] if found else np.zeros((0, 1), np.int16)
    kind_S = array(job.work.path("judged") / "kind_R.npy")[by_rank]
    kept_for, similarity, cluster = by_rank.copy(), np.ones(len(by_rank)), by_rank.copy()
    for kind in np.unique(kind_S):
        mine = np.flatnonzero(kind_S == kind)
        mine_ND = np.ascontiguousarray(vectors_ND[mine])
        edges = semantic_pairs(mine_ND, wanted.threshold, probes=wanted.probes, seed=job.config.seed)
        made = resolve(len(mine), edges, Embedded(mine_ND), wanted.threshold)
        kept_for[mine], cluster[mine] = by_rank[mine[made.kept_for]], by_rank[mine[made.cluster]]
        similarity[mine] = made.similarity
    with job.work.piece("meanings") as piece:
        verdicts = Verdicts(
            rows_C=by_rank,
            kept_for_C=kept_for,
            similarity_C=similarity,
            cluster_C=cluster,
            num_candidates=0,
            num_skipped=0,
        )
        save(piece.folder, verdicts)
        piece.finish()


def _lines_between(folder: Path, low: int, high: int) -> Counts:
    """A chunk's lines of a range of names, copied: a mapped file would stay open."""
    keys, texts = array(folder / "keys.npy"), array(folder / "texts.npy")
    inside = between(keys, low, high)
    return Counts(np.array(keys[inside]), np.array(texts[inside]))


def pieces_of(folder: Path) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a chunk, some at a time, with the number of the first."""
    file = pa.ipc.open_file(pa.memory_map(str(folder / "content.arrow")))
    base = 0
    for number in range(file.num_record_batches):
        table = pa.Table.from_batches([file.get_batch(number)]).select(["id", *COMPARED])
        yield base, table
        base += table.num_rows
