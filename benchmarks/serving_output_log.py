"""Claim: the output log takes at least 5,000 outputs a second on SQLite, and adds at most 0.1 ms to the 99th percentile of a request.

The log as it runs in Serve, without Ray: a gateway's queue in this process, records packed as for another process, and a
writer in a process of its own that puts them into a registry on SQLite (WAL, every commit synced). Two measurements:

- outputs a second from a full queue to the last commit; beside it, in the same run, the same rows by the standard
  library's `sqlite3.executemany` into the same table in batches of the same size, in one process.
- what a request pays: the same gateway with the echo engine answers at a steady rate, in turns with the log and without
  one, and the percentiles of its answers' times are compared round by round. Beside them the processor time of the event
  loop a request, which says the same on a busy machine.

    python benchmarks/serving_output_log.py
    python benchmarks/serving_output_log.py --quick
"""

import argparse
import asyncio
import multiprocessing
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from machine import headline, versions, write_result

from llmray import console
from llmray.bridge import let_others_first
from llmray.outputs import Output
from llmray.registry.registry import Registry
from llmray.serve.core import Gateway
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.outbox import Outbox
from llmray.serve.packing import pack, unpack
from llmray.serve.ports import Ports
from llmray.serve.protocol import ChatRequest
from llmray.serve.variants import GatewayConfig, Variant

LEAST_PER_S, MOST_MS = 5_000, 0.1
BATCH = 256
WORDS = "the quick brown fox jumps over the lazy dog and then some more of it " * 4


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both, print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=int, default=50_000, help="of each run of the first measurement")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=2_000, help="of each round, with the log and without")
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second")
    parser.add_argument("--quick", action="store_true", help="10,000 outputs, 6 rounds of 600 requests")
    args = parser.parse_args(argv)
    if args.quick:
        args.outputs, args.rounds, args.requests = 10_000, 6, 600
    with tempfile.TemporaryDirectory(prefix="output-log-") as folder:
        speeds = {
            "llmray, three times": [asyncio.run(speed(Path(folder) / f"{run}.db", args.outputs)) for run in range(3)],
            "sqlite3, three times": [plain(Path(folder) / f"plain{run}.db", args.outputs) for run in range(3)],
        }
        times, loop_us = asyncio.run(latencies(Path(folder) / "requests.db", args))
    best = {name: max(found) for name, found in speeds.items()}
    added = {
        share: statistics.median(
            float(np.percentile(logged, at) - np.percentile(bare, at)) * 1e3
            for logged, bare in zip(times["with the log"], times["without"], strict=True)
        )
        for share, at in (("p50", 50), ("p99", 99))
    }
    print(headline())
    print(console.table(["outputs/s", "median", "best"], [
        [name, f"{statistics.median(found):,.0f}", f"{best[name]:,.0f}"] for name, found in speeds.items()
    ]))  # fmt: skip
    print(console.table(["an answer, ms", "p50", "p99"], [
        *([name, *(f"{1e3 * float(np.percentile(np.concatenate(found), at)):.3f}" for at in (50, 99))] for name, found in times.items()),
        ["added, median of rounds", *(f"{value:.3f}" for value in added.values())],
    ]))  # fmt: skip
    loop = {name: statistics.median(found) for name, found in loop_us.items()}
    print("the loop's processor time a request:", ", ".join(f"{value:.0f} µs {name}" for name, value in loop.items()))
    median = {name: statistics.median(found) for name, found in speeds.items()}
    holds = median["llmray, three times"] >= LEAST_PER_S and added["p99"] <= MOST_MS
    print(f"the claim {'holds' if holds else 'does NOT hold'}: {LEAST_PER_S:,} outputs/s, {MOST_MS} ms at p99")
    body = {
        "versions": versions("sqlalchemy", "orjson"), "sqlite": sqlite3.sqlite_version, "batch": BATCH, "rate": args.rate,
        "outputs_per_s": speeds, "ratio": median["llmray, three times"] / median["sqlite3, three times"],
        "answer_ms": {name: [{f"p{at}": 1e3 * float(np.percentile(one, at)) for at in (50, 99)} for one in found] for name, found in times.items()},
        "added_ms": added, "loop_us": loop, "holds": holds,
    }  # fmt: skip
    write_result("serving-output-log", f"{LEAST_PER_S:,} outputs/s on SQLite, {MOST_MS} ms at p99", body)
    return 0


async def speed(database: Path, outputs: int) -> float:
    """Outputs a second through queue, pipe and registry, the queue never empty."""
    made = [record(number) for number in range(outputs)]
    async with writer(database) as sink:
        box: Outbox[bytes] = Outbox("output log", sink.put_packed, size=len, batch=BATCH, capacity=outputs)
        await sink.put_packed([pack(record(outputs))])  # the database is there, and everything is imported
        began = time.perf_counter()
        for one in made:
            box.put(pack(one))
        await box.close()
        seconds = time.perf_counter() - began
        if box.dropped or (kept := await sink.count()) != outputs + 1:
            raise RuntimeError(f"{box.dropped} dropped, {kept} of {outputs + 1} kept")
    return outputs / seconds


def plain(database: Path, outputs: int) -> float:
    """Outputs a second by the standard library, into the registry's own table."""
    Registry.open(f"sqlite:///{database}").close()
    made = [record(number) for number in range(outputs)]
    names = [field.name for field in fields(Output)]
    statement = f"INSERT OR IGNORE INTO outputs ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    began = time.perf_counter()
    for start in range(0, outputs, BATCH):
        rows = [[_plain(getattr(one, name)) for name in names] for one in made[start : start + BATCH]]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statement, rows)
        connection.execute("COMMIT")
    seconds = time.perf_counter() - began
    connection.close()
    return outputs / seconds


async def latencies(
    database: Path, args: argparse.Namespace
) -> tuple[dict[str, list[list[float]]], dict[str, list[float]]]:
    """Seconds of each answer, and the loop's processor time a request in microseconds, with the log and without one."""
    times: dict[str, list[list[float]]] = {"with the log": [], "without": []}
    loop_us: dict[str, list[float]] = {name: [] for name in times}
    async with writer(database) as sink:
        gateways = {"with the log": made_gateway(Ports(outputs=sink)), "without": made_gateway(Ports())}
        for gateway in gateways.values():
            gateway.start()
            await steady(gateway, 200, args.rate)
        for _ in range(args.rounds):
            for name, gateway in gateways.items():
                began = time.thread_time()
                times[name].append(await steady(gateway, args.requests, args.rate))
                await gateway.accounts.flush()
                loop_us[name].append((time.thread_time() - began) / args.requests * 1e6)
        for gateway in gateways.values():
            await gateway.close()
        if gateways["with the log"].accounts.traffic()["echo"].requests != await sink.count():
            raise RuntimeError("outputs were lost")
    return times, loop_us


async def steady(gateway: Gateway, requests: int, rate: float) -> list[float]:
    """Seconds of each of so many answers, begun at a steady rate."""
    body = ChatRequest.model_validate({"model": "echo", "messages": [{"role": "user", "content": WORDS}]})

    async def one() -> float:
        began = time.perf_counter()
        reply = await gateway.open(body)
        async for _ in reply.events():
            pass
        return time.perf_counter() - began

    tasks, start = [], time.perf_counter()
    for number in range(requests):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one()))
    return list(await asyncio.gather(*tasks))


def made_gateway(ports: Ports) -> Gateway:
    engine = EchoEngine()
    gateway = Gateway(ports, backend=lambda _: engine, watcher=lambda _: None)  # type: ignore[arg-type,return-value]
    gateway.configure(GatewayConfig(model="echo", variants=[Variant(name="stable", app="echo", digest="e" * 64)]))
    return gateway


class PipeSink:
    """The writer's process as an output sink: packed like a call to the registry's replica."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    async def put_packed(self, packed: Sequence[bytes]) -> None:
        await asyncio.to_thread(self._exchange, list(packed))

    async def count(self) -> int:
        return await asyncio.to_thread(self._exchange, None)

    def _exchange(self, packed: list[bytes] | None) -> int:
        self._pipe.send(packed)  # waits while the writer is busy, which the loop must not
        return int(self._pipe.recv())


@asynccontextmanager
async def writer(database: Path) -> AsyncIterator[PipeSink]:
    """A process that keeps outputs in a registry."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(there, str(database)))
    process.start()
    there.close()
    try:
        yield PipeSink(here)
    finally:
        here.close()
        process.join()


def _write(pipe: Connection, database: str) -> None:
    let_others_first()
    with Registry.open(f"sqlite:///{database}") as registry:
        while True:
            try:
                packed = pipe.recv()
            except EOFError:
                return
            if packed is None:
                pipe.send(registry.output_count())
                continue
            registry.put_outputs(unpack(packed))
            pipe.send(len(packed))


def record(number: int) -> Output:
    """An output such as a chat leaves."""
    return Output(
        id=f"{number:032x}",
        at=datetime.now(UTC),
        prompt_digest="d" * 64,
        prompt_reference="ask@production",
        variables={"question": "why"},
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": WORDS}],
        completion=WORDS,
        finish_reason="stop",
        model_digest="a" * 64,
        variant="stable",
        quantization="nf4",
        engine="hf",
        sampling={"temperature": 0.5, "top_p": 1.0, "top_k": 0, "seed": None, "stop": [], "max_tokens": 128},
        prompt_tokens=70,
        completion_tokens=60,
        ttft_s=0.1,
        latency_s=1.0,
        request_id=f"{number:032x}",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return orjson.dumps(value).decode() if isinstance(value, dict | list) else value


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
