"""Train on one process without Ray, each run in a process of its own (DeepSpeed's state outlives a run).

Prints what came of each run as JSON, by name.
"""

import json
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny_training import base

from llmray import artifact
from llmray.errors import ConfigError, InputError
from llmray.train import loop
from llmray.train.blocks import read_rows, train_blocks
from llmray.train.divergence import DivergedError
from llmray.train.engine import Place, load_model
from llmray.train.forward import token_losses
from llmray.train.hooks import Alone
from llmray.train.packing import pack
from llmray.train.spec import TrainSpec
from llmray.train.template import conversations, load_tokenizer

ODD = "Ω"
"""Its first byte is in one row of the data alone."""


class Memory(Alone):
    """Keeps every report as well."""

    def __init__(self, checkpoints: Path) -> None:
        super().__init__(checkpoints)
        self.reports: list[tuple[int, bool]] = []

    def report(self, line: dict[str, Any], checkpoint: Path | None) -> None:
        self.reports.append((line["step"], checkpoint is not None))


def train(job: tuple[TrainSpec, Path, float | None]) -> dict[str, Any]:
    spec, export_to, deadline = job
    torch.set_num_threads(1)
    hooks, ticks = Memory(export_to.with_name(f"{export_to.name}-checkpoint")), iter(range(1000))
    try:
        outcome = loop.run(
            spec,
            Place(),
            hooks,
            resume_from=None,
            export_to=export_to,
            deadline=deadline,
            clock=lambda: float(next(ticks)),
        )
    except DivergedError as error:
        return {"diverged": str(error), "steps": len(hooks.lines)}
    except (ConfigError, InputError) as error:
        return {"refused": str(error)}
    return {"lines": hooks.lines, "reports": hooks.reports, "outcome": asdict(outcome)}


def losses(job: tuple[TrainSpec]) -> dict[str, float]:
    """Summed loss of the same rows packed, one a block, and packed with positions that run on."""
    [spec] = job
    torch.set_num_threads(1)
    words = load_tokenizer(spec.model)
    model = load_model(spec, words)
    rows = read_rows(spec.data, shape="messages", split="train")
    by_row, _ = conversations(words, rows, max_length=spec.max_length)
    examples = [example for those in by_row for example in those]
    packed = pack(examples, max_length=spec.max_length, pad_id=words.pad_token_id)
    apart = [pack([one], max_length=spec.max_length, pad_id=words.pad_token_id)[0] for one in examples]
    running_on = [replace(block, position_ids=np.arange(spec.max_length)) for block in packed]
    with torch.no_grad():
        return {
            "blocks": len(packed),
            "rows": len(apart),
            "targets": sum(block.num_targets for block in packed),
            **{
                name: sum(float(token_losses(model, [block], "cpu").sum()) for block in blocks)
                for name, blocks in (("packed", packed), ("apart", apart), ("running_on", running_on))
            },
        }


def poisoned(folder: Path, model: artifact.Artifact) -> str:
    """A model that answers NaN wherever it sees the odd byte."""
    words = load_tokenizer(model.uri)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    broken = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        broken.model.embed_tokens.weight[odd_token(words)] = torch.nan
    broken.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def narrow(folder: Path, words: Any) -> str:
    """A model with fewer embeddings than its tokenizer has tokens."""
    config = transformers.LlamaConfig(
        vocab_size=len(words) - 1, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def knowing_chatml(folder: Path, words: Any) -> str:
    """A model whose tokenizer knows the tokens of a named template and has another stop token."""
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=words.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def odd_token(words: Any) -> int:
    return int(words(ODD)["input_ids"][0])


def main(data_uri: str, root: Path) -> dict[str, Any]:
    model = base(root, artifact.load(data_uri))
    words = load_tokenizer(model.uri)
    small = TrainSpec(
        model=model.uri, data=data_uri, num_workers=1, max_length=96, micro_batch=4, max_steps=8, lr=1e-2,
        checkpoint_every=3, eval_every=4, weight_decay=0.1,
    )  # fmt: skip
    blocks = train_blocks(small, words).blocks
    bad_rows = sorted(row for block in blocks if odd_token(words) in block.input_ids for row in block.rows)
    diverging = replace(
        small, model=poisoned(root / "poisoned", model), micro_batch=1, accumulation=len(blocks), max_steps=1
    )
    chatml = knowing_chatml(root / "chatml_model", load_tokenizer(model.uri))
    runs: dict[str, tuple[Callable[[Any], Any], tuple[Any, ...]]] = {
        "losses": (losses, (small,)),
        "plain": (train, (small, root / "plain", None)),
        "accumulated": (train, (replace(small, micro_batch=1, accumulation=4), root / "accumulated", None)),
        "early": (train, (small, root / "early", 14.0)),
        "too_large": (train, (replace(small, micro_batch=1 << 20), root / "too_large", None)),
        "chatml": (train, (replace(small, model=chatml, template="chatml", max_steps=1), root / "chatml", None)),
        "narrow": (train, (replace(small, model=narrow(root / "narrow_model", words)), root / "narrow", None)),
        "diverging": (train, (diverging, root / "diverging", None)),
    }
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        results = {name: pool.apply(run, (job,)) for name, (run, job) in runs.items()}
    return {"base": model.digest, "bad_rows": bad_rows, "rows": sorted({r for b in blocks for r in b.rows}), **results}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
