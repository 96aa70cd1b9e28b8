"""Score a model on held-out rows with Ray, one value an item.

The driver cuts the requests into batches by their length in bytes, before it knows how many workers there are; workers
take batches once they are up, as they come free. So nothing depends on arrival order or on the number of workers, no
batch waits for a worker that a busy cluster has no room for, and the driver imports no torch. Rejected: Ray Data's
`map_batches`, which forms batches from whatever blocks arrive (other padding, other last bits) and costs 2-3 s of start
on a run of ten.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from llmray import artifact, storage
from llmray.artifact import Artifact
from llmray.digest import canonical_json, fraction_of
from llmray.errors import ConfigError, InputError, LLMRayError, NotFoundError
from llmray.evaluate.scores import ITEMS, SCHEMA, SUBJECT, TaskScores, from_table
from llmray.evaluate.stats import BootstrapMean, wilson
from llmray.evaluate.tasks import Likelihood, Request, Task, resolve_task

_LOG = logging.getLogger(__name__)
_BATCH_ROWS = 32
_BATCH_BYTES = 24_000
_LEVEL = 0.95
_SAY_EVERY_S = 2.0
_PATIENCE_S = 15.0
"""A worker needs some seconds to start; after these it probably waits for a core."""


def evaluate(
    model_uri: str,
    data_uri: str,
    *,
    tasks: Sequence[str] = ("heldout", "choice"),
    max_rows: int | None = None,
    max_length: int = 256,
    num_workers: int = 2,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float = 0.0,
    root_uri: str | None = None,
    parents: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Artifact:
    """Score a model on the held-out rows of a snapshot.

    Args:
        model_uri: a model artifact, or any folder in Hugging Face's format.
        data_uri: a dataset snapshot.
        tasks: built-in names or `module:attribute`.
        max_rows: rows a task is asked about: the same ones for every model; all by default.
        max_length: tokens that a conversation is cut to.
        num_workers: actors that score at the same time.
        cpus_per_worker: cores of each; it computes on one thread a core.
        gpus_per_worker: GPUs of each; above zero it computes there in bfloat16.
        root_uri: where the evaluation is put.
        parents: role to digest; model and data by default.
        config: what else the manifest keeps as the settings that made it.

    Returns:
        An artifact of kind `evaluation`: `items.parquet`, and a report `{task: {metric, mean, low, high, n}}` at 95%.

    Raises:
        ConfigError: an unknown task, or an impossible number.
        InputError: the snapshot has no row for a task, or the model has no chat template.
    """
    if num_workers < 1 or max_length < 2 or (max_rows is not None and max_rows < 1):
        raise ConfigError("evaluate needs num_workers >= 1, max_length >= 2 and max_rows >= 1")
    begun = time.monotonic()
    chosen = _resolve(tasks)
    model, data = _identity(model_uri, "model"), _identity(data_uri, "dataset")
    work = [(task, row, list(requests)) for task in chosen for row, requests in _rows_for(task, data_uri, max_rows)]
    likelihoods = _score_all(
        [request for _, _, requests in work for request in requests],
        storage.local_copy(model_uri),
        max_length=max_length,
        num_workers=num_workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )
    table, skipped = _items(work, likelihoods)
    report = {name: {**_summary(scores), "skipped": skipped.get(name, 0)} for name, scores in from_table(table).items()}
    if missing := [task.name for task in chosen if task.name not in report]:
        raise InputError(
            f"no row of {', '.join(missing)} has a token to score within max_length ({max_length}): raise it"
        )
    subject = {"model": model, "data": data, "tasks": list(tasks), "max_rows": max_rows, "max_length": max_length}
    with artifact.draft("evaluation", root_uri=root_uri) as draft:
        pq.write_table(table, draft.folder / ITEMS)
        (draft.folder / SUBJECT).write_bytes(canonical_json(subject))
        sealed = draft.seal(
            parents=parents or {"model": model, "data": data}, config={**subject, **(config or {})}, report=report
        )
    _LOG.info(
        "evaluate: %s (%.1f s)",
        ", ".join(
            f"{name} {e['metric']} {e['mean']:.4f} [{e['low']:.4f}, {e['high']:.4f}]" for name, e in report.items()
        ),
        time.monotonic() - begun,
    )
    return sealed


def check_rows(data_uri: str, tasks: Sequence[str]) -> None:
    """Make sure, before anything is trained, that a snapshot has held-out rows for each task.

    Raises:
        ConfigError: an unknown task.
        InputError: there is no row for one.
    """
    for task in _resolve(tasks):
        next(_rows_for(task, data_uri, 1))


def _resolve(tasks: Sequence[str]) -> list[Task]:
    chosen = [resolve_task(name) for name in tasks]
    if not chosen:
        raise ConfigError("evaluate.tasks is empty: name at least one, for example heldout")
    if len({task.name for task in chosen}) < len(chosen):
        raise ConfigError(f"evaluate.tasks has two tasks of one name: {', '.join(task.name for task in chosen)}")
    return chosen


def _identity(uri: str, kind: str) -> str:
    """Digest of an artifact; the URI itself for a model folder that llmray did not make."""
    try:
        found = artifact.load(uri)
    except NotFoundError:
        if kind == "model" and storage.exists(uri):
            return uri
        raise
    if found.kind != kind:
        raise InputError(f"{uri} is a {found.kind}, not a {kind}")
    return found.digest


def _rows_for(task: Task, data_uri: str, max_rows: int | None) -> Iterator[tuple[Mapping[str, Any], Sequence[Request]]]:
    """A task's rows, those with the smallest digest fraction first: a sample that is the same for every model."""
    rows = pyarrow.dataset.dataset(storage.local_copy(data_uri) / "kept", format="parquet").to_table(
        filter=(pyarrow.dataset.field("split") == "heldout") & (pyarrow.dataset.field("shape") == task.shape)
    )
    found = 0
    for row in sorted(rows.to_pylist(), key=lambda row: (fraction_of(row["id"]), row["id"])):
        if max_rows is not None and found >= max_rows:
            return
        if requests := task.requests(row):
            found += 1
            yield row, requests
    if not found:
        raise InputError(
            f"{data_uri} has no held-out row for the task {task.name}: it reads rows of shape {task.shape}"
        )


def _batches(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of requests of like length, longest first, the same whatever the workers."""
    length = [sum(len(message["content"].encode()) for message in request.messages) for request in requests]
    batches: list[list[int]] = []
    for index in sorted(range(len(requests)), key=lambda i: (-length[i], i)):
        room = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, length[batches[-1][0]]))) if batches else 0
        if not batches or len(batches[-1]) >= room:
            batches.append([])
        batches[-1].append(index)
    return batches


def _score_all(
    requests: Sequence[Request],
    folder: Path,
    *,
    max_length: int,
    num_workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float,
) -> list[Likelihood]:
    import ray

    batches = _batches(requests)
    worker = ray.remote(_Worker).options(
        num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, max_restarts=2, max_task_retries=2
    )
    device, threads = ("cuda" if gpus_per_worker else "cpu"), max(1, int(cpus_per_worker))
    actors = [worker.remote(str(folder), max_length, device, threads) for _ in range(min(num_workers, len(batches)))]
    results: dict[int, Likelihood] = {}
    pending: dict[Any, tuple[Any, list[int]]] = {actor.load.remote(): (actor, []) for actor in actors}
    todo = iter(batches)
    said = time.monotonic()
    try:
        while len(results) < len(requests):
            done, _ = ray.wait(list(pending), num_returns=1, timeout=_SAY_EVERY_S)
            for ref in done:
                actor, indices = pending.pop(ref)
                results.update(zip(indices, ray.get(ref), strict=True))
                for _ in range(1 if indices else 2):  # one batch at work and one waiting for each
                    _submit(actor, todo, requests, pending)
            if time.monotonic() - said > (_SAY_EVERY_S if results else _PATIENCE_S):
                said = time.monotonic()
                if results:
                    _LOG.info("evaluate: %s of %s requests scored", f"{len(results):,}", f"{len(requests):,}")
                else:
                    free = f"{cpus_per_worker:g} CPUs and {gpus_per_worker:g} GPUs free"
                    _LOG.info("evaluate: nothing scored yet; a worker starts where it finds %s", free)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LLMRayError):
            raise error.cause from error
        raise
    finally:
        for ref in pending:
            ray.cancel(ref)  # Ray would say of each that it is tried again
        for actor in actors:
            ray.kill(actor)
    return [results[index] for index in range(len(requests))]


def _submit(
    actor: Any, todo: Iterator[list[int]], requests: Sequence[Request], pending: dict[Any, tuple[Any, list[int]]]
) -> None:
    indices = next(todo, None)
    if indices is not None:
        pending[actor.score.remote([requests[index] for index in indices])] = (actor, indices)


class _Worker:
    """A scorer in its own process: torch is imported there alone."""

    def __init__(self, folder: str, max_length: int, device: str, threads: int) -> None:
        self._make = (Path(folder), max_length, device, threads)
        self._scorer: Any = None

    def load(self) -> list[Likelihood]:
        """Come up; what does not load fails here. No batch, no likelihoods."""
        if self._scorer is None:
            from llmray.evaluate.scoring import Scorer

            folder, max_length, device, threads = self._make
            self._scorer = Scorer(folder, max_length=max_length, device=device, threads=threads)
        return []

    def score(self, batch: list[Request]) -> list[Likelihood]:
        self.load()  # again in a process that took a dead one's place
        return list(self._scorer.score(batch))


def _items(
    work: Sequence[tuple[Task, Mapping[str, Any], list[Request]]], likelihoods: Sequence[Likelihood]
) -> tuple[pa.Table, dict[str, int]]:
    rows: list[dict[str, Any]] = []
    skipped: dict[str, int] = {}
    answers = iter(likelihoods)
    for task, row, requests in work:
        item = task.item(row, [next(answers) for _ in requests])
        if item is None:
            skipped[task.name] = skipped.get(task.name, 0) + 1
            continue
        rows.append(
            {
                "task": task.name,
                "id": row["id"],
                "value": item.value,
                "weight": item.weight,
                "metric": task.metric,
                "cluster": row["group"],
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA).sort_by([("task", "ascending"), ("id", "ascending")]), skipped


def _summary(scores: TaskScores) -> dict[str, Any]:
    summary: dict[str, Any] = {"metric": scores.metric, "n": len(scores.ids), "mean": scores.mean}
    clusters = len(set(scores.clusters))
    if scores.metric == "accuracy" and scores.independent:
        interval = wilson(round(scores.values.sum()), len(scores.ids), level=_LEVEL)
    elif clusters > 1:
        interval = BootstrapMean(scores.values, weights=scores.weights, clusters=scores.clusters, seed=0).interval(
            _LEVEL
        )
    else:
        raise InputError(f"{scores.metric} has {clusters} independent item: an interval needs at least 2")
    return {**summary, "low": interval.low, "high": interval.high, "clusters": clusters}
