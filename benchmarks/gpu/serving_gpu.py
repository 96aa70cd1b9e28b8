"""Claim: the `hf` engine without Ray decodes a Llama of 1.2 billion parameters on a GPU faster than naive `generate`, in bfloat16, int8 and NF4.

Streams of 128 prompt tokens and as many new ones at concurrency 1, 8 and 32 through the engine; beside it `generate` on the
bfloat16 weights, one request after another, as a service without batching does it. The share of the memory bandwidth is that
of reading the weights once a step, of what a copy reaches on the same card. Random weights: speed does not depend on them.
`--tiny` runs all of it in a minute or two on a CPU, to see that it works.

    PYTHONPATH=benchmarks python benchmarks/gpu/serving_gpu.py
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import MB, headline, versions, write_result
from random_llama import TINY, Shape, random_llama
from transformers import AutoModelForCausalLM

from llmray import console
from llmray.serve.engine import EngineRequest, Sampling
from llmray.serve.hf_engine import HfEngine

LLAMA_1B = Shape(
    vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=True,
)  # fmt: skip
KINDS = ("bf16", "int8", "nf4")
CONCURRENCY = (1, 8, 32)
PROMPT_TOKENS = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Decode, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("gpu-cache"))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU; writes no result")
    args = parser.parse_args(argv)
    device, tokens = ("cpu", 16) if args.tiny else ("cuda", args.tokens)
    args.cache.mkdir(exist_ok=True)
    folder = random_llama(args.cache.resolve(), TINY if args.tiny else LLAMA_1B)
    bandwidth = bytes_per_s(device)
    base = naive(folder, device, tokens)
    found = {"generate, bf16": {"load_s": base["load_s"], "weight_mb": base["weight_mb"], "1": base["tokens_per_s"]}}
    for kind in KINDS:
        found[f"llmray, {kind}"] = asyncio.run(ours(folder, kind, device, tokens))
    rows = []
    for name, line in found.items():
        share = line["1"] * line["weight_mb"] * MB / bandwidth
        speeds = [f"{line[str(number)]:,.0f}" if str(number) in line else "" for number in CONCURRENCY]
        rows.append([name, f"{line['load_s']:.1f}", f"{line['weight_mb']:,.0f}", *speeds, f"{share:.0%}"])
    print(headline())
    columns = ["weights", "load s", "MB", *(f"tokens/s, {number}" for number in CONCURRENCY), "of the bandwidth at 1"]
    print(console.table(columns, rows))
    if not args.tiny:
        body = {
            "device": torch.cuda.get_device_name(),
            "versions": versions("torch", "transformers", "bitsandbytes"),
            "bytes_per_s": bandwidth,
            "found": found,
            "met": all(found[f"llmray, {kind}"]["1"] > base["tokens_per_s"] for kind in KINDS),
        }
        print(write_result("serving-gpu", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


async def ours(folder: Path, kind: str, device: str, tokens: int) -> dict[str, Any]:
    """tokens/s by concurrency."""
    engine = HfEngine.open(folder, kind, device=device)
    try:
        line = {"load_s": engine.info.load_s, "weight_mb": engine.info.weight_bytes / MB}
        await asyncio.gather(*(stream(engine, number, 4) for number in range(CONCURRENCY[-1])))  # warm
        for number in CONCURRENCY:
            began = time.perf_counter()
            made = await asyncio.gather(*(stream(engine, index, tokens) for index in range(number)))
            line[str(number)] = sum(made) / (time.perf_counter() - began)
        return line
    finally:
        engine.close()


async def stream(engine: HfEngine, index: int, tokens: int) -> int:
    """Tokens of one answer."""
    prompt = tuple(range(100 + index, 100 + index + PROMPT_TOKENS))
    sampling = Sampling(max_tokens=tokens, temperature=0.0)
    events = engine.submit(EngineRequest(id=str(index), prompt=prompt, sampling=sampling))
    return sum([event.num_tokens async for event in events])


@torch.inference_mode()
def naive(folder: Path, device: str, tokens: int) -> dict[str, float]:
    """transformers' `generate`, one request after another."""
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": device}).eval()
    load_s = time.perf_counter() - began
    ids = torch.arange(100, 100 + PROMPT_TOKENS, device=device)[None]
    options = {"do_sample": False, "attention_mask": torch.ones_like(ids)}
    model.generate(ids, max_new_tokens=4, **options)  # warm
    began = time.perf_counter()
    made = model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **options)[0, PROMPT_TOKENS:]
    speed = len(made) / (time.perf_counter() - began)
    return {"load_s": load_s, "weight_mb": model.get_memory_footprint() / MB, "tokens_per_s": speed}


def bytes_per_s(device: str) -> float:
    """What a copy within the device's memory reads and writes a second."""
    source = torch.empty((64 if device == "cpu" else 4096) * 1024 * 1024, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    began = _now(device)
    for _ in range(5):
        target.copy_(source)
    return 10 * source.nbytes / (_now(device) - began)


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
