"""Claim: tokens/s at least 0.95x a bare DeepSpeed loop on the same batches; non-padding tokens/s at least 1.0x TRL 1.16's SFTTrainer and the HF Trainer on rows of equal length, 2x on rows of skewed lengths.

Two processes without Ray, one thread each, the same Llama, the same rows and the same number of rows (blocks) in a batch. Rounds
take all of them by turns, and a ratio is taken within its round; the median of the rounds counts. Nobody shards anything (ZeRO 0), since
the peers do not; llmray as it shards by default (ZeRO 2) stands beside them. Skewed rows are the
documentation's questions and answers; equal rows are its text in pieces of the block's length. TRL
with its own packing stands beside them.

    python benchmarks/training_speed.py
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import headline, versions, write_result
from training_peers import Curve, bare_deepspeed, hf_trainer, llmray_loop, tokens_per_s, trl_sft
from training_runs import llama, on_ranks, python_docs

from llmray import console
from llmray.artifact import Artifact
from llmray.data.snapshot import load_rows, write_snapshot
from llmray.train.base_model import BaseModelSpec
from llmray.train.spec import TrainSpec

SHAPE = BaseModelSpec(vocab_size=2048, hidden_size=256, intermediate_size=704, num_layers=4, num_heads=4)


def on_zero2(rank: int, folder: Path, spec: TrainSpec) -> Curve:
    """llmray's loop as it shards by default."""
    return llmray_loop(rank, folder, replace(spec, zero=2))


OURS = "llmray"
PEERS: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    OURS: (llmray_loop, ()),
    "llmray, ZeRO 2": (on_zero2, ()),
    "bare DeepSpeed": (bare_deepspeed, ()),
    "TRL SFTTrainer": (trl_sft, ({},)),
    "HF Trainer": (hf_trainer, ({},)),
    "TRL, packed": (trl_sft, ({"packing": True},)),
}
TARGETS = {
    "equal": {"bare DeepSpeed": 0.95, "TRL SFTTrainer": 1.0, "HF Trainer": 1.0},
    "skewed": {"bare DeepSpeed": 0.95, "TRL SFTTrainer": 2.0, "HF Trainer": 2.0},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train by turns, print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        folder = Path(scratch)
        data = python_docs(folder)
        spec = TrainSpec(
            model=llama(folder, data, SHAPE).uri, data=data.uri, max_length=256, micro_batch=4, max_steps=args.steps,
            zero=0, lr=1e-3, checkpoint_every=args.steps, eval_rows=0,
        )  # fmt: skip
        equal = replace(spec, objective="pretrain", data=one_text(folder, data).uri)
        found = {
            name: measured(rows, folder / name, args.rounds) for name, rows in (("equal", equal), ("skewed", spec))
        }
    print(headline())
    for name, lines in found.items():
        print(
            console.table(
                [f"rows of {name} length", "tokens/s", "llmray is", "target", "rounds"],
                [
                    [
                        *(who, f"{line['tokens_per_s']:,.0f}", f"{line['ratio']:.2f}x"),
                        *(str(TARGETS[name].get(who, "")), ", ".join(f"{ratio:.2f}" for ratio in line["ratios"])),
                    ]
                    for who, line in lines.items()
                ],
            )
        )
    met = {
        f"{name}: {who}": found[name][who]["ratio"] >= target for name in found for who, target in TARGETS[name].items()
    }
    body = {
        "versions": versions("torch", "deepspeed", "transformers", "trl"),
        "steps": args.steps,
        "found": found,
        "targets": TARGETS,
        "met": met,
    }
    print(write_result("training-speed", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


def measured(spec: TrainSpec, folder: Path, rounds: int) -> dict[str, Any]:
    """Tokens/s of each, and how llmray compares, by round and in the median."""
    speeds: dict[str, list[float]] = {name: [] for name in PEERS}
    for number in range(rounds):
        for name, (train, options) in PEERS.items():
            place = folder / f"{number}-{name.replace(' ', '-')}"
            curves = list(on_ranks(train, spec.num_workers, place, spec, *options))
            speeds[name].append(tokens_per_s(curves))
            print(f"{folder.name}, round {number}: {name} {speeds[name][-1]:,.0f} tokens/s", file=sys.stderr)
    found = {}
    for name, each in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(speeds[OURS], each, strict=True)]
        found[name] = {
            "tokens_per_s": round(statistics.median(each), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
    return found


def one_text(folder: Path, data: Artifact) -> Artifact:
    """All plain text of a snapshot as one row: cut into blocks, every piece but the last is as long as a block."""
    rows = load_rows(data.uri, shape="text", split="train", columns=["text"])
    text = "\n\n".join(rows["text"].to_pylist())
    return write_snapshot([{"text": text}], source="python-docs", root_uri=str(folder / "artifacts"))


if __name__ == "__main__":
    sys.exit(main())
