"""The same rows trained by llmray's loop, by a bare DeepSpeed loop, and by the trainers of TRL and transformers.

Each is a function for `training_runs.on_ranks`: it trains on this rank and returns a `Curve`. The rows are the documents of
llmray's own blocks, so all see the same tokens and train the same ones. The peers run as their users run them on a CPU (torch's
DistributedDataParallel over gloo, eight rows padded to the longest), with llmray's optimizer settings.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from training_runs import Stamped

from llmray.train.spec import TrainSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    tokens: list[int]
    """Tokens of each step on this rank that are not padding; under llmray those of all ranks, and 0 on the others."""
    ended: list[float]
    """When each step ended, in seconds of this rank's clock."""


def tokens_per_s(curves: Sequence[Curve], *, skip: int = 2) -> float:
    """Of all ranks together, the first steps left out."""
    ended = curves[0].ended
    return sum(sum(curve.tokens[skip:]) for curve in curves) / (ended[-1] - ended[skip - 1])


def llmray_loop(rank: int, folder: Path, spec: TrainSpec) -> Curve:
    """llmray's loop, metrics and all; the model goes to `export`."""
    from llmray.train import loop
    from llmray.train.engine import Place

    hooks = Stamped(folder / "checkpoints")
    place = Place(rank=rank, world_size=spec.num_workers, ranks_on_node=spec.num_workers)
    loop.run(spec, place, hooks, resume_from=None, export_to=folder / "export")
    totals = [0, *(line["tokens"] for line in hooks.lines)]
    return Curve(
        tokens=[after - before for before, after in pairwise(totals)] or [0] * spec.max_steps,
        ended=[line["ended"] for line in hooks.lines],
    )


def bare_deepspeed(rank: int, _: Path, spec: TrainSpec) -> Curve:
    """Nothing but forward, backward and step over the same batches, made beforehand."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from llmray.train.blocks import train_blocks
    from llmray.train.cursor import Cursor, share
    from llmray.train.engine import Place, join_process_group, load_model, make_engine
    from llmray.train.template import load_tokenizer

    place = Place(rank=rank, world_size=spec.num_workers, ranks_on_node=spec.num_workers)
    join_process_group(place)
    tokenizer = load_tokenizer(spec.model)
    blocks = train_blocks(spec, tokenizer).blocks
    engine = make_engine(load_model(spec, tokenizer), spec)
    cursor = Cursor(num_blocks=len(blocks), seed=spec.seed, next_index=0)
    batches = []
    for _step in range(spec.max_steps):
        batch = cursor.take(spec.global_batch)
        cursor = cursor.advance(spec.global_batch)
        passes = [
            [
                torch.from_numpy(np.stack([getattr(blocks[index], name) for index in indices]))
                for name in ("input_ids", "labels", "position_ids")
            ]
            for indices in share(batch, rank=rank, num_workers=spec.num_workers, micro_batch=spec.micro_batch)
        ]
        mine = share(batch, rank=rank, num_workers=spec.num_workers, micro_batch=spec.micro_batch)
        batches.append((passes, sum(blocks[index].num_tokens for indices in mine for index in indices)))
    ended = []
    engine.train()
    for passes, _tokens in batches:
        for input_ids, labels, position_ids in passes:
            logits = engine(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
            engine.backward(cross_entropy(logits.flatten(0, 1), labels.flatten()))
            engine.step()
        ended.append(time.perf_counter())
    return Curve(tokens=[tokens for _, tokens in batches], ended=ended)


def rows_of(spec: TrainSpec, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Every document of llmray's blocks as `input_ids` and `labels`, in the order of the snapshot's rows."""
    from llmray.train.blocks import train_blocks
    from llmray.train.packing import IGNORED, documents

    found = [document for block in train_blocks(spec, tokenizer).blocks for document in documents(block)]
    found.sort(key=lambda document: (str(document.rows[0]), document.input_ids.tolist()))
    return [{"input_ids": one.input_ids.tolist(), "labels": [IGNORED, *one.labels[:-1].tolist()]} for one in found]


def trl_sft(rank: int, folder: Path, spec: TrainSpec, options: Mapping[str, Any]) -> Curve:
    """TRL's SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, rows, callback = _for_peer(spec)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**_arguments(spec, folder, {"max_length": spec.max_length, **options})),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    return _trained(trainer, callback, rank, folder)


def hf_trainer(rank: int, folder: Path, spec: TrainSpec, options: Mapping[str, Any]) -> Curve:
    """transformers' Trainer."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer, rows, callback = _for_peer(spec)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**_arguments(spec, folder, options)),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[callback],
    )
    return _trained(trainer, callback, rank, folder)


def heldout_loss(_: int, __: Path, spec: TrainSpec, exports: Sequence[Path], rows: int) -> list[float]:
    """Mean loss in nats per trained token over the first held-out rows, each alone in its batch, of several models."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmray.train.blocks import heldout_blocks
    from llmray.train.packing import documents

    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    alone = [one for block in heldout_blocks(replace(spec, eval_rows=rows), tokenizer) for one in documents(block)]
    found = []
    for export in exports:
        model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
        total = 0.0
        with torch.no_grad():
            for one in alone:
                logits = model(torch.from_numpy(one.input_ids)[None], use_cache=False).logits[0]
                total += float(cross_entropy(logits, torch.from_numpy(one.labels), reduction="sum"))
        found.append(total / sum(one.num_targets for one in alone))
    return found


def _for_peer(spec: TrainSpec) -> tuple[Any, Any, Any, Any]:
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ended: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended.append(time.perf_counter())

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=getattr(torch, spec.dtype))
    return model, tokenizer, Dataset.from_list(rows_of(spec, tokenizer)), Clock()


def _arguments(spec: TrainSpec, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    import math

    return {
        "output_dir": str(folder / "peer"),
        "use_cpu": True,
        "ddp_backend": "gloo",
        "ddp_find_unused_parameters": False,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_steps": spec.max_steps,
        "per_device_train_batch_size": spec.micro_batch,
        "gradient_accumulation_steps": spec.accumulation,
        "learning_rate": spec.lr,
        "lr_scheduler_type": spec.schedule,
        "warmup_steps": math.ceil(spec.warmup_fraction * spec.max_steps),
        "adam_beta2": spec.beta2,
        "weight_decay": spec.weight_decay,
        "max_grad_norm": spec.clip_norm,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": spec.seed,
        "dataloader_pin_memory": False,
        **options,
    }


def _trained(trainer: Any, callback: Any, rank: int, folder: Path) -> Curve:
    """Train, count what the collator hands out on the way, and write the model to `export`."""
    collate, tokens = trainer.data_collator, []

    def counting(rows: Sequence[Any]) -> Any:
        batch = collate(rows)
        mask = batch.get("attention_mask")
        tokens.append(int(batch["input_ids"].numel() if mask is None else mask.sum()))
        return batch

    trainer.data_collator = counting
    trainer.args.remove_unused_columns = False
    trainer.train()
    if rank == 0:
        trainer.model.save_pretrained(folder / "export")
        trainer.processing_class.save_pretrained(folder / "export") if trainer.processing_class else None
    passes = trainer.args.gradient_accumulation_steps
    steps = len(callback.ended)
    return Curve(
        tokens=[sum(tokens[at : at + passes]) for at in range(0, steps * passes, passes)], ended=callback.ended
    )
