"""DPO with TRL's trainer under DeepSpeed: one process among the workers; it knows no Ray.

The reference is the starting model: a second copy, or under LoRA the same one with its adapters off. Checkpoints are
the Hugging Face trainer's own, with DeepSpeed's shards in them, and count once a mark says that every rank has written
its part: a kill in the middle of one leaves a folder that looks whole. Rejected: writing the loss ourselves as in
`llmray.train.loop`, since here nothing hangs on packing and TRL's is the one that others check; and TRL's precomputed
reference log-probabilities, whose cache on disk is keyed by hashes that differ between ranks.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from llmray.align.spec import AlignSpec
from llmray.align.trainable import trainable_pairs, up_to_stop
from llmray.train.engine import (
    Place,
    adapter_config,
    deepspeed_config,
    export,
    gather_weights,
    join_process_group,
    load_tokenizer,
    load_whole,
)
from llmray.train.loop import DivergedError
from llmray.train.meter import laps
from llmray.train.run_folder import METRICS, Line, read_metrics, reopen_metrics

_CHECKPOINTS, _WHOLE = "checkpoints", "llmray.json"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    steps: int
    counts: dict[str, int]
    """As in `trainable.Trainable`."""
    seconds: dict[str, float]
    """Where the time of this process went, by phase."""


def run(
    spec: AlignSpec, place: Place, *, folder: Path, export_to: Path, clock: Callable[[], float] = time.time
) -> Outcome:
    """Train from the start, or from the last whole checkpoint in the run folder, and write the model to `export_to`.

    Raises:
        DivergedError: the loss became NaN or infinite.
        InputError: the data or the model cannot be used.
    """
    lap = laps(clock)
    seconds: dict[str, float] = {}
    disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    torch.manual_seed(spec.seed)
    join_process_group(place)
    seconds["process_group"] = next(lap)
    tokenizer = load_tokenizer(spec.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    data = trainable_pairs(spec, tokenizer)
    seconds["data"] = next(lap)
    resume_from = _last_checkpoint(folder, place)
    recorder = _Recorder(spec, place, folder, resume_from, clock)
    arguments = _arguments(spec, place, folder)  # from here on, under ZeRO-3, models load in shards
    torch.manual_seed(spec.seed)
    trainer = DPOTrainer(
        model=load_whole(spec, tokenizer, option="align.max_length"),
        args=arguments,
        train_dataset=Dataset.from_list(list(data.conversations)),
        processing_class=tokenizer,
        peft_config=adapter_config(spec) if spec.method == "lora" else None,
        data_collator=_UpToStop(
            pad_token_id=tokenizer.pad_token_id, max_length=spec.max_length, stop_token_id=tokenizer.eos_token_id
        ),
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)
    seconds["engine"] = next(lap)
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    seconds["steps"] = next(lap)
    weights = gather_weights(trainer.model_wrapped, rank=place.rank)
    unset_hf_deepspeed_config()  # rank 0 loads alone below
    if place.rank == 0:
        shutil.rmtree(export_to, ignore_errors=True)
        export(export_to, weights, spec, tokenizer)
    dist.barrier()
    seconds["export"] = next(lap)
    return Outcome(steps=trainer.state.global_step, counts=dict(data.counts), seconds=seconds)


def _arguments(spec: AlignSpec, place: Place, folder: Path) -> DPOConfig:
    return DPOConfig(
        output_dir=str(folder / _CHECKPOINTS),
        deepspeed=deepspeed_config(spec),
        use_cpu=place.device == "cpu",
        ddp_backend="gloo" if place.device == "cpu" else "nccl",
        bf16=spec.dtype == "bfloat16",
        gradient_checkpointing=False,
        loss_type=["sigmoid", "sft"] if spec.sft_weight else ["sigmoid"],
        loss_weights=[1.0, spec.sft_weight] if spec.sft_weight else [1.0],
        beta=spec.beta,
        max_length=spec.max_length,
        max_steps=spec.max_steps,
        per_device_train_batch_size=spec.micro_batch,
        gradient_accumulation_steps=spec.accumulation,
        learning_rate=spec.lr,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(spec.warmup_fraction * spec.max_steps),
        max_grad_norm=spec.clip_norm,
        save_strategy="steps",
        save_steps=spec.checkpoint_every,
        # The older ones go before `on_save` marks the newest as whole: with one alone, a kill in between loses both.
        save_total_limit=max(2, spec.keep_checkpoints),
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=place.device != "cpu",
        seed=spec.seed,
    )


@dataclass
class _UpToStop(DataCollatorForPreference):
    """TRL's batches, with answers that end at their stop token."""

    stop_token_id: int = 0

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        ended = [
            {
                **example,
                **{name: up_to_stop(example[name], self.stop_token_id) for name in ("chosen_ids", "rejected_ids")},
            }
            for example in examples
        ]
        return super().torch_call(ended)


class _Recorder(TrainerCallback):
    """A line of metrics a step, the mark in a whole checkpoint, and the end of a run that diverged."""

    def __init__(
        self, spec: AlignSpec, place: Place, folder: Path, resume_from: Path | None, clock: Callable[[], float]
    ) -> None:
        self._spec, self._place, self._folder, self._clock = spec, place, folder, clock
        self._file: Any = None
        self._before: Line = {"core_seconds": 0.0, "tokens": 0}
        self._began = clock()
        if place.rank == 0:
            done = 0 if resume_from is None else int(resume_from.name.rpartition("-")[2])
            self._file = reopen_metrics(folder / METRICS, done)
            if known := read_metrics(folder / METRICS):
                self._before = known[-1]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = self._clock()

    def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, float], **___: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        if not math.isfinite(logs["loss"]):
            raise DivergedError(
                f"the loss is no longer a number at step {state.global_step}, learning rate "
                f"{logs['learning_rate']:.3g}: lower align.lr, or raise align.warmup_fraction. "
                f"The last checkpoint is kept"
            )
        if self._file is not None:
            cores = self._spec.num_workers * self._spec.cpus_per_worker
            used = self._before["core_seconds"] + (self._clock() - self._began) * cores
            line = {
                "step": state.global_step,
                **{ours: logs[theirs] for theirs, ours in _FIGURES.items() if theirs in logs},
                "tokens": self._before["tokens"] + int(logs.get("num_tokens", 0)),
                "core_seconds": round(used, 3),
            }
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def on_save(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        dist.barrier()
        if self._place.rank == 0:
            here = self._folder / _CHECKPOINTS / f"checkpoint-{state.global_step}"
            (here / _WHOLE).write_text(json.dumps({"step": state.global_step}))


def _last_checkpoint(folder: Path, place: Place) -> Path | None:
    """The newest whole checkpoint, the same on every rank; the others are removed, so that none can be taken for one."""
    whole: list[Path] = []
    for found in (folder / _CHECKPOINTS).glob("checkpoint-*"):
        if (found / _WHOLE).exists():
            whole.append(found)
        elif place.rank == 0:
            shutil.rmtree(found)
    dist.barrier()
    return max(whole, key=lambda found: int(found.name.rpartition("-")[2]), default=None)
