"""The frame around a run on Ray Train: its folder, its workers, what it cost, and the model artifact at the end.

What differs between one kind of training and another is a `Work`: what a worker runs, how a line of metrics reads, and
what the manifest reports. The frame knows neither loss nor data. A run folder belongs to one spec: the same call with
the same folder goes on from the last checkpoint, or returns at once where the run was finished. Rejected: a base class
with hooks to override, whose story is told in two files by turns.
"""

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from llmray import artifact, storage
from llmray.artifact import Artifact
from llmray.errors import InputError, LLMRayError, NotFoundError, StoppedError
from llmray.prices import PriceList, price_list
from llmray.train.card import CARD, render
from llmray.train.model_run import ModelRun
from llmray.train.run_folder import (
    EXPORT,
    METRICS,
    RESULT,
    STOP,
    Line,
    OnReport,
    claim,
    following,
    parents_of,
    stopping_on_sigterm,
)
from llmray.train.sinks import TENSORBOARD, check_sinks, feeding
from llmray.train.workers import begin_worker, run_workers

if TYPE_CHECKING:
    from llmray.train.engine import Place

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

logger = logging.getLogger(__name__)

SpecT = TypeVar("SpecT", bound=ModelRun)
Outcome = Mapping[str, Any]
"""What a worker brings back: the loop's outcome as a mapping, with `counts` of its data and `seconds` by phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work(Generic[SpecT]):
    """One kind of training."""

    worker: Callable[[dict[str, Any]], Outcome | LLMRayError]
    """Function of a module that every worker runs; it hands its config to `in_worker`."""
    describe: Callable[[Line, SpecT], str]
    """A line of metrics for a person."""
    report: Callable[[Outcome, Path, SpecT], dict[str, Any]]
    """What the manifest reports beside data, cost and time, from the outcome and the run folder."""
    prepare: Callable[[SpecT, Path], None] | None = None
    """What the driver does before there are workers, with the run folder."""
    stops: bool = False
    """Whether workers look for the file `STOP`, and say in their outcome at which step the run `resumes_at`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    artifact: Artifact
    """The model."""
    report: Mapping[str, Any]
    """As in its manifest."""
    metrics_path: str
    """The `metrics.jsonl` with a line a step."""


def run(
    work: Work[SpecT],
    spec: SpecT,
    *,
    run_dir: str,
    root_uri: str | None = None,
    on_report: OnReport | None = None,
    deadline_s: float | None = None,
    callbacks: Sequence[Any] = (),
    max_failures: int = 2,
) -> Finished:
    """Run the work on its workers and publish the model; Ray must be connected. Options are those of `trainer.train`.

    Raises:
        ConfigError: the folder belongs to another spec.
        StoppedError: the process was told to end (SIGTERM), and the work stops at that.
        LLMRayError: what a worker returned, or that workers died more often than allowed.
    """
    began = time.time()
    folder = claim(run_dir, spec.settings())
    if (done := _finished(folder)) is not None:
        return done
    check_sinks(spec.report_to, option=spec.option)
    prices = price_list()
    with stopping_on_sigterm(folder) if work.stops else contextlib.nullcontext():
        outcome, figures = _outcome(
            work, spec, folder, began, on_report=on_report, deadline_s=deadline_s, callbacks=callbacks,
            max_failures=max_failures, prices=prices,
        )  # fmt: skip
        if (step := outcome.get("resumes_at")) is not None:
            raise StoppedError(
                f"{spec.option} was told to end, and did at a checkpoint: the same call with run_dir {run_dir} goes on "
                f"from step {step} of {spec.max_steps}"
            )
        cost = _cost(outcome, spec, began=began, wall=time.time() - began, prices=prices)
        report = {**figures, **cost, "data": outcome["counts"]}
        done = _publish(spec, folder, report, root_uri=root_uri, finished=not outcome.get("stopped_early"))
        if work.stops and (folder / STOP).exists():
            raise StoppedError(
                f"{spec.option} was told to end when it was at its end: the same call with run_dir {run_dir} returns "
                f"the model at once"
            )
    return done


def _outcome(
    work: Work[SpecT],
    spec: SpecT,
    folder: Path,
    began: float,
    *,
    on_report: OnReport | None,
    deadline_s: float | None,
    callbacks: Sequence[Any],
    max_failures: int,
    prices: PriceList,
) -> tuple[Outcome, dict[str, Any]]:
    """What the workers bring back, and what the work reports of it; meanwhile their metrics are followed."""
    if work.prepare is not None:
        work.prepare(spec, folder)
    with (
        following(
            folder / METRICS,
            on_report=on_report,
            log=logger,
            describe=lambda line: f"{spec.option}: {work.describe(line, spec)}",
            max_steps=spec.max_steps,
        ),
        feeding(spec.report_to, folder=folder, option=spec.option, settings=spec.identity()) as tell,
    ):
        outcome = run_workers(
            work.worker,
            {
                "spec": asdict(spec),
                "folder": str(folder),
                "deadline": None if deadline_s is None else began + deadline_s,
                "prices": asdict(prices),
            },
            spec,
            folder=folder,
            max_failures=max_failures,
            callbacks=callbacks,
        )
        if outcome.get("resumes_at") is not None:
            return outcome, {}
        figures = work.report(outcome, folder, spec)
        tell({"step": figures["steps"], **figures})
        return outcome, figures


def _publish(
    spec: ModelRun, folder: Path, report: Mapping[str, Any], *, root_uri: str | None, finished: bool
) -> Finished:
    parents = parents_of({"base": spec.model, "data": spec.data})
    card = render(
        option=spec.option,
        settings=spec.identity(),
        parents=parents,
        report=report,
        hub_id=spec.model if _HUB_ID.fullmatch(spec.model) and not storage.exists(spec.model) else None,
        rows=_rows_of(spec.data),
    )
    with artifact.draft("model", root_uri=root_uri) as draft:
        shutil.copytree(folder / EXPORT, draft.folder, dirs_exist_ok=True)
        shutil.copy(folder / METRICS, draft.folder / METRICS)
        (draft.folder / CARD).write_text(card)
        events = [f"{TENSORBOARD}/{file.name}" for file in (folder / TENSORBOARD).glob("*")]
        for event in events:
            storage.write_bytes(str(draft.folder / event), (folder / event).read_bytes())
        model = draft.seal(
            parents=parents,
            config={spec.option: spec.identity()},
            report=report,
            outside_digest=(METRICS, CARD, *events),
        )
    if finished:
        storage.write_bytes(str(folder / RESULT), json.dumps({"uri": model.uri, "report": report}).encode())
    return Finished(artifact=model, report=report, metrics_path=str(folder / METRICS))


def in_worker(
    config: Mapping[str, Any],
    spec_type: type[SpecT],
    body: "Callable[[SpecT, Place, Path, float | None, PriceList], Any]",
) -> dict[str, Any] | LLMRayError:
    """What a worker returns: the outcome of `body` and when it began, or the error that the user must see.

    Args:
        body: takes the spec, this process's place, the run folder, the deadline and the prices; returns a dataclass with `counts`
            and `seconds`. What is heavy to import belongs into it, and is counted as `imports`.
    """
    started = time.time()
    spec = spec_type(**config["spec"])
    place = begin_worker(spec)
    try:
        prices = PriceList(**config["prices"])
        outcome = asdict(body(spec, place, Path(config["folder"]), config["deadline"], prices))
    except LLMRayError as error:
        return error
    imports = time.time() - started - sum(outcome["seconds"].values())
    return {**outcome, "started": started, "seconds": {"imports": round(imports, 3), **outcome["seconds"]}}


def _finished(folder: Path) -> Finished | None:
    """What an earlier call returned, where it finished and the model is still there."""
    if (folder / RESULT).exists():
        saved = json.loads((folder / RESULT).read_text())
        with contextlib.suppress(NotFoundError):
            model = artifact.load(saved["uri"])
            return Finished(artifact=model, report=saved["report"], metrics_path=str(folder / METRICS))
    return None


def _rows_of(uri: str) -> Mapping[str, Any]:
    """What a snapshot's report says of its rows; nothing where it says none."""
    with contextlib.suppress(InputError):
        rows = artifact.load(uri).report.get("rows", {})
        return rows if isinstance(rows, Mapping) else {}
    return {}


def _cost(outcome: Outcome, spec: ModelRun, *, began: float, wall: float, prices: PriceList) -> dict[str, Any]:
    seconds = {"startup": outcome["started"] - began, **outcome["seconds"]}
    seconds["rest"] = wall - sum(seconds.values())
    used = {
        "core_seconds": round(wall * spec.num_workers * spec.cpus_per_worker, 3),
        "gpu_seconds": round(wall * spec.num_workers * spec.gpus_per_worker, 3),
    }
    return {
        **used,
        **prices.figures(**used),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
