"""Engines of known speed for the benchmarks of the framework itself: `--engine benchmarks.serving_engines:…` of a model."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineLoad, EngineRequest, TokenEvent, last_user_text
from llmray.serve.engines import ModelArgs

STEP_S = 0.02
PREFILL_TOKENS_PER_S = 1000.0


def at_once(_: ModelArgs) -> EchoEngine:
    """Answers as fast as it is asked."""
    return EchoEngine()


def paced(_: ModelArgs) -> EchoEngine:
    """A word every 20 ms, as a model of that speed would: the machine is not saturated by what is measured."""
    return EchoEngine(step_s=STEP_S)


def simulated(_: ModelArgs) -> "SimulatedEngine":
    """Reads 1,000 tokens a second, one prompt after the other, and decodes all that were read together."""
    return SimulatedEngine(step_s=STEP_S)


class SimulatedEngine(EchoEngine):
    """What a model's time goes to, without the model: its capacity is known."""

    waiting = waiting_tokens = 0

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        tokens = len(last_user_text(request.messages or ()).split())
        self.waiting, self.waiting_tokens = self.waiting + 1, self.waiting_tokens + tokens
        try:
            async with self._reading:
                await asyncio.sleep(tokens / PREFILL_TOKENS_PER_S)
        finally:
            self.waiting, self.waiting_tokens = self.waiting - 1, self.waiting_tokens - tokens
        async for event in super().submit(request):
            yield event

    def __init__(self, *, step_s: float) -> None:
        super().__init__(step_s=step_s)
        self._reading = asyncio.Lock()

    def load(self) -> EngineLoad:
        return replace(
            super().load(),
            waiting=self.waiting,
            waiting_tokens=self.waiting_tokens,
            prefill_tokens_per_s=PREFILL_TOKENS_PER_S,
        )
