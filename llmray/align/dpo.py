"""Align a model with preferences on Ray Train: what its manifest reports, in the frame that trainings share.

Checkpoints are the Hugging Face trainer's own, in the run folder; see `loop.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmray.align.spec import AlignSpec
from llmray.artifact import Artifact
from llmray.errors import LLMRayError
from llmray.prices import PriceList
from llmray.prices import text as money_text
from llmray.train import frame
from llmray.train.run_folder import EXPORT, METRICS, Line, OnReport, read_metrics, too_high

if TYPE_CHECKING:
    from llmray.align.loop import Outcome
    from llmray.train.engine import Place


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignResult:
    artifact: Artifact
    """The model."""
    steps: int
    """Optimizer steps done."""
    pairs: int
    """Pairs trained on."""
    train_loss: float
    """Mean loss over the last pass through the pairs (the last `max_steps` where there was less than one)."""
    reward_accuracy: float
    """Share of pairs with the higher reward for the chosen answer, over the same steps, before each learned from them."""
    reward_margin: float
    """Mean reward of the chosen answer less that of the rejected one, over the same steps, in nats times beta."""
    core_seconds: float
    """Cores set aside times seconds, startup included."""
    gpu_seconds: float
    """GPUs set aside times seconds, startup included."""
    metrics_path: str
    """The `metrics.jsonl` with a line a step."""
    seconds: dict[str, float]
    """Where the time went: startup, imports, data, engine, steps and so on."""


def align(
    spec: AlignSpec,
    *,
    run_dir: str,
    root_uri: str | None = None,
    on_report: OnReport | None = None,
    max_failures: int = 2,
) -> AlignResult:
    """Run DPO on Ray Train and publish the model; Ray must be connected.

    Args:
        run_dir: local folder, seen by every worker, for checkpoints and metrics; the same one resumes.
        root_uri: where the artifact goes; `<home>/artifacts` by default.
        on_report: called in this process with every line of metrics (a dict with step, loss, rewards/accuracies …).
        max_failures: how often dead workers are replaced.

    Raises:
        ConfigError: the folder belongs to another spec, or an option does not fit the model.
        InputError: the data or the model cannot be used.
        DivergedError: the loss, its gradient or the weights became NaN or infinite, or the loss stayed too high.
        LLMRayError: workers died more often than allowed.
    """
    done = frame.run(WORK, spec, run_dir=run_dir, root_uri=root_uri, on_report=on_report, max_failures=max_failures)
    report = done.report
    return AlignResult(
        artifact=done.artifact,
        steps=report["steps"],
        pairs=report["pairs"],
        train_loss=report["train_loss"],
        reward_accuracy=report["reward_accuracy"],
        reward_margin=report["reward_margin"],
        core_seconds=report["core_seconds"],
        gpu_seconds=report["gpu_seconds"],
        metrics_path=done.metrics_path,
        seconds=report["seconds"],
    )


def progress_text(line: Line, spec: AlignSpec) -> str:
    """A line of metrics for a person."""
    spent = f", {paid} so far" if (paid := money_text(line)) else ""
    return (
        f"step {line['step']}/{spec.max_steps}, loss {line['loss']:.3f}{too_high(line)}, "
        f"chosen preferred {line['rewards/accuracies']:.0%}, margin {line['rewards/margins']:+.3f}{spent}"
    )


def _report(outcome: Mapping[str, Any], folder: Path, spec: AlignSpec) -> dict[str, Any]:
    """Means over the last pass through the pairs: single steps see only a few of them."""
    pairs = outcome["counts"]["pairs"]
    last = read_metrics(folder / METRICS)[-math.ceil(pairs / spec.global_batch) :]

    def mean(name: str) -> float:
        return round(sum(line[name] for line in last) / len(last), 6)

    return {
        "steps": outcome["steps"],
        "pairs": pairs,
        "train_loss": mean("loss"),
        "reward_accuracy": mean("rewards/accuracies"),
        "reward_margin": mean("rewards/margins"),
    }


def _worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    """What every worker runs."""
    return frame.in_worker(config, AlignSpec, _align)


WORK = frame.Work(worker=_worker, describe=progress_text, report=_report)


def _align(spec: AlignSpec, place: "Place", folder: Path, _: float | None, prices: PriceList) -> "Outcome":
    from llmray.align import loop

    return loop.run(spec, place, folder=folder, export_to=folder / EXPORT, prices=prices)
