"""Claim: llmray's loop trains a Llama of 1.2 billion parameters in bfloat16 at 45% MFU or more on an H200.

No Ray: the loop alone, on one GPU, full, lora and qlora. Beside each a bare PyTorch loop on the same batches with the same
model, adapters and four-bit weights: forward, backward, clipping, fused AdamW. Tokens per second are those that are not padding, after
three steps to warm up; MFU is llmray's own meter's, of the card's dense bfloat16 peak; memory is the allocator's peak. Each run has a
process of its own. `--tiny` runs all of it in a minute on a CPU, to see that it works.

    PYTHONPATH=benchmarks python benchmarks/gpu/training_gpu.py
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from machine import GIB, headline, versions, write_result
from training_runs import Stamped, llama, on_ranks, python_docs, reshaped

from llmray import console
from llmray.train.base_model import BaseModelSpec
from llmray.train.model_run import Method
from llmray.train.spec import TrainSpec

AIM = 0.45
WARM = 3
TOKENIZER = BaseModelSpec(vocab_size=8192, hidden_size=64, intermediate_size=64, num_layers=1, num_heads=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Train by each method, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU; writes no result")
    args = parser.parse_args(argv)
    device = "cpu" if args.tiny else "cuda:0"
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        folder = Path(scratch)
        data = python_docs(folder)
        model = reshaped(folder / "model", llama(folder, data, TOKENIZER), config(tiny=args.tiny))
        spec = TrainSpec(
            model=model, data=data.uri, objective="pretrain", num_workers=1, gpus_per_worker=0.0 if args.tiny else 1.0,
            max_length=128 if args.tiny else args.max_length, micro_batch=1 if args.tiny else args.micro_batch,
            max_steps=args.steps, lr=1e-4, dtype="bfloat16", zero=1, checkpoint_every=args.steps, eval_rows=0,
        )  # fmt: skip
        specs = {method: spec if method == "full" else replace(spec, objective="sft") for method in get_args(Method)}
        found = {
            f"{name}, {method}": next(
                on_ranks(train, 1, folder / f"{name}-{method}", replace(of, method=method), device)
            )
            for method, of in specs.items()
            for name, train in (("llmray", with_llmray), ("bare PyTorch", bare))
        }
    rows = [
        [name, f"{line['tokens_per_s']:,.0f}", shown(line.get("mfu")), f"{line['peak_gib']:.1f}", f"{line['loss']:.3f}"]
        for name, line in found.items()
    ]
    print(headline())
    print(console.table([device_name(device), "tokens/s", "MFU", "peak GiB", "last loss"], rows))
    if not args.tiny:
        body = {
            "device": device_name(device),
            "versions": versions("torch", "deepspeed", "transformers", "bitsandbytes", "peft"),
            "found": found,
            "met": (found["llmray, full"].get("mfu") or 0.0) >= AIM,
        }
        print(write_result("training-gpu", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


def config(*, tiny: bool) -> Any:
    """Llama 3.2 1B's shape, or one of a few thousand parameters."""
    from transformers import LlamaConfig

    if tiny:
        return LlamaConfig(
            vocab_size=8192, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=True, max_position_embeddings=256, dtype="bfloat16",
        )  # fmt: skip
    return LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, max_position_embeddings=8192,
        rope_theta=500_000.0, dtype="bfloat16",
    )  # fmt: skip


def with_llmray(_: int, folder: Path, spec: TrainSpec, device: str) -> dict[str, Any]:
    """The loop as it is."""
    from llmray.train import loop
    from llmray.train.engine import Place

    hooks = Stamped(folder / "checkpoints")
    outcome = loop.run(spec, Place(device=device), hooks, resume_from=None, export_to=folder / "export")
    warm, last = hooks.lines[WARM - 1], hooks.lines[-1]
    return {
        "tokens_per_s": (last["tokens"] - warm["tokens"]) / (last["ended"] - warm["ended"]),
        "mfu": last.get("mfu"),
        "peak_gib": outcome.memory["peak"] / GIB,
        "loss": last["loss"],
    }


def bare(_: int, __: Path, spec: TrainSpec, device: str) -> dict[str, Any]:
    """Forward, backward, clip, step, over the same batches."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from llmray.train.blocks import train_blocks
    from llmray.train.cursor import Cursor
    from llmray.train.engine import load_model
    from llmray.train.memory import peak_bytes
    from llmray.train.template import load_tokenizer

    tokenizer = load_tokenizer(spec.model)
    blocks = train_blocks(spec, tokenizer).blocks
    model = load_model(spec, tokenizer)
    if spec.method == "full":
        model.float()
    model.to(device).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.lr, betas=(0.9, spec.beta2), weight_decay=0.0, fused=True)
    cursor = Cursor(num_blocks=len(blocks), seed=spec.seed, next_index=0)
    tokens, ended, value = [], [], 0.0
    for _step in range(spec.max_steps):
        batch = [blocks[index] for index in cursor.take(spec.global_batch)]
        cursor = cursor.advance(spec.global_batch)
        input_ids, labels, position_ids = (
            torch.from_numpy(np.stack([getattr(block, name) for block in batch])).to(device)
            for name in ("input_ids", "labels", "position_ids")
        )
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, spec.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        tokens.append(sum(block.num_tokens for block in batch))
        ended.append(time.perf_counter())
    return {
        "tokens_per_s": sum(tokens[WARM:]) / (ended[-1] - ended[WARM - 1]),
        "peak_gib": peak_bytes(device) / GIB,
        "loss": value,
    }


def device_name(device: str) -> str:
    """The card's name."""
    import torch

    return "CPU" if device == "cpu" else str(torch.cuda.get_device_name(device))


def shown(share: float | None) -> str:
    """MFU, where it is known."""
    return "" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    sys.exit(main())
