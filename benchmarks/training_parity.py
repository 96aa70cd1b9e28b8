"""Claim: ZeRO 0 to 3 with full, lora and qlora take the same 200 steps: losses within 1e-5 relative in float32, 1e-3 in bfloat16 and qlora.

Each method in each number format trains the same blocks under each ZeRO stage on two processes, without Ray. Every step's
loss is compared with that of stage 0; the figure is the largest relative difference of the 200 steps. Three shapes
(Llama, Qwen3, GPT-NeoX) are trained whole in float32. A Llama on one process that takes the same global batches by accumulation stands beside
it, as the number of workers must change nothing either.

    python benchmarks/training_parity.py
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from machine import headline, versions, write_result
from training_runs import alone, llama, python_docs, reshaped

from llmray import console
from llmray.errors import ConfigError
from llmray.train.base_model import BaseModelSpec
from llmray.train.model_run import Dtype, Method
from llmray.train.spec import TrainSpec

EXACT, ROUNDED = 1e-5, 1e-3
SHAPE = BaseModelSpec(vocab_size=1024, hidden_size=192, intermediate_size=512, num_layers=2, num_heads=3)


def main(argv: Sequence[str] | None = None) -> int:
    """Train by every method, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        folder = Path(scratch)
        data = python_docs(folder, every=10)
        base = llama(folder, data, SHAPE)
        spec = TrainSpec(
            model=base.uri, data=data.uri, max_length=128, micro_batch=4, max_steps=args.steps, lr=1e-3, weight_decay=0.1,
            lora_rank=8, checkpoint_every=args.steps, eval_rows=0,
        )  # fmt: skip
        found = [
            compared(f"{method}, {dtype}", replace(spec, method=method, dtype=dtype), folder)
            for method in get_args(Method)
            for dtype in get_args(Dtype)
        ]
        for name, config in other_shapes().items():
            model = reshaped(folder / name, base, config)
            found.append(compared(f"full, float32, {name}", replace(spec, model=model), folder))
    print(headline())
    print(
        console.table(
            ["what", "ZeRO 1", "ZeRO 2", "ZeRO 3", "1 worker", "target", "first loss", "last loss"],
            [
                [
                    line["what"],
                    *(shown(line["differences"][name]) for name in ("zero1", "zero2", "zero3", "alone")),
                    f"{line['target']:.0e}",
                    f"{line['losses'][0]:.3f}",
                    f"{line['losses'][-1]:.3f}",
                ]
                for line in found
            ],
        )
    )
    body = {
        "versions": versions("torch", "deepspeed", "transformers", "peft", "bitsandbytes"),
        "steps": args.steps,
        "parity": found,
        "met": all(line["met"] for line in found),
    }
    print(write_result("training-parity", __doc__.split("\n\n")[0], body).name)
    return 0


def compared(what: str, spec: TrainSpec, folder: Path) -> dict[str, Any]:
    """Largest relative difference of a step's loss from that under ZeRO 0, by what else was tried."""
    place = folder / what.replace(", ", "-")
    reference = losses(replace(spec, zero=0), place / "zero0")
    tried: Mapping[str, Mapping[str, int]] = {
        **{f"zero{zero}": {"zero": zero} for zero in (1, 2, 3)},
        "alone": {"num_workers": 1, "accumulation": 2},
    }
    differences: dict[str, float | str] = {}
    for name, change in tried.items():
        try:
            differences[name] = largest(reference, losses(replace(spec, **change), place / name))
        except ConfigError as error:
            differences[name] = str(error)
    target = EXACT if spec.dtype == "float32" and spec.method != "qlora" else ROUNDED
    met = all(value <= target for value in differences.values() if isinstance(value, float))
    print(f"{what}: {differences}", file=sys.stderr)
    return {"what": what, "differences": differences, "target": target, "losses": reference, "met": met}


def losses(spec: TrainSpec, folder: Path) -> list[float]:
    """The loss of every step."""
    return [line["loss"] for line in alone(spec, folder)["lines"]]


def largest(reference: Sequence[float], other: Sequence[float]) -> float:
    """Largest relative difference."""
    return max(abs(one - two) / abs(one) for one, two in zip(reference, other, strict=True))


def shown(difference: float | str) -> str:
    """A difference, or that the combination is refused."""
    return f"{difference:.1e}" if isinstance(difference, float) else "refused"


def other_shapes() -> dict[str, Any]:
    """Configs of the Llama's size, by architecture."""
    from transformers import GPTNeoXConfig, Qwen3Config

    sizes = {
        "vocab_size": SHAPE.vocab_size,
        "hidden_size": SHAPE.hidden_size,
        "intermediate_size": SHAPE.intermediate_size,
        "num_hidden_layers": SHAPE.num_layers,
        "num_attention_heads": SHAPE.num_heads,
        "max_position_embeddings": SHAPE.max_positions,
    }
    return {"Qwen3": Qwen3Config(**sizes, num_key_value_heads=1, head_dim=64), "GPT-NeoX": GPTNeoXConfig(**sizes)}


if __name__ == "__main__":
    sys.exit(main())
