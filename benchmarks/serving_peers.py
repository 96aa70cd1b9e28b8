"""Claim: with mixed sampling parameters at concurrency 8, llmray's engine gives at least 2x the tokens/s of `transformers serve` (continuous batching, bitsandbytes NF4) and at least 0.6x those of llama.cpp's server (Q4_0), every field honoured.

One random Llama of 207M parameters, one thread and one core each, the client on another; chats streamed, prompts of 20 to 200
tokens, answers of 16 to 96, each with sampling of its own. First every server is asked which fields it honours. Then
rounds take all of them by turns. Goodput counts the tokens of answers all of whose fields the server honours; all tokens stand beside
it, and the ratio is of llmray's goodput to *all* tokens of a peer. Prompts differ from round to round, so no cache helps.

    python benchmarks/serving_peers.py --llama-cpp ~/llama.cpp      # see benchmarks/README.md for how to build it
"""

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from machine import headline, versions, write_result
from random_llama import TINY, Shape, random_llama
from serving_fields import Said, honoured, say
from serving_own import NAME
from transformers import AutoTokenizer

from llmray import console
from llmray.serve.child_server import ChildServer

CONCURRENCY = 8
HERE = Path(__file__).parent
KINDS: Sequence[dict[str, Any]] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9, "seed": 1},
    {"temperature": 1.0, "top_k": 40, "seed": 2},
    {"temperature": 0.7, "stop": ["\n\n\n\n"], "seed": 3},
    {"temperature": 0.0, "frequency_penalty": 0.5, "presence_penalty": 0.5},
    {"temperature": 1.0, "logprobs": True, "top_logprobs": 3, "seed": 4},
    {"temperature": 0.6, "logit_bias": {"100": -5}, "seed": 5},
    {"temperature": 1.2, "top_p": 0.95, "top_k": 100, "seed": 6},
)
PENALTIES = ("frequency_penalty", "presence_penalty")
TARGETS = {"transformers serve, nf4": 2.0, "llama.cpp, Q4_0": 0.6}


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    name: str
    command: Sequence[str]
    health: str
    model: str
    """What it knows the model by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    messages: list[dict[str, str]]
    fields: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve by turns, print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's source folder, built in its `build`")
    parser.add_argument("--cache", type=Path, default=Path("peers-cache"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=32, help="in a round, for each server")
    parser.add_argument("--only", nargs="*", help="names of servers")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that it works; writes no result")
    args = parser.parse_args(argv)
    args.cache.mkdir(exist_ok=True)
    folder = random_llama(args.cache.resolve(), TINY if args.tiny else Shape())
    servers = [one for one in _servers(folder, args.llama_cpp) if not args.only or one.name in args.only]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:] or cores)
    found = asyncio.run(measured(servers, folder, args.rounds, args.requests, cores[0]))
    _show(found)
    if not args.tiny and not args.only:
        ratios = {
            name: found[servers[0].name]["goodput"] / found[name]["tokens_per_s"] for name in TARGETS if name in found
        }
        body = {
            "versions": versions("torch", "transformers", "bitsandbytes"),
            "requests": args.requests * args.rounds,
            "found": found,
            "targets": TARGETS,
            "met": {name: ratio >= TARGETS[name] for name, ratio in ratios.items()},
        }
        print(write_result("serving-peers", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


async def measured(servers: Sequence[Server], folder: Path, rounds: int, requests: int, core: int) -> dict[str, Any]:
    """Fields, tokens/s and latencies of each server."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    running: dict[str, ChildServer] = {}
    found: dict[str, Any] = {}
    try:
        for server in servers:
            running[server.name] = child = started(server, core)
            async with _client(child) as client:
                fields = await honoured(client, server.model, tokenizer)
                await load(client, server, asked(-1, CONCURRENCY, tokenizer))  # warm
            found[server.name] = {"fields": fields, "rounds": []}
            print(f"{server.name}: {fields}", file=sys.stderr)
        for number in range(rounds):
            for server in servers:
                async with _client(running[server.name]) as client:
                    took, answers = await load(client, server, asked(number, requests, tokenizer))
                line = summed(answers, took, found[server.name]["fields"])
                found[server.name]["rounds"].append(line)
                print(f"round {number}: {server.name}: {line}", file=sys.stderr)
    finally:
        for child in running.values():
            child.close()
    for line in found.values():
        for figure in ("goodput", "tokens_per_s", "ttft_s"):
            line[figure] = round(statistics.median(each[figure] for each in line["rounds"]), 3)
    return found


def started(server: Server, core: int) -> ChildServer:
    """A server on one core with one thread."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return ChildServer(
        ["taskset", "-c", str(core), *server.command], env={**threads, **offline}, health=server.health,
        start_timeout_s=300, health_every_s=3600,
    )  # fmt: skip


def asked(number: int, count: int, tokenizer: Any) -> list[Asked]:
    """The requests of a round: the same for every server, different from those of other rounds."""
    draw = random.Random(number)
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text(encoding="utf-8")
    ids = tokenizer.encode(text)
    made = []
    for index in range(count):
        size, at = draw.randint(20, 200), draw.randrange(len(ids) - 200)
        messages = [{"role": "user", "content": tokenizer.decode(ids[at : at + size])}]
        made.append(Asked(messages=messages, fields={**KINDS[index % len(KINDS)], "max_tokens": draw.randint(16, 96)}))
    return made


async def load(client: openai.AsyncOpenAI, server: Server, requests: Sequence[Asked]) -> tuple[float, list[Any]]:
    """Seconds, and what came of each request: a closed loop of `CONCURRENCY` clients."""
    left = iter(enumerate(requests))
    answers: list[Any] = [None] * len(requests)

    async def one_client() -> None:
        for index, request in left:
            try:
                said = await say(client, server.model, request.messages, **request.fields)
            except openai.OpenAIError as error:
                said = error
            answers[index] = (request, said)

    clock = asyncio.get_running_loop().time
    began = clock()
    await asyncio.gather(*(one_client() for _ in range(CONCURRENCY)))
    return clock() - began, answers


def summed(answers: Sequence[tuple[Asked, Said | Exception]], took: float, fields: dict[str, str]) -> dict[str, Any]:
    """Tokens/s of all answers, and of those whose fields were honoured."""
    done = [(request, said) for request, said in answers if isinstance(said, Said) and said.finish_reason is not None]
    own = fields["sampling of its own, beside others"] == "yes"
    good = [
        said
        for request, said in done
        if own
        and said.tokens <= request.fields["max_tokens"]
        and all(fields[_field(name)] == "yes" for name in request.fields)
    ]
    return {
        "goodput": round(sum(said.tokens for said in good) / took, 1),
        "tokens_per_s": round(sum(said.tokens for _, said in done) / took, 1),
        "ttft_s": round(statistics.median([said.first_s for _, said in done] or [float("nan")]), 3),
        "answered": len(done),
        "asked": len(answers),
    }


def _field(name: str) -> str:
    return "penalties" if name in PENALTIES else "logprobs" if name == "top_logprobs" else name


def _servers(folder: Path, llama_cpp: Path | None) -> list[Server]:
    ours = [sys.executable, str(HERE / "serving_own.py"), str(folder)]
    serve = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--device", "cpu"]
    batching = ["--continuous-batching", "--quantization", "bnb-4bit", "--dtype", "bfloat16"]
    servers = [
        Server(name=f"llmray, {kind}", command=[*ours, kind, "{port}"], health="/healthz", model=NAME)
        for kind in ("nf4", "int8")
    ]
    servers.append(
        Server(
            name="transformers serve, nf4",
            command=[*serve, *batching, "--port", "{port}"],
            health="/health",
            model=str(folder),
        )
    )
    if llama_cpp is not None:
        program = [str(llama_cpp / "build" / "bin" / "llama-server"), "-m", str(_gguf(folder, llama_cpp))]
        options = ["-t", "1", "-tb", "1", "-np", str(CONCURRENCY), "-c", str(CONCURRENCY * 512), "--jinja"]
        command = [*program, *options, "--host", "127.0.0.1", "--port", "{port}"]
        servers.append(Server(name="llama.cpp, Q4_0", command=command, health="/health", model=NAME))
    return servers


def _gguf(folder: Path, llama_cpp: Path) -> Path:
    """The same weights as llama.cpp reads them, in Q4_0."""
    full, small = folder.with_suffix(".bf16.gguf"), folder.with_suffix(".q4_0.gguf")
    if not small.exists():
        path = os.pathsep.join([str(llama_cpp), str(llama_cpp / "gguf-py")])
        convert = [sys.executable, str(HERE / "peers" / "convert_gguf.py"), str(folder), "--outfile", str(full)]
        subprocess.run([*convert, "--outtype", "bf16"], env={**os.environ, "PYTHONPATH": path}, check=True)  # noqa: S603
        subprocess.run([llama_cpp / "build" / "bin" / "llama-quantize", full, small, "Q4_0", "1"], check=True)  # noqa: S603
        full.unlink()
    return small


def _client(child: ChildServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{child.url}/v1", api_key="none", max_retries=0, timeout=600)


def _show(found: dict[str, Any]) -> None:
    print(headline())
    first = next(iter(found.values()))
    rows = []
    for name, line in found.items():
        ratio = f"{first['goodput'] / line['tokens_per_s']:.2f}x" if line["tokens_per_s"] else ""
        figures = (f"{line['goodput']:,.0f}", f"{line['tokens_per_s']:,.0f}", f"{line['ttft_s']:.2f}", ratio)
        rows.append([name, *figures, str(TARGETS.get(name, ""))])
    print(console.table(["concurrency 8", "goodput", "all tokens/s", "TTFT s", "llmray is", "target"], rows))
    fields = list(first["fields"])
    print(
        console.table(
            ["field", *found], [[field, *(line["fields"][field] for line in found.values())] for field in fields]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
