"""Claim: the held-out loss after the same tokens is no worse than that of TRL 1.16's SFTTrainer, over 5 seeds.

A pre-trained small Llama learns the same questions and answers for one epoch: packed by llmray, padded by TRL, with as many rows in
TRL's batch as lie in llmray's blocks on average, so that the number of steps and the tokens of a step agree. Optimizer, schedule, clipping
and the trained tokens are the same; the seed draws the order. Both models are judged by one piece of code, on held-out rows one by
one. What counts is the mean of the differences by seed, with its 95% interval (Student's t).

    python benchmarks/training_heldout.py
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from machine import headline, versions, write_result
from scipy import stats
from training_peers import heldout_loss, llmray_loop, rows_of, trl_sft
from training_runs import on_ranks, pretrained, python_docs

from llmray import console
from llmray.train.base_model import BaseModelSpec
from llmray.train.blocks import train_blocks
from llmray.train.spec import TrainSpec
from llmray.train.template import load_tokenizer

SHAPE = BaseModelSpec(vocab_size=2048, hidden_size=192, intermediate_size=512, num_layers=4, num_heads=3)
HELDOUT_ROWS = 300


def main(argv: Sequence[str] | None = None) -> int:
    """Train both by each seed, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pretrain-steps", type=int, default=200)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="heldout-") as scratch:
        folder = Path(scratch)
        data = python_docs(folder, every=10)
        base = pretrained(folder, data, SHAPE, steps=args.pretrain_steps)
        spec = TrainSpec(
            model=base["model"], data=data.uri, max_length=256, micro_batch=4, lr=1e-3, schedule="linear", eval_rows=0
        )
        tokenizer = load_tokenizer(spec.model)
        num_blocks, num_rows = len(train_blocks(spec, tokenizer).blocks), len(rows_of(spec, tokenizer))
        steps = num_blocks // spec.global_batch
        ours = replace(spec, max_steps=steps, checkpoint_every=steps)
        theirs = replace(ours, micro_batch=round(num_rows / steps / spec.num_workers))
        rows = []
        for seed in range(args.seeds):
            places = folder / f"llmray-{seed}", folder / f"trl-{seed}"
            mine = list(on_ranks(llmray_loop, 2, places[0], replace(ours, seed=seed)))
            trl = list(on_ranks(trl_sft, 2, places[1], replace(theirs, seed=seed), {}))
            exports = [place / "export" for place in places]
            [losses] = on_ranks(heldout_loss, 1, folder / f"judged-{seed}", spec, exports, HELDOUT_ROWS)
            tokens = [sum(sum(curve.tokens) for curve in curves) for curves in (mine, trl)]
            rows.append({"seed": seed, "llmray": losses[0], "trl": losses[1], "tokens": tokens})
            print(rows[-1], file=sys.stderr)
    differences = [float(row["llmray"]) - float(row["trl"]) for row in rows]  # type: ignore[arg-type]
    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    half = float(stats.t.ppf(0.975, len(rows) - 1)) * spread / len(rows) ** 0.5
    print(headline())
    print(
        console.table(
            ["seed", "llmray", "TRL", "difference"],
            [
                [str(row["seed"]), f"{row['llmray']:.4f}", f"{row['trl']:.4f}", f"{difference:+.4f}"]
                for row, difference in zip(rows, differences, strict=True)
            ],
        )
    )
    print(f"mean difference {mean:+.4f} nats, 95% interval {mean - half:+.4f} to {mean + half:+.4f}")
    body = {
        "versions": versions("torch", "deepspeed", "transformers", "trl"),
        "steps": steps,
        "blocks_in_a_batch": ours.global_batch,
        "rows_in_a_batch_of_trl": theirs.global_batch,
        "seeds": rows,
        "mean_difference": mean,
        "interval_95": [mean - half, mean + half],
        "met": mean - half <= 0,
    }
    print(write_result("training-heldout", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
