"""Claim: a head in int8 changes an NF4 model by at most a twentieth of what NF4 does (KL to the unquantized model), and an NF4 load holds at most half of what transformers' own way to bitsandbytes holds beyond an import, in no more processor time.

Quality: a small Llama, trained here for a few minutes on the source of Python's standard library, and text that it has not seen:
loss, and KL from the unquantized model, in nats a token. Memory and time: a random Llama of 207M parameters, each load in a process of
its own, one thread; anonymous memory, which a system cannot drop, at its peak.

    python benchmarks/serving_quantization.py [--steps 600] [--rounds 3] [--tiny]
"""

import argparse
import json
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import MB, headline, measured, versions, write_result
from random_llama import TINY, Shape, random_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from llmray import console
from llmray.serve.quantize import load

KINDS = ("bf16", "int8", "nf4-bf16", "nf4", "nf4-nf4")
PEERS = {"nf4": "transformers, nf4", "int8": "transformers, int8"}
SMALL = replace(
    TINY, vocab_size=2048, hidden_size=256, intermediate_size=704, num_hidden_layers=4, max_position_embeddings=256
)
BLOCK = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Train, compare, load; print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="to see that it works; writes no result")
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.load:
        print(json.dumps(one_load(Path(args.load[0]), args.load[1])))
        return 0
    with tempfile.TemporaryDirectory(prefix="quantization-") as scratch:
        quality = compared(trained(Path(scratch), 5 if args.tiny else args.steps))
        big = random_llama(Path(scratch), TINY if args.tiny else Shape())
        loads = {kind: loaded(big, kind, args.rounds) for kind in [*KINDS, *PEERS.values()]}
    print(headline())
    print(
        console.table(
            ["quality", "loss", "KL"],
            [[name, f"{line['loss']:.4f}", f"{line['kl']:.6f}"] for name, line in quality.items()],
        )
    )
    rows = [[name, *(f"{line[key]:.1f}" for key in ("weight_mb", "load_s", "peak_mb"))] for name, line in loads.items()]
    print(console.table(["load", "weights MB", "processor s", "peak MB beyond the import"], rows))
    head = abs(quality["nf4"]["kl"] - quality["nf4-bf16"]["kl"]) / quality["nf4-bf16"]["kl"]
    met = {
        "head": head <= 1 / 20,
        "memory": loads["nf4"]["peak_mb"] <= 0.5 * loads[PEERS["nf4"]]["peak_mb"],
        "time": loads["nf4"]["load_s"] <= loads[PEERS["nf4"]]["load_s"],
    }
    print(met)
    if not args.tiny:
        body = {"versions": versions("torch", "transformers", "bitsandbytes"), "quality": quality, "loads": loads}
        body["met"] = met
        print(write_result("serving-quantization", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


def trained(scratch: Path, steps: int) -> Path:
    """A folder with a small model that has learned something."""
    folder = random_llama(scratch, SMALL)
    blocks_NT, _ = texts(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        ids = blocks_NT[torch.randint(len(blocks_NT), (8,), generator=draw)]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", file=sys.stderr)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def texts(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks (N, T) to train on, and others of files that are kept apart."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    parts = []
    for chosen in ([path for index, path in enumerate(paths) if index % 10], paths[::10]):
        ids = [token for path in chosen for token in tokenizer(path.read_text(encoding="utf-8"))["input_ids"]]
        parts.append(torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK))
    return parts[0], parts[1]


@torch.inference_mode()
def compared(folder: Path) -> dict[str, Any]:
    """Loss and KL of each kind, a token."""
    _, held_NT = texts(folder)
    held_NT = held_NT[:: max(1, len(held_NT) // 32)]
    models = {"unquantized": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()}
    models |= {kind: load(folder, kind, device="cpu").model for kind in KINDS}
    sums = {name: {"loss": 0.0, "kl": 0.0} for name in models}
    for ids_T in held_NT:
        truth = None
        for name, model in models.items():
            logs_TV = model(input_ids=ids_T[None]).logits[0, :-1].float().log_softmax(-1)
            truth = logs_TV if truth is None else truth
            sums[name]["loss"] -= float(logs_TV.gather(1, ids_T[1:, None]).mean()) / len(held_NT)
            sums[name]["kl"] += float((truth.exp() * (truth - logs_TV)).sum(-1).mean()) / len(held_NT)
    return sums


def loaded(folder: Path, kind: str, rounds: int) -> dict[str, float]:
    """Load in processes of their own: medians."""
    each = []
    for _ in range(rounds):
        run = measured([sys.executable, __file__, "--load", str(folder), kind], cores=1, every_s=0.02)
        line = json.loads(run.output.splitlines()[-1])
        each.append({**line, "peak_mb": (run.peak_anonymous_bytes - line["import_bytes"]) / MB})
        print(f"{kind}: {each[-1]}", file=sys.stderr)
    return {name: statistics.median(line[name] for line in each) for name in ("weight_mb", "load_s", "peak_mb")}


def one_load(folder: Path, kind: str) -> dict[str, float]:
    """One load in this process, to the first answer."""
    before = anonymous_bytes()
    began = time.process_time()
    if kind in PEERS.values():
        four = kind.endswith("nf4")
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        config = BitsAndBytesConfig(**options if four else {"load_in_8bit": True})
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, device_map={"": "cpu"}, quantization_config=config
        ).eval()
        size = model.get_memory_footprint()
    else:
        found = load(folder, kind, device="cpu")
        model, size = found.model, found.info.weight_bytes
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 8, dtype=torch.long))  # bitsandbytes packs at the first call
    return {"load_s": time.process_time() - began, "weight_mb": size / MB, "import_bytes": before}


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
