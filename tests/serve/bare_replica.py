"""A replica without Ray: a channel's end, and an engine that can be held."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import uvloop

from llmray.serve.channel import Channel, ChannelServer, Door, Send
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineRequest, OverloadedError, TokenEvent

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


def run(
    scenario: Coroutine[Any, Any, None], loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(20):
            await scenario

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(in_time())


class Replica:
    """A replica without Serve: says the words of a prompt, and waits for `gate` after the first one."""

    def __init__(self, name: str = "r", *, open_gate: bool = True) -> None:
        self.name = name
        self.server = ChannelServer(self.answer)
        self.gate = asyncio.Event()
        self.began = asyncio.Event()
        self.freed = asyncio.Event()
        self.answered: list[str] = []
        if open_gate:
            self.gate.set()

    async def answer(self, request: EngineRequest, send: Send) -> None:
        self.began.set()
        try:
            await EchoEngine().submit(request).aclose()
            if request.prompt == "full":
                raise OverloadedError("too many", 3.0)
            if request.prompt == "broken":
                raise ZeroDivisionError
            async for event in EchoEngine().submit(request):
                send(event)
                await self.gate.wait()
            self.answered.append(request.id)
        finally:
            self.freed.set()

    async def door(self, routing: str = "power_of_two") -> Door:
        port = await self.server.listen("127.0.0.1")
        return Door(replica=self.name, host="127.0.0.1", port=port, secret=self.server.secret, routing=routing)

    async def channel(self) -> Channel:
        channel = Channel(await self.door(), lambda _: None)
        await channel.open()
        return channel


def ask(text: str, number: int = 1, **fields: Any) -> EngineRequest:
    return EngineRequest(id=str(number), prompt=text, **fields)


async def text_of(events: AsyncGenerator[TokenEvent, None]) -> str:
    return "".join([event.text async for event in events])
