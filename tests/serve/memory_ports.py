"""The ports of serving, kept in memory, and engines that misbehave on purpose."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from llmray.errors import NotFoundError, UnavailableError
from llmray.outputs import Feedback, Output
from llmray.serve.core import Gateway
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.embedder import Embedder
from llmray.serve.engine import EngineRequest, TokenEvent
from llmray.serve.packing import unpack
from llmray.serve.ports import Observation, Ports, PromptChoice, PromptLabel, PromptTemplate, PromptVersion
from llmray.serve.reply import Reply
from llmray.serve.variants import GatewayConfig, Variant

ASK = PromptTemplate(
    name="ask",
    version=2,
    digest="d" * 64,
    messages=[
        {"role": "system", "content": "Answer about {topic}, in {{braces}}."},
        {"role": "user", "content": "{question}"},
    ],
    variables=["question", "topic"],
    settings={"max_tokens": 3, "temperature": 0.0},
)


MADE = datetime(2026, 1, 31, tzinfo=UTC)


class MemoryRegistry:
    def __init__(self) -> None:
        self.prompts: dict[str, PromptTemplate | PromptChoice] = {"ask@production": ASK, "ask:2": ASK}
        self.outputs: dict[str, Output] = {}
        self.feedback: list[Feedback] = []
        self.up = True
        self.asked = 0

    async def prompt(self, reference: str) -> PromptChoice:
        self.asked += 1
        self._check()
        if reference not in self.prompts:
            raise NotFoundError(f"there is no prompt {reference}: there are {sorted(self.prompts)}")
        found = self.prompts[reference]
        return found if isinstance(found, PromptChoice) else PromptChoice(versions=[(found, 1.0)])

    async def prompt_versions(self, reference: str | None) -> Sequence[PromptVersion]:
        names = self.prompts if reference is None else [reference]
        found = {id(one): one for name in names for one, _ in (await self.prompt(name)).versions}
        return [PromptVersion(**asdict(one), message="", author="ada", created_at=MADE) for one in found.values()]

    async def prompt_labels(self, name: str | None) -> Sequence[PromptLabel]:
        return [PromptLabel(name="ask", label="production", versions={"2": 1}, protected=False, updated_at=MADE)]

    async def put_packed(self, packed: Sequence[bytes]) -> None:
        self._check()
        for output in unpack(packed):
            self.outputs.setdefault(output.id, output)

    async def output(self, output_id: str) -> Output:
        self._check()
        if output_id not in self.outputs:
            raise NotFoundError(f"there is no output {output_id}")
        return self.outputs[output_id]

    async def put_feedback(self, feedback: Feedback) -> None:
        self._check()
        for output_id in (feedback.output_id, feedback.other_output_id):
            if output_id is not None and output_id not in self.outputs:
                raise NotFoundError(f"there is no output {output_id}")
        self.feedback.append(feedback)

    def _check(self) -> None:
        if not self.up:
            raise UnavailableError("the registry is away")


class MemoryMonitor:
    def __init__(self) -> None:
        self.seen: list[Observation] = []

    async def observe(self, batch: Sequence[Observation]) -> None:
        self.seen.extend(batch)

    async def status(self) -> Mapping[str, Any]:
        return {"observed": len(self.seen), "alarms": 1, "statistic": 2.5, "model_digest": "text is no figure"}


class LostEngine(EchoEngine):
    """An engine whose replica is gone."""

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        raise UnavailableError("the replica is gone")
        yield


class BreakingEngine(EchoEngine):
    """An engine that breaks off after one word."""

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        yield TokenEvent("half", 1, 1)
        raise RuntimeError("a bug")


class SlowEngine(EchoEngine):
    """An engine that says one word and then waits until it is left."""

    def __init__(self) -> None:
        super().__init__()
        self.left = asyncio.Event()

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        try:
            yield TokenEvent("wait", 1, 1)
            await asyncio.Event().wait()
        finally:
            self.left.set()


class Bench:
    """A gateway over ports in memory, with the engine `stable` and, by weight, `canary`."""

    def __init__(self, *, canary_weight: float = 0.0, registry: Any = None, **engines: EchoEngine) -> None:
        self.registry, self.monitor = registry or MemoryRegistry(), MemoryMonitor()
        self.engines = {"stable": EchoEngine(), **engines}
        self.embedders: dict[str, Embedder] = {}
        numbers = iter(range(1, 1_000_000))
        self.gateway = Gateway(
            Ports(prompts=self.registry, store=self.registry, outputs=self.registry, feedback=self.registry),
            backend=lambda app: self.engines[app],
            watcher=lambda app: self.monitor,
            embedder=lambda app: self.embedders[app],
            new_id=lambda: f"out{next(numbers)}",
        )
        variants = [Variant(name="stable", app="stable", digest="a" * 64, weight=100.0 - canary_weight)]
        if "canary" in engines:
            variants.append(Variant(name="canary", app="canary", digest="b" * 64, weight=canary_weight))
        self.gateway.configure(GatewayConfig(model="docs", variants=variants, monitor_app="monitor"))

    def configure(self, **changes: Any) -> None:
        """Change the configuration; `adapters` are those of the first variant."""
        assert self.gateway.config is not None
        first, *others = self.gateway.config.variants
        if "adapters" in changes:
            changes["variants"] = [first.model_copy(update={"adapters": changes.pop("adapters")}), *others]
        self.gateway.configure(self.gateway.config.model_copy(update=changes))


async def finish(reply: Reply) -> None:
    """Read what comes to its end."""
    async for _ in reply.events():
        pass
