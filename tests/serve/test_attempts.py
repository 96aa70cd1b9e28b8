"""Answers that are begun, lost, begun anew, late or left: nothing leaks, nothing is charged twice, no record hides another."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi import Request
from memory_ports import Bench

from llmray.errors import UnavailableError
from llmray.serve.access import Caller, caller
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import DeadlineExceededError, EngineRequest, OverloadedError, TokenEvent
from llmray.serve.intake import ClientLeftError, while_client_waits
from llmray.serve.ports import PromptChoice
from llmray.serve.protocol import ApiError, ChatRequest
from llmray.serve.request_log import _NOTES, Notes


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "docs", "messages": [{"role": "user", "content": "go"}], **fields})


class Half(EchoEngine):
    """Begins the first of two answers; what becomes of the second is up to `second`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[EngineRequest] = []
        self.active = 0
        self.begun = asyncio.Event()

    async def second(self) -> None:
        await asyncio.Event().wait()

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        self.asked.append(request)
        self.active += 1
        try:
            if len(self.asked) == 2:
                await self.second()
            self.begun.set()
            yield TokenEvent("one", 1, 3)
            if len(self.asked) == 2:
                await asyncio.Event().wait()
            yield TokenEvent(" two", 1, 3, "stop")
        finally:
            self.active -= 1


def test_who_leaves_while_one_of_two_has_begun_leaves_nothing_behind() -> None:
    async def play() -> None:
        engine = Half()
        bench = Bench(stable=engine)
        opening = asyncio.ensure_future(bench.gateway.open(chat(n=2)))
        await engine.begun.wait()
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert (engine.active, bench.gateway.traffic()["stable"].running) == (0, 0)

    asyncio.run(play())


def test_a_refusal_of_one_choice_waits_for_no_other() -> None:
    class Full(Half):
        async def second(self) -> None:
            raise OverloadedError("full", 1.0)

        async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
            async for event in super().submit(request):
                if len(self.asked) < 2:
                    await asyncio.Event().wait()
                yield event

    async def play() -> None:
        bench = Bench(stable=Full())
        with pytest.raises(ApiError) as refusal:
            await bench.gateway.open(chat(n=2))
        assert refusal.value.status == 429
        assert bench.gateway.traffic()["stable"].running == 0

    asyncio.run(play())


@pytest.mark.parametrize("whole", [False, True])
def test_an_attempt_that_is_lost_hides_no_record_and_costs_nothing(whole: bool) -> None:
    class Lost(Half):
        async def second(self) -> None:
            await self.begun.wait()
            raise UnavailableError("killed")

    async def play() -> None:
        bench = Bench(stable=Lost())
        who, noted = Caller("docs", "k1"), Notes()
        caller.set(who)
        _NOTES.set(noted)
        reply = await (bench.gateway.answer if whole else bench.gateway.open)(chat(n=2))
        await reply.complete() if not whole else None
        await bench.gateway.accounts.flush()
        kept = [bench.registry.outputs[answer.id] for answer in reply.answers]
        assert [(record.completion, record.finish_reason) for record in kept] == [("one two", "stop")] * 2
        assert [record.id for record in noted.outputs] == [answer.id for answer in reply.answers]
        assert who.tokens == 2 * (3 + 2)

    asyncio.run(play())


def test_one_deadline_for_all_attempts_wherever_the_time_goes() -> None:
    class Slow(EchoEngine):
        def __init__(self) -> None:
            super().__init__()
            self.left_s: list[float] = []

        async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
            assert request.timeout_s is not None
            self.left_s.append(request.timeout_s)
            yield TokenEvent("one", 1, 1)
            if len(self.left_s) == 1:
                await asyncio.sleep(0.01)
                raise UnavailableError("killed")
            await asyncio.Event().wait()  # as in Serve's queue: no timer of the engine's runs

    async def play() -> None:
        engine = Slow()
        bench = Bench(stable=engine)
        with pytest.raises(ApiError) as late:
            await bench.gateway.answer(chat(timeout_s=0.1))
        assert (late.value.status, late.value.code) == (504, "deadline_exceeded")
        assert 0.1 >= engine.left_s[0] >= engine.left_s[1] + 0.01
        await bench.gateway.accounts.flush()
        assert [one.finish_reason for one in bench.registry.outputs.values()] == ["error", "deadline"]
        assert {one.sampling["timeout_s"] for one in bench.registry.outputs.values()} == {0.1}
        assert bench.gateway.traffic()["stable"].running == 0

        async def hang(reference: str) -> PromptChoice:
            return await asyncio.Event().wait()  # type: ignore[return-value]

        bench.registry.prompt = hang
        with pytest.raises(DeadlineExceededError):
            await bench.gateway.open(chat(timeout_s=0.01, prompt="ask@staging", variables={}))

    asyncio.run(play())


def test_a_result_that_comes_though_its_work_was_cancelled_is_undone() -> None:
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def stubborn() -> str:
        gone.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "answer"
        raise AssertionError

    async def play() -> None:
        undone: list[str] = []

        async def undo(result: str) -> None:
            undone.append(result)

        with pytest.raises(ClientLeftError):
            await while_client_waits(Request({"type": "http"}, receive), stubborn(), undo=undo)
        assert undone == ["answer"]

    asyncio.run(play())
