"""Claim: a QLoRA model merged into 16-bit weights answers as its adapter on the 4-bit base does: KL of the next-token distributions at most 1e-3 nats.

A small Llama is pre-trained for a while, so that its weights have a scale and its answers a shape; adapters are trained on it in
four bits, in bfloat16. On held-out conversations the exported model (merged, bfloat16) is then compared, token for token, with the
adapter of the same export on the same 4-bit base, which is what was trained: mean KL(adapter || merged), and the
largest. Beside it the usual way, the adapter merged into the weights as they were before quantization.

    python benchmarks/training_merge.py
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import headline, versions, write_result
from training_runs import alone, on_ranks, pretrained, python_docs

from llmray import console
from llmray.train.base_model import BaseModelSpec
from llmray.train.spec import TrainSpec

MOST = 1e-3
SHAPE = BaseModelSpec(vocab_size=2048, hidden_size=256, intermediate_size=704, num_layers=4, num_heads=4)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, merge, compare, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="merge-") as scratch:
        folder = Path(scratch)
        data = python_docs(folder, every=2)
        before = pretrained(folder, data, SHAPE, steps=args.pretrain_steps, mix=0.3)
        adapters = TrainSpec(
            model=before["model"], data=data.uri, method="qlora", dtype="bfloat16", max_length=256, micro_batch=4,
            max_steps=args.steps, checkpoint_every=args.steps, lr=1e-3,
        )  # fmt: skip
        after = alone(adapters, folder / "qlora")
        [found] = on_ranks(compared, 1, folder / "compared", adapters, folder / "qlora" / "export")
    print(headline())
    print(f"held-out loss: pre-trained {before['heldout_loss']:.3f}, then with adapters {after['heldout_loss']:.3f}")
    print(
        console.table(
            ["merged into", "KL mean", "KL 99.9%", "KL most", "same first choice", "loss"],
            [
                [
                    *(name, f"{of['mean']:.1e}", f"{of['p999']:.1e}", f"{of['most']:.1e}"),
                    *(f"{of['same_choice']:.2%}", f"{of['loss']:.4f}"),
                ]
                for name, of in found["kl"].items()
            ],
        )
    )
    print(f"over {found['tokens']:,} tokens; the adapter's own loss {found['loss']:.4f}")
    body = {
        "versions": versions("torch", "transformers", "peft", "bitsandbytes"),
        "steps": [args.pretrain_steps, args.steps],
        **found,
        "met": found["kl"]["weights as trained (llmray)"]["mean"] <= MOST,
    }
    print(write_result("training-merge", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


def compared(_: int, __: Path, spec: TrainSpec, export: Path) -> dict[str, Any]:
    """KL and loss over the held-out blocks."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from llmray.train.blocks import heldout_blocks
    from llmray.train.engine import load_whole
    from llmray.train.template import load_tokenizer

    tokenizer = load_tokenizer(spec.model)
    blocks = heldout_blocks(replace(spec, eval_rows=200), tokenizer)
    trained = PeftModel.from_pretrained(load_whole(spec, tokenizer, option="train.max_length"), export / "adapter")
    base = AutoModelForCausalLM.from_pretrained(spec.model, dtype=torch.float32)
    usual = PeftModel.from_pretrained(base, export / "adapter").merge_and_unload().to(torch.bfloat16)
    merged = AutoModelForCausalLM.from_pretrained(export, dtype=torch.bfloat16)
    with torch.no_grad():
        reference, loss = predictions(trained, blocks)
        kl = {}
        for name, model in (("weights as trained (llmray)", merged), ("weights before quantization", usual)):
            other, its_loss = predictions(model, blocks)
            away = (reference.exp() * (reference - other)).sum(-1)
            kl[name] = {
                "mean": float(away.mean()),
                "p999": float(away.quantile(0.999)),
                "most": float(away.max()),
                "same_choice": float((reference.argmax(-1) == other.argmax(-1)).double().mean()),
                "loss": its_loss,
            }
    return {"kl": kl, "tokens": len(reference), "loss": loss}


def predictions(model: Any, blocks: Sequence[Any]) -> tuple[Any, float]:
    """Log-probabilities (tokens, vocabulary) at the trained tokens, float64, and their mean loss."""
    import torch

    model.eval()
    found, losses = [], []
    for block in blocks:
        labels = torch.from_numpy(block.labels)
        logits = model(
            input_ids=torch.from_numpy(block.input_ids)[None],
            position_ids=torch.from_numpy(block.position_ids)[None],
            use_cache=False,
        ).logits[0]
        at = labels >= 0
        found.append(logits[at].double().log_softmax(-1))
        losses.append(-found[-1].gather(1, labels[at, None]))
    return torch.cat(found), float(torch.cat(losses).mean())


if __name__ == "__main__":
    sys.exit(main())
