"""What a person asks for, one function a stage: resolve what was named, run the step, register what came of it.

The SDK exports these, the jobs and the lifecycle call them: three doors, one way in. Each opens a run of its own unless
one is open. Anything that takes an artifact also takes a reference (`docs@latest`, `docs:3`, a digest) or the URI of
one; a model may also be a Hugging Face folder or a hub id.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmray import artifact as artifacts
from llmray.align.spec import AlignSpec
from llmray.artifact import Artifact
from llmray.data.config import CurateConfig
from llmray.data.work import other_files
from llmray.errors import ConfigError, InputError
from llmray.flow.inputs import adopt_model, model_folder, name_of, resolve, source_files
from llmray.flow.promote import Verdict
from llmray.flow.run import Run, open_run
from llmray.flow.stages.align import align as align_step
from llmray.flow.stages.base import newborn
from llmray.flow.stages.curate import curate as curate_step
from llmray.flow.stages.evaluate import EvaluateConfig
from llmray.flow.stages.evaluate import evaluate as evaluate_step
from llmray.flow.stages.preferences import Said, preferences
from llmray.flow.stages.source import python_docs, running_python
from llmray.flow.stages.train import finetune as finetune_step
from llmray.flow.stages.train import pretrain as pretrain_step
from llmray.flow.stages.tune import tune as tune_step
from llmray.flow.watch import WatchConfig
from llmray.flow.watch import watch as watch_log
from llmray.registry.registry import Registry
from llmray.train.base_model import BaseModelSpec
from llmray.train.spec import TrainSpec
from llmray.tune.ledger import Budget
from llmray.tune.spec import TuneSpec

if TYPE_CHECKING:
    from llmray.data.diff import RowDiff

log = logging.getLogger(__name__)

What = str | Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    config: Mapping[str, Any]
    """The best point: training options and their values."""
    metric: float
    """What ranked it."""
    trials: Sequence[Mapping[str, Any]]
    """Every trial: config, status, metric, core_seconds."""
    spent: Mapping[str, float]
    """By currency."""


def curate(
    sources: Sequence[str] = (),
    *,
    name: str | None = None,
    config: CurateConfig | None = None,
    output: str | None = None,
    against: What | None = None,
) -> Artifact:
    """Read, deduplicate and clean rows into a dataset snapshot.

    Args:
        sources: URIs, globs or folders of jsonl, csv, tsv and plain text (also in gzip and zstd), Parquet, Arrow, and
            folders that Hugging Face `datasets` saved; none for the documentation of the Python that is running.
        name: registers the snapshot as the next version of this dataset, and moves `name@latest`.
        output: URI of a folder that gets a copy of the snapshot.
        against: snapshot that is added to: its rows stay, new rows that repeat one of them go, and its text is only
            read where a candidate must be compared.

    Raises:
        NotFoundError: a source that names no file.
        InputError: nothing that can be read, or nothing that is left.
        ConfigError: the snapshot that is added to was made with other settings.
    """
    settings = {"sources": list(sources), "name": name, **({} if against is None else {"against": str(against)})}
    with open_run("curate", config=settings) as run:
        parent = None
        if not sources:
            parent = python_docs(running_python())
            sources = [f"{parent.uri}/*.jsonl.gz"]
        old = None if against is None else resolve(run.registry, against, kind="dataset")
        config = config or CurateConfig()
        others = other_files(config)
        made = curate_step(source_files(sources), config, parent, old, source_files(others) if others else [])
        if output is not None:
            artifacts.copy(made, output)
        return named(run, made, name)


def base_model(
    data: What,
    *,
    name: str | None = "base",
    shape: BaseModelSpec | None = None,
    pretrain: TrainSpec | None = None,
) -> Artifact:
    """A small model from nothing: tokenizer and weights learned from a snapshot's plain text.

    Args:
        shape: its size.
        pretrain: how it is trained; the objective is always `pretrain`.
    """
    spec = replace(pretrain or TrainSpec(max_steps=200), objective="pretrain", method="full")
    with open_run("base", config={"data": str(data), "name": name}) as run:
        snapshot = resolve(run.registry, data, kind="dataset")
        made = pretrain_step(newborn(snapshot, shape or BaseModelSpec()), snapshot, spec)
        return named(run, made, name)


def as_model(what: What, *, name: str | None = None) -> Artifact:
    """The model artifact that is meant; a Hugging Face folder or hub id becomes one.

    Args:
        name: registers it as the next version of this model.
    """
    with open_run("model", config={"model": str(what), "name": name}) as run:
        folder = model_folder(what) if isinstance(what, str) else None
        found = adopt_model(folder) if folder is not None else resolve(run.registry, what, kind="model")
        return named(run, found, name)


def tune(
    data: What,
    *,
    model: What,
    budget: Budget,
    search: TuneSpec | None = None,
    spec: TrainSpec | None = None,
) -> Tuned:
    """Search for training options without spending more than the budget.

    Args:
        data: the snapshot; trials are ranked by the loss on its validation rows.
        search: what varies, and how it is searched.
        spec: the training run around which the search varies.

    Raises:
        BudgetExhaustedError: not even one trial fits.
    """
    with open_run("tune", config={"data": str(data), "model": str(model), "budget": budget.limits()}) as run:
        found = tune_step(
            as_model(model),
            resolve(run.registry, data, kind="dataset"),
            search or TuneSpec(),
            spec or TrainSpec(),
            budget,
        )
        return Tuned(config=found["config"], metric=found["metric"], trials=found["trials"], spent=found["spent"])


def finetune(
    model: What,
    data: What,
    *,
    config: TrainSpec | Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Artifact:
    """Train a model on a snapshot's conversations, sharded by DeepSpeed.

    Args:
        config: a spec, or the options that differ from its defaults (`tune(…).config`).
        name: registers the result as the next version of this model; the dataset's own name by default.

    Raises:
        ConfigError: an option that is unknown or impossible.
    """
    spec = config if isinstance(config, TrainSpec) else train_spec(config or {})
    with open_run("train", config={"data": str(data), "model": str(model), "name": name}) as run:
        snapshot = resolve(run.registry, data, kind="dataset")
        name = name or name_of(run.registry, data, snapshot.digest)
        return named(run, finetune_step(as_model(model), snapshot, spec), name)


def train_spec(options: Mapping[str, Any], *, around: TrainSpec | None = None) -> TrainSpec:
    """A training spec with some options changed.

    Raises:
        ConfigError: an option that is unknown or impossible.
    """
    try:
        return replace(around or TrainSpec(), **options)
    except TypeError as error:
        raise ConfigError(f"config has an option that training does not know: {error}") from error


def evaluate(
    model: What,
    data: What | None = None,
    *,
    tasks: Sequence[str] | None = None,
    config: EvaluateConfig | None = None,
) -> Artifact:
    """Score a model on a snapshot's held-out rows.

    Args:
        data: the snapshot; by default the one that the model was trained on.
        tasks: built-in tasks or `module:attribute`; those of `config` by default.

    Returns:
        An artifact of kind `evaluation`; its `report` has mean and 95% interval by task.

    Raises:
        InputError: the model was not trained here, and no data was named.
    """
    settings = config or EvaluateConfig()
    if tasks is not None:
        settings = replace(settings, tasks=tuple(tasks))
    with open_run("evaluate", config={"model": str(model), "data": str(data)}) as run:
        candidate = as_model(model)
        snapshot = training_data(run, candidate, data)
        if snapshot is None:
            raise InputError(f"{model} was not trained on a snapshot that is known here: name the data")
        return evaluate_step(candidate, snapshot, settings)


def improvements(verdict: Verdict) -> list[list[Any]]:
    """Rows of a table: task, improvement over the baseline, and its interval."""
    return [
        [task, one["improvement"], one["low"], one["high"]] for task, one in sorted(verdict.evidence["tasks"].items())
    ]


def align(
    model: What,
    data: What,
    *,
    name: str | None = None,
    heldout: float = 0.4,
    spec: AlignSpec | None = None,
) -> tuple[Artifact, Artifact]:
    """Teach a model what people preferred among its answers, by DPO.

    Args:
        model: the model whose answers people spoke of.
        data: snapshot that the preferences are put beside.
        name: registers the result as the next version of this model, and the preferences as `NAME-feedback`.
        heldout: share of the questions whose preferences are kept for evaluation.

    Returns:
        The aligned model, and the snapshot with the preferences.

    Raises:
        InputError: nobody preferred or corrected anything.
    """
    with open_run("align", config={"model": str(model), "data": str(data), "name": name}) as run:
        start, snapshot = as_model(model), resolve(run.registry, data, kind="dataset")
        said = said_of(run.registry, start)
        feedback = named(run, preferences(said, snapshot, heldout), name and f"{name}-feedback")
        return named(run, align_step(start, feedback, spec or AlignSpec()), name), feedback


def watch(model: What, data: What | None = None, *, config: WatchConfig | None = None) -> dict[str, Any]:
    """Hold what people asked a model against the usual traffic: see `llmray.flow.watch.watch`.

    Args:
        data: snapshot whose validation questions are the usual traffic; by default the one that it was trained on.
    """
    with open_run("monitor", config={"model": str(model), "data": str(data)}) as run:
        found = as_model(model)
        snapshot = training_data(run, found, data)
        if snapshot is None:
            raise InputError(f"{model} was not trained on a snapshot that is known here: name the data")
        return watch_log(run.registry, found, snapshot, config or WatchConfig())


def diff(before: What, after: What, *, examples: int = 5) -> "RowDiff":
    """Which rows one snapshot has and another has not."""
    from llmray.data.diff import diff as compare

    with Registry.open() as registry:
        a, b = (resolve(registry, what, kind="dataset") for what in (before, after))
    return compare(a.uri, b.uri, examples=examples)


def said_of(registry: Registry, model: Artifact) -> Said:
    """The preferences that people's feedback on a model's answers amounts to; all that is said of a question is a group.

    Raises:
        InputError: nobody preferred or corrected anything.
    """
    from llmray.align.pairs import preference_data

    outputs = {
        one.id: one
        for one in registry.outputs(registry.output_count(model_digest=model.digest), model_digest=model.digest)
    }
    feedback = [one for one in registry.feedback() if one.output_id in outputs]
    found = preference_data(feedback, outputs)
    if not found.records:
        raise InputError(
            f"{len(feedback)} pieces of feedback on model {model.digest[:12]} give no preference "
            f"({', '.join(f'{count} {reason}' for reason, count in found.left_out.items()) or 'nobody said anything'}): "
            f"alignment needs corrections, or preferences between two answers"
        )
    log.info("feedback   %d pieces on %s give %d preferences", len(feedback), model.digest[:12], len(found.records))
    return Said(records=found.records, feedback=found.used, left_out=found.left_out)


def named(run: Run, made: Artifact, name: str | None) -> Artifact:
    """Register an artifact as the next version under a name, if there is a name."""
    if name is not None:
        record = run.registry.put_artifact(made, name=name, run_id=run.id)
        log.info("%-10s %s:%s is %s", made.kind, name, record.version, made.digest[:12])
    return made


def training_data(run: Run, model: Artifact, data: What | None) -> Artifact | None:
    """The snapshot that is named, or the one that the model was trained on; None where there was none."""
    what = data or model.parents.get("data")
    return None if what is None else resolve(run.registry, what, kind="dataset")
