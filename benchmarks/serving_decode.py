"""Claim: the transformers engine decodes one stream in NF4 at least twice as fast as `generate` does in bfloat16.

A random Llama of 209M parameters, one thread. Streams of 64 prompt tokens and as many new ones, alone and eight at a time, go
through the engine in bfloat16, int8 and NF4; `generate` on the bfloat16 weights stands beside them, alone and as a padded
batch. All are measured in turn in each round, and the median of the rounds counts. The limit at batch 1 is the machine's memory
bandwidth (measured here, one thread) over the bytes that each token reads: all weights but the input embedding.
Tokens for each second of processor time are given too: they hold on a busy machine.

    python benchmarks/serving_decode.py [--rounds 5] [--tokens 64] [--tiny]
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import headline, versions, write_result
from random_llama import TINY, Shape, random_llama
from transformers import AutoModelForCausalLM

from llmray import console
from llmray.serve.engine import EngineRequest, Sampling
from llmray.serve.hf_engine import HfEngine

LEAST = 2.0
PROMPT_TOKENS = 64
BATCHES = (1, 8)
CACHE_BYTES = 1 << 26
"""Enough for all streams at once: with the least that an engine takes, one context, half of them would wait."""
KINDS = {"bfloat16": "none", "int8": "int8", "nf4": "nf4"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in turn, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each stream")
    parser.add_argument("--tiny", action="store_true", help="a model that shows only that this runs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    bandwidth = bytes_per_s()
    with tempfile.TemporaryDirectory(prefix="decode-") as scratch:
        folder = random_llama(Path(scratch), TINY if args.tiny else Shape())
        engines = {
            name: HfEngine.open(folder, kind, device="cpu", kv_bytes=CACHE_BYTES) for name, kind in KINDS.items()
        }
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        embedding = model.get_input_embeddings().weight.nbytes
        bodies: dict[str, Callable[[int], None]] = {"generate, bfloat16": lambda n: generate(model, n, args.tokens)}
        for name, engine in engines.items():
            bodies[f"llmray, {name}"] = lambda n, engine=engine: asyncio.run(stream(engine, n, args.tokens))
        found = measured(bodies, args.rounds, args.tokens)
    for name, engine in engines.items():
        row = found[f"llmray, {name}"]
        row["weight_mb"] = round(engine.info.weight_bytes / 1e6, 1)
        row["share_of_bandwidth"] = row["1"]["tokens_per_s"] * (engine.info.weight_bytes - embedding) / bandwidth
        engine.close()
    base = found["generate, bfloat16"]
    for row in found.values():
        for batch in map(str, BATCHES):
            row[batch]["ratio"] = row[batch]["tokens_per_s"] / base[batch]["tokens_per_s"]
    print(headline())
    print(f"memory bandwidth, one thread reading: {bandwidth / 1e9:.1f} GB/s")
    print(table(found))
    ratio = found["llmray, nf4"]["1"]["ratio"]
    print(f"nf4 at batch 1 against generate in bfloat16: {ratio:.2f}x (at least {LEAST}x wanted)")
    body = {
        "versions": versions("torch", "transformers", "bitsandbytes"),
        "bandwidth_bytes_per_s": bandwidth,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": args.tokens,
        "rounds": args.rounds,
        "found": found,
        "met": ratio >= LEAST,
    }
    print(write_result("serving-decode", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


def bytes_per_s() -> float:
    """What one thread reads from memory in a second, in the best of several passes."""
    data = torch.ones(1 << 28, dtype=torch.int8).view(torch.int64)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - began)
    return data.nbytes / min(seconds)


def prompts(count: int) -> list[tuple[int, ...]]:
    """Prompts that share no beginning."""
    return [tuple(3 + (31 * k * (n + 2) + 7 * n) % 900 for k in range(PROMPT_TOKENS)) for n in range(count)]


def generate(model: Any, batch: int, tokens: int) -> None:
    """What one writes without a server."""
    with torch.inference_mode():
        model.generate(torch.tensor(prompts(batch)), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


async def stream(engine: HfEngine, batch: int, tokens: int) -> None:
    """Streams at the same time, to their end."""
    no_end = tuple((token, -1000.0) for token in sorted(engine.ends))
    sampling = Sampling(temperature=0.0, max_tokens=tokens, logit_bias=no_end)

    async def one(prompt: tuple[int, ...]) -> int:
        events = [event async for event in engine.submit(EngineRequest(id="x", prompt=prompt, sampling=sampling))]
        return sum(event.num_tokens for event in events)

    assert await asyncio.gather(*map(one, prompts(batch))) == [tokens] * batch


def measured(bodies: dict[str, Callable[[int], None]], rounds: int, tokens: int) -> dict[str, Any]:
    """Medians over the rounds; a round before them warms up."""
    wall: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in bodies for batch in BATCHES}
    processor: dict[tuple[str, int], list[float]] = {key: [] for key in wall}
    for number in range(rounds + 1):
        for (name, batch), walls in wall.items():
            began, began_processor = time.perf_counter(), time.process_time()
            bodies[name](batch)
            if number:
                walls.append(time.perf_counter() - began)
                processor[name, batch].append(time.process_time() - began_processor)
    return {
        name: {
            str(batch): {
                "tokens_per_s": batch * tokens / statistics.median(wall[name, batch]),
                "tokens_per_processor_s": batch * tokens / statistics.median(processor[name, batch]),
            }
            for batch in BATCHES
        }
        for name in bodies
    }


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    rows = []
    for name, row in found.items():
        cells = [name, str(row.get("weight_mb", ""))]
        for batch in map(str, BATCHES):
            one = row[batch]
            cells += [f"{one['tokens_per_s']:.1f}", f"{one['tokens_per_processor_s']:.1f}", f"{one['ratio']:.2f}x"]
        share = row.get("share_of_bandwidth")
        rows.append([*cells, "" if share is None else f"{share:.0%}"])
    heads = [head for batch in BATCHES for head in (f"batch {batch}: tokens/s", "a processor s", "ratio")]
    return console.table(["", "weights MB", *heads, "of bandwidth"], rows)


if __name__ == "__main__":
    sys.exit(main())
