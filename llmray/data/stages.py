"""The pieces of a curation, each a function that makes one piece of the work folder if it is not there. Knows no Ray.

    chunks/<n>      a chunk's files (`prepare`)
    score/<m>/<n>   what a measure of the whole corpus has to say of each row (`looks`)
    judged          rules, limits, rank, exact repeats (`decide.judge`)
    buckets/<s>     who met whom, of a shard of the bucket names (`buckets`)
    batches         the union, dealt out to batches
    verify/<t>      what became of a batch (`verify`)
    fates           what becomes of every row, accounts, quarantine (`decide.settle`, `report`)
    kept/<p>, removed/<p>, clusters, index/<s>
                    what is published (`outputs`)

What a function needs it finds in the folder, so nothing big is handed from task to task; it can be stopped anywhere and
called again on any node. `curate` calls them on Ray; tests call them in a row.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from llmray import storage
from llmray.data import buckets, decide, outputs
from llmray.data.buckets import Batches, Buckets
from llmray.data.config import CurateConfig
from llmray.data.decide import KEPT, Fates, Judged
from llmray.data.index import OldRows, num_shards, segment_facts
from llmray.data.limits import Limits, corpus_measures
from llmray.data.page import render
from llmray.data.places import Places, chunk_name
from llmray.data.prepare import judges_of, prepare_chunk
from llmray.data.progress import counting
from llmray.data.readers import Chunk
from llmray.data.report import Compared, account
from llmray.data.tables import array, mapped, write_table
from llmray.data.verify import Verdicts, verify_batch
from llmray.data.work import Work
from llmray.digest import digest_file


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every piece needs to know."""

    config: CurateConfig
    work: Work
    places: Places
    base: str
    """Folder below which all sources lie."""
    entries: int
    """Bucket names of all chunks."""
    onto: tuple[str, str] | None = None
    """URI and digest of the snapshot that is added to."""

    @cached_property
    def old(self) -> OldRows | None:
        """Its rows."""
        return None if self.onto is None else OldRows(folder=storage.local_copy(self.onto[0]))


def chunk(config: CurateConfig, work: Work, number: int, what: Chunk) -> dict[str, int]:
    """Prepare a chunk; returns how many lines, rows, bad records and bucket names it has."""
    name = chunk_name(number)
    if not work.has(name):
        with work.piece(name) as piece, counting(work.counts, name) as told:
            wanted = config.boilerplate.action != "off"
            repeated = np.load(work.path("repeated") / "keys.npy") if wanted else None
            piece.finish(**prepare_chunk(what, judges_of(config, repeated), piece.folder, told))
    facts: dict[str, int] = work.facts(name)
    return facts


def judge(job: Job) -> None:
    """Everything about rows that needs no text."""
    if job.work.has("judged"):
        return
    places = job.places
    values = {
        look.name: np.concatenate(
            [
                np.load(job.work.path(f"score/{measure}/{number:06d}") / "values.npy")
                for number in range(places.num_chunks)
            ]
        )
        for measure, look in enumerate(corpus_measures(job.config))
    }
    known, exact = ({}, ()) if job.old is None else (job.old.limits, job.old.exact())
    judged, failures, learned = decide.judge(
        job.config, places, fixed=decide.read_failed(places), values=values, known=known, old_exact=exact
    )
    with job.work.piece("judged") as piece:
        save(piece.folder, judged)
        np.save(piece.folder / "original_R.npy", judged.original)
        write_table(piece.folder / "failures.arrow", failures)
        (piece.folder / "limits.pickle").write_bytes(pickle.dumps(learned))
        piece.finish()


def shard(job: Job, number: int, shards: int) -> None:
    """Who met whom among the bucket names of a shard."""
    name = _shard_name(number, shards)
    if job.work.has(name):
        return
    judged = job.work.path("judged")
    original = array(judged / "original_R.npy")
    low, high = buckets.shard_bounds(number, shards)
    found = [
        buckets.entries(job.work.path(chunk_name(chunk)), int(job.places.bases_C1[chunk]), original, low, high)
        for chunk in range(job.places.num_chunks)
    ]
    hashes = np.concatenate([np.zeros(0, np.uint64), *(names for names, _ in found)])
    rows = np.concatenate([np.zeros(0, np.int64), *(owners for _, owners in found)])
    del found
    members, offsets = buckets.meet(hashes, rows, array(judged / "rank_R.npy"))
    old = [] if job.old is None else [buckets.meet_old(hashes, rows, *segment) for segment in job.old.bands()]
    none = np.zeros(0, np.int64)
    met = Buckets(
        members_M=members,
        offsets_B1=offsets,
        new_P=np.concatenate([none, *(new for new, _, _ in old)]),
        old_P=np.concatenate([none, *(owner for _, owner, _ in old)]),
        num_skipped=sum(skipped for _, _, skipped in old),
    )
    with job.work.piece(name) as piece:
        save(piece.folder, buckets.unite([met]))
        piece.finish(num_skipped=met.num_skipped)


def join(job: Job, shards: int) -> int:
    """The union of what the shards found, dealt out; returns the number of batches."""
    if not job.work.has("batches"):
        parts = []
        for number in range(shards):
            name = _shard_name(number, shards)
            skipped = job.work.facts(name)["num_skipped"]
            parts.append(Buckets(**_load(job.work.path(name), Buckets), num_skipped=skipped))
        met = buckets.unite(parts)
        batches = buckets.deal(met, array(job.work.path("judged") / "length_R.npy"))
        with job.work.piece("batches") as piece:
            save(piece.folder, batches)
            piece.finish(batches=len(batches), num_skipped=met.num_skipped)
    return int(job.work.facts("batches")["batches"])


def decide_at_once(job: Job) -> int:
    """`judge`, one `shard` and `join` in one go: what a table of ordinary size needs; returns the number of batches."""
    judge(job)
    shard(job, 0, 1)
    return join(job, 1)


def verify(job: Job, number: int) -> int:
    """Compare the documents of a batch; returns how many there are."""
    name = f"verify/{number:06d}"
    if not job.work.has(name):
        _verify(job, number, name)
    return int(job.work.facts(name)["documents"])


def _verify(job: Job, number: int, name: str) -> None:
    judged = job.work.path("judged")
    old = job.old
    made = verify_batch(
        Batches(**_load(job.work.path("batches"), Batches)).of(number),
        job.config,
        rank_R=array(judged / "rank_R.npy"),
        length_R=array(judged / "length_R.npy"),
        texts=lambda rows: job.places.compared_texts(rows, job.config),
        old_texts=lambda rows: old.compared_texts(rows, job.config) if old is not None else pa.array([], pa.string()),
    )
    with job.work.piece(name) as piece:
        save(piece.folder, made)
        documents = len(made.rows_C)
        piece.finish(documents=documents, num_candidates=made.num_candidates, num_skipped=made.num_skipped)


def settle(job: Job) -> dict[str, Any]:
    """What becomes of every row, and the accounts; returns the report and how many parts there are to write."""
    if not job.work.has("fates"):
        judged, verdicts, compared = near_verdicts(job)
        meanings = (
            Verdicts(**_load(job.work.path("meanings"), Verdicts), num_candidates=0, num_skipped=0)
            if job.config.semantic.embedding
            else None
        )
        fates = decide.settle(judged, verdicts, meanings)
        with job.work.piece("fates") as piece:
            save(piece.folder, fates)
            np.save(piece.folder / "kept_rows.npy", np.flatnonzero(fates.fate_R == KEPT))
            np.save(piece.folder / "removed_rows.npy", np.flatnonzero(fates.fate_R != KEPT))
            quarantine = outputs.write_quarantine(piece.folder, job.places)
            accounts = account(
                job.places,
                job.config,
                judged=judged,
                fates=fates,
                failures=mapped(job.work.path("judged") / "failures.arrow"),
                limits=limits(job),
                compared=compared,
                quarantine=quarantine,
                onto=None if job.onto is None or job.old is None else (job.onto[1], job.old),
            )
            report = accounts.report()
            whole = orjson.dumps({**report, "examples": accounts.examples}, option=_JSON)
            (piece.folder / "report.json").write_bytes(whole)
            (piece.folder / "report.html").write_text(render(accounts, job.base), encoding="utf-8")
            piece.finish(
                report=report,
                summary=accounts.summary(),
                kept=accounts.kept,
                removed=accounts.removed,
            )
    found: dict[str, Any] = job.work.facts("fates")
    return found


def kept(job: Job, part: int) -> int:
    """A part of the kept rows; returns how many they are."""
    name, rows = f"kept/{part:05d}", _part(job, "kept_rows.npy", part)
    if not job.work.has(name):
        with job.work.piece(name) as piece:
            outputs.write_kept(piece.folder / "part.parquet", job.places, rows, job.config)
            piece.finish(sha256=digest_file(piece.folder / "part.parquet"))
    return len(rows)


def removed(job: Job, part: int) -> int:
    """A part of the removed rows; returns how many they are."""
    name, rows = f"removed/{part:05d}", _part(job, "removed_rows.npy", part)
    if not job.work.has(name):
        with job.work.piece(name) as piece:
            failures = mapped(job.work.path("judged") / "failures.arrow")
            outputs.write_removed(
                piece.folder / "part.parquet", job.places, rows, fates=_fates(job), failures=failures, old=job.old
            )
            piece.finish(sha256=digest_file(piece.folder / "part.parquet"))
    return len(rows)


def clusters(job: Job) -> None:
    """All clusters."""
    if not job.work.has("clusters"):
        with job.work.piece("clusters") as piece:
            outputs.write_clusters(piece.folder / "part.parquet", job.places, _fates(job), job.old)
            piece.finish(sha256=digest_file(piece.folder / "part.parquet"))


def index_shard(job: Job, number: int, shards: int) -> None:
    """A shard of the new rows' index; the first brings the ids."""
    name = f"index/{number:05d}"
    if job.work.has(name):
        return
    rows = array(job.work.path("fates") / "kept_rows.npy")
    first = 0 if job.old is None else job.old.num_rows
    with job.work.piece(name) as piece:
        outputs.write_index_shard(
            piece.folder, job.places, job.config, kept_rows=rows, first_row=first, shard=number, shards=shards
        )
        if number == 0:
            np.save(piece.folder / "ids.npy", job.places.ids(np.asarray(rows)))
            facts = segment_facts(old=job.old, rows=len(rows), rows_per_part=job.config.rows_per_part, shards=shards)
            (piece.folder / "segment.json").write_bytes(facts)
        piece.finish(**{path.name: digest_file(path) for path in sorted(piece.folder.iterdir())})


def index_shards(job: Job, num_kept: int) -> int:
    """Shards of the index, by the rows that stay."""
    return num_shards(num_kept * job.config.dedup.banding().num_bands)


def near_verdicts(job: Job) -> tuple[Judged, list[Verdicts], Compared]:
    """What is known of every row, what every batch found, and what it took."""
    facts = job.work.facts("batches")
    verdicts = []
    for number in range(facts["batches"]):
        name = f"verify/{number:06d}"
        said = job.work.facts(name)
        # Copied: a mapped array keeps its file open, and batches are many.
        arrays = {field: np.array(some) for field, some in _load(job.work.path(name), Verdicts).items()}
        verdicts.append(Verdicts(**arrays, num_candidates=said["num_candidates"], num_skipped=said["num_skipped"]))
    compared = Compared(
        num_candidates=sum(verdict.num_candidates for verdict in verdicts),
        num_skipped=facts["num_skipped"] + sum(verdict.num_skipped for verdict in verdicts),
    )
    return Judged(**_load(job.work.path("judged"), Judged)), verdicts, compared


def limits(job: Job) -> Limits:
    """The learned limits."""
    found: Limits = pickle.loads((job.work.path("judged") / "limits.pickle").read_bytes())  # noqa: S301 (by `judge`)
    return found


_JSON = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE


def _fates(job: Job) -> Fates:
    return Fates(**_load(job.work.path("fates"), Fates))


def _part(job: Job, file: str, part: int) -> NDArray[np.int64]:
    rows = array(job.work.path("fates") / file)
    return np.asarray(rows[part * job.config.rows_per_part : (part + 1) * job.config.rows_per_part])


def _shard_name(number: int, shards: int) -> str:
    return f"buckets/{number:05d}-of-{shards:05d}"


def save(folder: Path, value: Any) -> None:
    """The arrays of a dataclass, a file each."""
    for name in _arrays(type(value)):
        np.save(folder / f"{name}.npy", getattr(value, name))


def _load(folder: Path, kind: type) -> dict[str, NDArray[Any]]:
    """The same, mapped into memory."""
    return {name: array(folder / f"{name}.npy") for name in _arrays(kind)}


def _arrays(kind: type) -> Sequence[str]:
    return [name for name in kind.__dataclass_fields__ if "_" in name and not name.startswith("num_")]  # type: ignore[attr-defined]
