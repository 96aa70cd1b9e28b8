"""The same training by every method, ZeRO stage and place, without Ray: each rank a process of its own that ends with the run.

Reads `parity` or `places`, the URI of a snapshot and a folder, and prints what came of each run as JSON, by name.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from alone import odd_token
from diverging_alone import Job, run
from shapes import config
from trouble import Trouble

from llmray.train.base_model import BaseModelSpec, make_base
from llmray.train.model_run import Method
from llmray.train.spec import TrainSpec
from llmray.train.template import load_tokenizer

for name in ("deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.stage3", "peft", "bitsandbytes"):
    importlib.import_module(name)  # once, not in each process

OTHER_SHAPES = ("Qwen3", "GPTNeoX")
SHARDED = BaseModelSpec(
    vocab_size=320, hidden_size=192, intermediate_size=192, num_layers=1, num_heads=3, max_positions=128
)
"""Linear layers of 18 KiB in four bits: ZeRO-3 leaves those below 10,000 numbers whole."""


def parity(model: str, data_uri: str, root: Path) -> Mapping[str, Job]:
    """Every method on every stage, other shapes of model on every stage, and some on two ranks."""
    plain = spec_of(model, data_uri)
    alone = {
        f"{method}_zero{zero}": replace(plain, method=method, zero=zero)
        for method in get_args(Method)
        for zero in range(4)
    }
    shaped = {
        f"{name}_zero{zero}": replace(plain, model=made, zero=zero)
        for name in OTHER_SHAPES
        for made in [of_shape(name, model, root)]
        for zero in range(4)
    }
    by_two = {
        f"{name}_by_two": replace(alone[name], num_workers=2, accumulation=1) for name in ("full_zero3", "qlora_zero3")
    }
    return {name: Job(spec=spec) for name, spec in {**alone, **shaped, **by_two}.items()}


def of_shape(name: str, model: str, root: Path) -> str:
    """A model of another architecture with the same tokenizer, its matrices large enough to be sharded."""
    words = load_tokenizer(model)
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 128, "vocab_size": len(words)}
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config(name, **sizes)).save_pretrained(root / name)
    words.save_pretrained(root / name)
    return str(root / name)


def places(model: str, data_uri: str, root: Path) -> Mapping[str, Job]:
    """The same with something else in what must change no loss, and what came of it."""
    plain = spec_of(model, data_uri)
    qlora = replace(plain, method="qlora")
    offloaded = replace(plain, offload="optimizer")
    unseen = replace(plain, eval_every=0, eval_rows=0)
    poisoned = Trouble(nan_gradient_of=odd_token(load_tokenizer(model)))
    return {
        "full_zero2_optimizer": Job(spec=offloaded),
        "full_zero3_all": Job(spec=replace(plain, zero=3, offload="all")),
        "qlora_zero3_all": Job(spec=replace(qlora, zero=3, offload="all")),
        "full_zero2_optimizer_resumed": Job(
            spec=offloaded, resume_from=root / "full_zero2_optimizer" / "checkpoints" / "4"
        ),
        "gradient": Job(spec=replace(offloaded, micro_batch=1, accumulation=1, seed=1), trouble=poisoned),
        "full_zero2_again": Job(spec=replace(plain, gradient_checkpointing=True)),
        "lora_zero3_again": Job(spec=replace(plain, method="lora", zero=3, gradient_checkpointing=True)),
        "qlora_zero3_again": Job(spec=replace(qlora, zero=3, gradient_checkpointing=True)),
        "qlora_zero2_resumed": Job(spec=qlora, resume_from=root / "qlora_zero2" / "checkpoints" / "4"),
        "qlora_zero3_unseen": Job(spec=replace(unseen, method="qlora", zero=3)),
        "bf16": Job(spec=replace(qlora, dtype="bfloat16")),
    }


def spec_of(model: str, data_uri: str) -> TrainSpec:
    return TrainSpec(
        model=model, data=data_uri, num_workers=1, max_length=96, micro_batch=2, accumulation=2, max_steps=8, lr=2e-3,
        clip_norm=0.5, lora_rank=4, checkpoint_every=4, eval_every=4,
    )  # fmt: skip


def main(group: str, data_uri: str, root: Path) -> dict[str, Any]:
    model = make_base(data_uri, SHARDED, root_uri=str(root)).uri
    made = parity(model, data_uri, root) if group == "parity" else places(model, data_uri, root)
    return {"model": model, **{name: run(job, root / name) for name, job in made.items()}}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
