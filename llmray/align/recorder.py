"""What stands by TRL's trainer at every step: it writes the metrics, judges the loss, and knows whole checkpoints.

A checkpoint counts once a mark says that every rank has written its part: a kill in the middle of one leaves a folder
that looks whole. The mark also keeps what was known of the losses, so that a resumed run judges the same.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from llmray.align.spec import AlignSpec
from llmray.align.traced import TracedTrainer
from llmray.prices import PriceList
from llmray.train.divergence import Diverged, Limits, LossWatch, Suspect, diverged_error
from llmray.train.engine import Place, any_rank, complete_zero0, weights_are_lost
from llmray.train.run_folder import METRICS, Line, read_metrics, reopen_metrics

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints inside a run folder."""
_WHOLE = "llmray.json"
_FIGURES = {
    "loss": "loss",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
    "epoch": "epoch",
    "rewards/accuracies": "rewards/accuracies",
    "rewards/margins": "rewards/margins",
    "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected",
    "logps/chosen": "logps/chosen",
    "logps/rejected": "logps/rejected",
}
"""TRL's name of a figure to its name in a line of metrics."""


class Recorder(TrainerCallback):
    """A line of metrics a step, the mark in a whole checkpoint, and the end of a run that diverged."""

    trainer: TracedTrainer
    """Given once it is made: it wants its callbacks first."""

    def __init__(
        self,
        spec: AlignSpec,
        place: Place,
        *,
        folder: Path,
        resume_from: Path | None,
        limits: Limits,
        clock: Callable[[], float],
        prices: PriceList,
    ) -> None:
        self._prices = prices
        self._spec, self._place, self._folder, self._limits, self._clock = spec, place, folder, limits, clock
        self._file: Any = None
        self._before: Line = {"core_seconds": 0.0, "gpu_seconds": 0.0, "tokens": 0}
        self._began = clock()
        self._watch, self._saved, self._postponed = LossWatch(), 0, False
        if resume_from is not None:
            mark = json.loads((resume_from / _WHOLE).read_text())
            self._watch, self._saved = LossWatch(**mark["watch"]), mark["step"]
        if place.rank == 0:
            self._file = reopen_metrics(folder / METRICS, self._saved)
            if known := read_metrics(folder / METRICS):
                self._before = known[-1]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = self._clock()
        complete_zero0(self.trainer.model_wrapped, self._spec, fresh=not self._saved)

    def on_log(self, _: Any, state: Any, control: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        self._judge(state.global_step, control, logs)
        if self._file is not None:
            seconds = (self._clock() - self._began) * self._spec.num_workers
            per_worker = {"core_seconds": self._spec.cpus_per_worker, "gpu_seconds": self._spec.gpus_per_worker}
            used = {name: round(self._before[name] + seconds * each, 3) for name, each in per_worker.items()}
            line = {
                "step": state.global_step,
                **{ours: logs[theirs] for theirs, ours in _FIGURES.items() if theirs in logs},
                "tokens": self._before["tokens"] + int(logs.get("num_tokens", 0)),
                **used,
                **self._prices.figures(**used),
                **({"high_for": self._watch.high_for} if self._watch.high_for else {}),
            }
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def on_save(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        dist.barrier()
        self._saved = state.global_step
        if self._place.rank == 0:
            here = self._folder / CHECKPOINTS / f"checkpoint-{state.global_step}"
            (here / _WHOLE).write_text(json.dumps({"step": state.global_step, "watch": asdict(self._watch)}))

    def _judge(self, step: int, control: Any, logs: dict[str, float]) -> None:
        """End the run where it diverged, and put a checkpoint off while the loss is too high."""
        engine = self.trainer.model_wrapped
        verdict, self._watch = self._watch.judge(
            logs["loss"], grad_norm=logs["grad_norm"], applied=engine.was_step_applied(), limits=self._limits
        )
        wanted = control.should_save or self._postponed
        self._postponed = wanted and isinstance(verdict, Suspect)
        control.should_save = wanted and not self._postponed
        if control.should_save and any_rank(weights_are_lost(engine), self._place):
            verdict = Diverged(of="weights", value=logs["loss"])
        if isinstance(verdict, Diverged):
            raise diverged_error(
                verdict,
                self.trainer.blame(verdict),
                option=self._spec.option,
                step=step,
                lr=logs["learning_rate"],
                saved_step=self._saved,
                checkpoints=str(self._folder / CHECKPOINTS),
            )


def last_checkpoint(folder: Path, place: Place) -> Path | None:
    """The newest whole checkpoint, the same on every rank; the others are removed, so that none can be taken for one."""
    whole: list[Path] = []
    for found in (folder / CHECKPOINTS).glob("checkpoint-*"):
        if (found / _WHOLE).exists():
            whole.append(found)
        elif place.rank == 0:
            shutil.rmtree(found)
    dist.barrier()
    return max(whole, key=lambda found: int(found.name.rpartition("-")[2]), default=None)
