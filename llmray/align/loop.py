"""DPO with TRL's trainer under DeepSpeed: one process among the workers; it knows no Ray.

The reference is the starting model: a second copy, or under LoRA the same one with its adapters off. Checkpoints are
the Hugging Face trainer's own, with DeepSpeed's shards in them (see `recorder.py`). Rejected: writing the loss ourselves as in
`llmray.train.loop`, since here nothing hangs on packing and TRL's is the one that others check; and TRL's precomputed
reference log-probabilities, whose cache on disk is keyed by hashes that differ between ranks.
"""

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
from transformers import PrinterCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import DPOConfig

from llmray.align.recorder import CHECKPOINTS, Recorder, last_checkpoint
from llmray.align.spec import AlignSpec
from llmray.align.traced import PAIR, Collator, TracedTrainer
from llmray.align.trainable import trainable_pairs
from llmray.prices import NO_PRICES, PriceList
from llmray.train.divergence import Limits
from llmray.train.engine import (
    Place,
    adapter_config,
    deepspeed_config,
    export,
    gather_weights,
    join_process_group,
    load_whole,
)
from llmray.train.meter import laps
from llmray.train.template import load_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    steps: int
    counts: dict[str, int]
    """As in `trainable.Trainable`."""
    seconds: dict[str, float]
    """Where the time of this process went, by phase."""


def run(
    spec: AlignSpec,
    place: Place,
    *,
    folder: Path,
    export_to: Path,
    prices: PriceList = NO_PRICES,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """Train from the start, or from the last whole checkpoint in the run folder, and write the model to `export_to`.

    Raises:
        DivergedError: the loss, its gradient or the weights became NaN or infinite, or the loss stayed too high.
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
    resume_from = last_checkpoint(folder, place)
    recorder = Recorder(
        spec,
        place,
        folder=folder,
        resume_from=resume_from,
        limits=_limits(spec, tokenizer),
        clock=clock,
        prices=prices,
    )
    arguments = _arguments(spec, place, folder)  # from here on, under ZeRO-3, models load in shards
    torch.manual_seed(spec.seed)
    trainer = TracedTrainer(
        model=load_whole(spec, tokenizer, option="align.max_length"),
        args=arguments,
        train_dataset=Dataset.from_list([{**said, PAIR: at} for at, said in enumerate(data.conversations)]),
        processing_class=tokenizer,
        peft_config=adapter_config(spec) if spec.method == "lora" else None,
        data_collator=Collator(
            pad_token_id=tokenizer.pad_token_id, max_length=spec.max_length, stop_token_id=tokenizer.eos_token_id
        ),
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.rows, recorder.trainer = data.rows, trainer
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


def _limits(spec: AlignSpec, tokenizer: Any) -> Limits:
    knows_nothing = math.log(2) + spec.sft_weight * math.log(len(tokenizer))
    return Limits(guess=knows_nothing, sigmas=spec.divergence_sigmas, steps=spec.divergence_steps)


def _arguments(spec: AlignSpec, place: Place, folder: Path) -> DPOConfig:
    deepspeed = deepspeed_config(spec)
    return DPOConfig(
        output_dir=str(folder / CHECKPOINTS),
        deepspeed=deepspeed,
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
        max_grad_norm=deepspeed["gradient_clipping"],
        save_strategy="steps",
        save_steps=spec.checkpoint_every,
        # The older ones go before `on_save` marks the newest as whole: with one alone, a kill in between loses both.
        save_total_limit=max(2, spec.keep_checkpoints),
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=place.device != "cpu",
        seed=spec.seed,
    )
