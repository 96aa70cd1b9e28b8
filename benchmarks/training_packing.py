"""Claim: packed, every token has the loss and every weight the gradient of rows run alone, within 1e-5 in float32.

Real conversations (GSM8K, training part) are tokenized and packed as a run does it, into blocks of `--length` tokens, and
go through models of three architectures as they do in the loop: position ids that start again, no attention mask, no
cache. Each row then goes through alone. Compared are the loss of every trained token, and the gradient of the sum of
losses by weight (norm of the difference over norm). Beside it stands the leaking way: the same blocks with positions
that run on, in which a document sees those before it.

    python benchmarks/training_packing.py $LLMRAY_DATA
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from machine import headline, versions, write_result

from llmray import console
from llmray.data.snapshot import write_snapshot
from llmray.train.base_model import BOS, EOS, PAD, learn_tokenizer
from llmray.train.blocks import read_rows, train_blocks
from llmray.train.forward import token_losses
from llmray.train.named_templates import NAMED
from llmray.train.packing import IGNORED, Block, documents
from llmray.train.spec import TrainSpec

MOST = 1e-5
FILE = "gsm8k_train.jsonl"
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    losses: torch.Tensor
    """Of every trained token, in the order of blocks and documents."""
    gradients: dict[str, torch.Tensor]
    """Of the sum of losses, by weight."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help=f"folder with {FILE}")
    parser.add_argument("--rows", type=int, default=60, help="conversations")
    parser.add_argument("--length", type=int, default=512, help="tokens in a block")
    args = parser.parse_args(argv)
    if not (args.data / FILE).is_file():
        raise SystemExit(f"{args.data} has no {FILE}: name the folder of the public datasets, see benchmarks/README.md")
    torch.set_num_threads(1)
    blocks, words = packed(args)
    apart = [document for block in blocks for document in documents(block)]
    leaking = [replace(block, position_ids=np.arange(args.length)) for block in blocks]
    found = {}
    for name, config in shapes(words).items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        alone = seen(model, apart)
        found[name] = {
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "packed": differences(seen(model, blocks), alone),
            "leaking": differences(seen(model, leaking), alone),
        }
    print(headline())
    print(console.table(["model", "parameters", "way", "loss", "gradient"], list(rows_of(found))))
    targets = sum(block.num_targets for block in blocks)
    met = all(value <= MOST for each in found.values() for value in each["packed"].values())
    print(
        f"{len(apart)} rows, {targets:,} trained tokens in {len(blocks)} blocks; largest relative differences; {met=}"
    )
    body = {
        "versions": versions("torch", "transformers"),
        "rows": len(apart),
        "blocks": len(blocks),
        "block_length": args.length,
        "trained_tokens": targets,
        "largest_relative_difference": found,
        "met": met,
    }
    print(write_result("training-packing", __doc__.split("\n\n")[0], body).name)
    return 0


def packed(args: argparse.Namespace) -> tuple[list[Block], Any]:
    """Blocks of the first conversations as a run makes them, and the tokenizer learned from them."""
    lines = (args.data / FILE).read_text(encoding="utf-8").splitlines()[: args.rows]
    records = [{name: json.loads(line)[name] for name in ("question", "answer")} for line in lines]
    with tempfile.TemporaryDirectory(prefix="packing-") as folder:
        data = write_snapshot(records, source=FILE, root_uri=folder)
        rows = read_rows(data.uri, shape="messages", split="train")
        texts = ["\n".join(message["content"] for message in messages) for _, messages in rows]
        words = transformers.PreTrainedTokenizerFast(
            tokenizer_object=learn_tokenizer(texts, vocab_size=4096), bos_token=BOS, eos_token=EOS, pad_token=PAD
        )
        words.chat_template = NAMED["plain"].jinja
        spec = TrainSpec(data=data.uri, max_length=args.length, too_long="refuse")
        return list(train_blocks(spec, words).blocks), words


def shapes(words: Any) -> dict[str, Any]:
    """Configs of the three architectures."""
    sizes = {**SIZES, "vocab_size": len(words)}
    return {
        "Llama": transformers.LlamaConfig(**sizes, num_key_value_heads=2),
        "Qwen3": transformers.Qwen3Config(**sizes, num_key_value_heads=2, head_dim=64),
        "GPT-NeoX": transformers.GPTNeoXConfig(**sizes),
    }


def seen(model: Any, blocks: Sequence[Block]) -> Seen:
    """Losses and gradients, a block at a time."""
    model.train()
    model.zero_grad()
    losses = []
    for block in blocks:
        losses_BT = token_losses(model, [block], "cpu")
        losses_BT.sum().backward()
        losses.append(losses_BT.detach()[0, torch.from_numpy(block.labels != IGNORED)])
    return Seen(
        losses=torch.cat(losses), gradients={name: weight.grad.clone() for name, weight in model.named_parameters()}
    )


def differences(here: Seen, alone: Seen) -> dict[str, float]:
    """The largest relative ones."""
    gradients = (
        float((gradient - alone.gradients[name]).norm() / alone.gradients[name].norm())
        for name, gradient in here.gradients.items()
    )
    return {
        "loss": float(((here.losses - alone.losses).abs() / alone.losses).max()),
        "gradient": max(gradients),
    }


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """Lines of the table."""
    return [
        [name, f"{each['parameters'] / 1e6:.1f} M", way, f"{each[way]['loss']:.1e}", f"{each[way]['gradient']:.1e}"]
        for name, each in found.items()
        for way in ("packed", "leaking")
    ]


if __name__ == "__main__":
    sys.exit(main())
