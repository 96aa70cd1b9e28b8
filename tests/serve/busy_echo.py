"""An engine for scaling: it says which process it is, and that each request under way has 500 tokens to read."""

import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineLoad, EngineRequest, TokenEvent


class BusyEcho(EchoEngine):
    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        yield TokenEvent(f"{os.getpid()} ", 1, 1)
        async for event in super().submit(request):
            yield event

    def load(self) -> EngineLoad:
        return replace(super().load(), waiting_tokens=500 * self.active, prefill_tokens_per_s=1000.0)


def busy_echo(_: Any) -> BusyEcho:
    """Eight requests are 4 s of waiting tokens."""
    return BusyEcho(step_s=0.05)
