"""Claim: at three times its capacity a model gives at least 90% of its best goodput, refuses within 20 ms, and its memory stays flat.

A simulated engine of known capacity (it reads 1,000 prompt tokens a second) behind the whole of llmray, asked in an open loop: requests
come at random moments whether or not others are answered. Goodput is answers a second whose first token came within the
objective. Its best is sought at 0.8, 1.0 and 1.2 times the capacity; then come three times as many as can be served, for longer.

    python benchmarks/serving_overload.py
    python benchmarks/serving_overload.py --quick
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import psutil
import serving_engines
from machine import MB, headline, tree, versions, write_result
from serving_client import Connection
from serving_overhead import add_ingress, served, set_environment

from llmray import console

TTFT_S = 10.0
"""The default of `ModelArgs.ttft_limit_s`."""
PROMPT_TOKENS = 400
CAPACITY = serving_engines.PREFILL_TOKENS_PER_S / PROMPT_TOKENS
LEAST_SHARE, MOST_REFUSAL_MS, MOST_GROWTH = 0.9, 20.0, 0.05


@dataclass(frozen=True, slots=True)
class Asked:
    at: float
    status: int
    ttft_s: float
    ended: float


def main(argv: Sequence[str] | None = None) -> int:
    """Find the best goodput, overload, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load; the overload lasts twice as long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="15 seconds")
    add_ingress(parser)
    args = parser.parse_args(argv)
    seconds = 15.0 if args.quick else args.seconds
    set_environment(args)
    rows, good, memory = [], {}, {}
    with tempfile.TemporaryDirectory(prefix="overload-") as folder:
        os.environ["LLMRAY_HOME"] = folder
        with served("simulated") as (port, key):
            for times in (0.8, 1.0, 1.2, 3.0):
                with watched() as seen:
                    lasts = seconds * (2 if times == 3.0 else 1)
                    asked = asyncio.run(offer(port, key, times * CAPACITY, lasts, random.Random(args.seed)))
                good[times], row = judged(times, asked, lasts)
                rows.append(row)
                memory = seen
    best = max(good[times] for times in (0.8, 1.0, 1.2))
    share, refusals_ms = good[3.0] / best, [1e3 * one.ttft_s for one in asked if one.status == 429]
    growth = {name: sizes[-1] / sizes[len(sizes) // 3] - 1.0 for name, sizes in memory.items()}
    p99 = float(np.percentile(refusals_ms, 99))
    print(headline())
    print(
        console.table(
            ["load", "asked", "answered", "refused", "failed", "good/s", "TTFT p99 s", "refusal p50/p99 ms"], rows
        )
    )
    print(f"goodput at three times the capacity: {share:.0%} of the best; refusals within {p99:.1f} ms (p99)")
    print(f"memory over the last two thirds: {', '.join(f'{name} {value:+.1%}' for name, value in growth.items())}")
    holds = share >= LEAST_SHARE and p99 <= MOST_REFUSAL_MS and max(growth.values()) <= MOST_GROWTH
    print(f"the claim {'holds' if holds else 'does NOT hold'}")
    body = {
        "versions": versions("ray"), "ingress": args.ingress, "seconds": seconds, "capacity_per_s": CAPACITY, "good_per_s": good,
        "share": share, "refusal_ms": {"p50": float(np.median(refusals_ms)), "p99": p99}, "rss_mb": memory, "holds": holds,
    }  # fmt: skip
    write_result("serving-overload", "3x overload: goodput 90% of its best, refusals in 20 ms, memory flat", body)
    return 0


async def offer(port: int, key: str, per_second: float, seconds: float, draw: random.Random) -> list[Asked]:
    """Requests at random moments, on connections that are kept."""
    free: list[Connection] = []
    began = time.perf_counter()

    async def one(number: int) -> Asked:
        connection = free.pop() if free else Connection("127.0.0.1", port, key=key)
        at = time.perf_counter() - began
        try:
            timed = await connection.chat(f"{number} word" + " word" * (PROMPT_TOKENS - 2), max_tokens=8)
        except (OSError, EOFError):
            return Asked(at, 0, 0.0, time.perf_counter() - began)
        free.append(connection)
        return Asked(at, timed.status, timed.ttft_s, time.perf_counter() - began)

    tasks: list[asyncio.Task[Asked]] = []
    moment = 0.0
    while (moment := moment + draw.expovariate(per_second)) < seconds:
        await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(one(len(tasks))))
    found = await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return found


def judged(times: float, asked: Sequence[Asked], seconds: float) -> tuple[float, list[str]]:
    """Good answers a second until the last one had ended, and a row of the table."""
    answered = [one for one in asked if one.status == 200]
    refused = [1e3 * one.ttft_s for one in asked if one.status == 429]
    good = [one for one in answered if one.ttft_s <= TTFT_S]
    last = max((one.ended for one in answered), default=seconds)
    per_second = len(good) / max(seconds, last)
    return per_second, [
        f"{times:g}x", f"{len(asked)}", f"{len(answered)}", f"{len(refused)}", f"{len(asked) - len(answered) - len(refused)}",
        f"{per_second:.2f}", f"{np.percentile([one.ttft_s for one in answered], 99):.2f}",
        f"{np.median(refused):.1f} / {np.percentile(refused, 99):.1f}" if refused else "",
    ]  # fmt: skip


@contextmanager
def watched() -> Iterator[dict[str, list[float]]]:
    """Memory in MB of the gateway and the model, twice a second, for the length of a block."""
    done, sizes = threading.Event(), dict[str, list[float]]()
    wanted = {"Gateway": "gateway", "Model": "model"}
    processes = {}
    for pid in tree(os.getpid()):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            title = " ".join(process.cmdline())
            for part, name in wanted.items():
                if title.startswith("ray::ServeReplica") and f":{part}" in title:
                    processes[name] = process

    def look() -> None:
        while not done.wait(0.5):
            for name, process in processes.items():
                sizes.setdefault(name, []).append(round(process.memory_info().rss / MB, 1))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
