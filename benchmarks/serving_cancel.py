"""Claim: 10,000 cancelled streams leave nothing behind in the engine: no KV block, no ticket, no memory.

A tiny Llama is served by the transformers engine, without Ray. Streams come 64 at a time and leave after some events of theirs,
before the first one, or while they wait for room (the KV cache holds four contexts). Blocks in use and open iterators are
looked at when all have left; memory (RSS) after each tenth, and its growth over the second half is what leaks.

    python benchmarks/serving_cancel.py [--streams 10000]
"""

import argparse
import asyncio
import gc
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
from machine import MB, headline, versions, write_result
from random_llama import TINY, random_llama

from llmray.serve.engine import EngineRequest, Sampling
from llmray.serve.hf_engine import HfEngine

AT_ONCE = 64
KV_BYTES = 1 << 20
"""2,048 tokens: four contexts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Start and leave, print what is left, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cancel-") as scratch:
        engine = HfEngine.open(random_llama(Path(scratch), TINY), "none", device="cpu", kv_bytes=KV_BYTES)
        try:
            found = asyncio.run(measured(engine, args.streams))
        finally:
            engine.close()
    print(headline())
    print(
        f"{found['streams']:,} streams ({found['cancelled']:,} left early) in {found['seconds']:.0f} s: "
        f"{found['kv_used']:.0%} of the KV blocks in use, {found['open']} iterators open, "
        f"RSS {found['rss_mb'][0]:.0f} MB after a tenth, {found['rss_mb'][-1]:.0f} MB at the end, "
        f"{found['growth_bytes_per_stream']:+.0f} bytes a stream in the second half"
    )
    body = {"versions": versions("torch", "transformers"), **found}
    print(write_result("serving-cancel", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


async def measured(engine: HfEngine, streams: int) -> dict[str, Any]:
    """Rounds of streams that leave, and what they leave behind."""
    process = psutil.Process()
    chance = random.Random(0)
    rss, cancelled, began = [], 0, time.perf_counter()
    done = 0
    for tenth in range(1, 11):
        while done < streams * tenth // 10:
            count = min(AT_ONCE, streams - done)
            cancelled += sum(await asyncio.gather(*(leave(engine, chance, done + n) for n in range(count))))
            done += count
        gc.collect()
        rss.append(process.memory_info().rss)
    open_now = engine.num_open
    async for _ in engine.submit(EngineRequest(id="last", prompt="x", sampling=Sampling(max_tokens=2))):
        pass  # the decode thread lets go of what was dropped before it computes this
    return {
        "streams": done,
        "cancelled": cancelled,
        "seconds": time.perf_counter() - began,
        "kv_used": engine.load().kv_used,
        "open": open_now,
        "rss_mb": [round(one / MB, 1) for one in rss],
        "growth_bytes_per_stream": (rss[-1] - rss[4]) / (done / 2),
    }


async def leave(engine: HfEngine, chance: random.Random, number: int) -> int:
    """One stream that is left after 0 to 3 events, or by cancelling its task; 1 if it was left early."""
    prompt = tuple(chance.randrange(3, TINY.vocab_size) for _ in range(chance.choice((5, 40, 150))))
    request = EngineRequest(id=str(number), prompt=prompt, sampling=Sampling(max_tokens=300, seed=number))
    if number % 4 == 0:
        task = asyncio.create_task(_read(engine, request, 300))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
        [result] = await asyncio.gather(task, return_exceptions=True)
        return int(isinstance(result, asyncio.CancelledError))
    return int(await _read(engine, request, chance.randrange(4)))


async def _read(engine: HfEngine, request: EngineRequest, events_wanted: int) -> bool:
    """Whether the stream was left before its end."""
    async with aclosing(engine.submit(request)) as events:
        for _ in range(events_wanted):
            if (await anext(events)).finish_reason is not None:
                return False
    return True


if __name__ == "__main__":
    sys.exit(main())
