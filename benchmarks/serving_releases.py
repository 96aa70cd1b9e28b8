"""What the benchmarks of rollouts share: engines that are good, slow or bad on purpose, a service to roll them out on, and a
crowd that checks every word of every answer, as the echo engine makes possible."""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from llmray.serve.control import ServeControl
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineRequest, TokenEvent
from llmray.serve.engines import ModelArgs
from llmray.serve.service import ModelSource, Service
from llmray.serve.variants import GatewayConfig

NAME = "echo"
_WORDS = (
    "a",
    "the",
    "of",
    "path",
    "file",
    "name",
    "value",
    "when",
    "returns",
    "given",
    "string",
    "object",
    "which",
    "list",
)


class FailingEngine(EchoEngine):
    """A release that answers nothing."""

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        raise RuntimeError(f"planted: {request.id}")
        yield


class GarbageEngine(EchoEngine):
    """A release that answers noise, word for word as long as it should."""

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        noise = random.Random(request.id)
        async for event in super().submit(request):
            yield TokenEvent(
                "".join(chr(noise.randrange(33, 3000)) for _ in event.text),
                event.num_tokens,
                event.prompt_tokens,
                event.finish_reason,
            )


class LoopingEngine(EchoEngine):
    """A release that says one word again and again."""

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        async for event in super().submit(request):
            yield TokenEvent(" the" if event.text else "", event.num_tokens, event.prompt_tokens, event.finish_reason)


def slow(_: ModelArgs) -> EchoEngine:
    """Half a second a word: forty words make a stream of more than 20 s."""
    return EchoEngine(step_s=0.5)


def quick(_: ModelArgs) -> EchoEngine:
    """A good release."""
    return EchoEngine(step_s=0.01)


def failing(_: ModelArgs) -> EchoEngine:
    """A bad release."""
    return FailingEngine(step_s=0.01)


def garbage(_: ModelArgs) -> EchoEngine:
    """A bad release."""
    return GarbageEngine(step_s=0.01)


def looping(_: ModelArgs) -> EchoEngine:
    """A bad release."""
    return LoopingEngine(step_s=0.01)


def release(engine: str, letter: str, *, num_replicas: int = 1) -> ModelSource:
    """A model that is one of the engines of this file."""
    return ModelSource(
        args=ModelArgs(
            uri="nothing",
            digest=letter * 64,
            quantization="none",
            engine=f"serving_releases:{engine}",
            num_cpus=0.2,
            num_replicas=num_replicas,
        )
    )


class Watched(Service):
    """A service that notes when the traffic was split anew."""

    def __init__(self, control: ServeControl, *, port: int) -> None:
        super().__init__(control, host="127.0.0.1", port=port, runtime_env={})
        self.splits: list[tuple[float, GatewayConfig]] = []

    def split(self, config: GatewayConfig) -> None:
        super().split(config)
        self.splits.append((time.monotonic(), config))

    def serve(self, source: ModelSource) -> None:
        """Give a model all of the traffic."""
        self.deploy(
            source,
            name=NAME,
            default_prompt=None,
            registry_env=None,
            monitor=None,
            embeddings={},
            text_log=None,
            timeout_s=120,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    outcome: str
    """`whole`, `told` (an error that says so), `cut` (an end without one), `wrong` (another text) or `hanging`."""
    seconds: float
    words: int
    error: str = ""


class Crowd:
    """People who ask on an event loop of their own, until they are told to stop."""

    def __init__(self, url: str, *, hang_s: float = 120.0, seed: int = 0) -> None:
        self.replies: list[Reply] = []
        self.under_way = 0
        self._url = url
        self._hang_s = hang_s
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._plans: list[Callable[[aiohttp.ClientSession], Any]] = []

    def ask_one_after_another(self, *, people: int, words: int, stream: bool) -> None:
        """Add people of whom each asks again as soon as an answer ends."""

        async def person(session: aiohttp.ClientSession) -> None:
            while not self._stop.is_set():
                await self._ask(session, words, stream)

        self._plans += [person] * people

    def ask_at_rate(self, *, per_s: float) -> None:
        """Add people who come at random moments, whoever waits still."""

        async def door(session: aiohttp.ClientSession) -> None:
            async with asyncio.TaskGroup() as group:
                while not self._stop.is_set():
                    await asyncio.sleep(self._random.expovariate(per_s))
                    group.create_task(self._ask(session, self._random.randint(15, 60), self._random.random() < 0.5))

        self._plans.append(door)

    def __enter__(self) -> "Crowd":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def outcomes(self) -> Counter[str]:
        """How many ended how."""
        return Counter(reply.outcome for reply in self.replies)

    async def _live(self) -> None:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            asyncio.TaskGroup() as group,
        ):
            for plan in self._plans:
                group.create_task(plan(session))

    async def _ask(self, session: aiohttp.ClientSession, words: int, stream: bool) -> None:
        text = " ".join(self._random.choice(_WORDS) for _ in range(words))
        body = {"model": NAME, "messages": [{"role": "user", "content": text}], "stream": stream}
        began = time.monotonic()
        self.under_way += 1
        try:
            async with asyncio.timeout(self._hang_s):
                outcome, error = await self._answer(session, body, text)
        except TimeoutError:
            outcome, error = "hanging", ""
        except aiohttp.ClientError as problem:
            outcome, error = "cut", f"{type(problem).__name__}: {problem}"
        self.under_way -= 1
        self.replies.append(Reply(outcome, time.monotonic() - began, words, error))

    async def _answer(self, session: aiohttp.ClientSession, body: dict[str, Any], text: str) -> tuple[str, str]:
        async with session.post(f"{self._url}/chat/completions", json=body) as response:
            if response.status != 200:
                return "told", f"{response.status}: {(await response.text())[:200]}"
            if not body["stream"]:
                said = (await response.json())["choices"][0]["message"]["content"]
                return ("whole" if said == text else "wrong"), ""
            pieces: list[str] = []
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    return ("whole" if "".join(pieces) == text else "wrong"), ""
                event = json.loads(line[6:])
                if "error" in event:
                    return "told", str(event["error"]["message"])[:200]
                pieces += [choice["delta"].get("content") or "" for choice in event["choices"]]
        return "cut", "the stream ended without a last event"
