"""A shadow hears copies and is not heard: not its answers, not its errors, not its slowness."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from memory_ports import Bench, BreakingEngine, SlowEngine

from llmray.outputs import Output
from llmray.serve import shadow as shadow_module
from llmray.serve.core import Gateway
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineRequest, OverloadedError, TokenEvent
from llmray.serve.protocol import ChatRequest
from llmray.serve.variants import Shadow, Variant

CHAT = {"model": "docs", "messages": [{"role": "user", "content": "one two three"}]}


class LoudEngine(EchoEngine):
    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        yield TokenEvent("ONE", 1, 3)
        yield TokenEvent(" TWO", 1, 3, "length")


class BusyEngine(EchoEngine):
    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        raise OverloadedError("too busy", retry_after_s=1.0)
        yield


def shadowed(engine: EchoEngine, *, share: float = 100.0) -> Bench:
    bench = Bench(shadow=engine)
    assert bench.gateway.config is not None
    variant = Variant(name="shadow", app="shadow", digest="c" * 64, engine="loud")
    shadow = Shadow(variant=variant, share=share)
    bench.gateway.configure(bench.gateway.config.model_copy(update={"shadow": shadow}))
    return bench


async def ask(gateway: Gateway) -> str:
    reply = await gateway.open(ChatRequest.model_validate(CHAT))
    await reply.complete()
    return reply.answers[0].text


def run(bench: Bench, scenario: Callable[[], Awaitable[None]]) -> list[Output]:
    async def whole() -> None:
        bench.gateway.start()
        await scenario()
        await bench.gateway.close()

    asyncio.run(whole())
    return list(bench.registry.outputs.values())


def test_shadow_gets_copies_and_its_answers_are_kept_beside_those_of_people() -> None:
    bench = shadowed(LoudEngine())

    async def scenario() -> None:
        assert await ask(bench.gateway) == "one two three"
        await bench.gateway.shadower.join()

    heard, unheard = run(bench, scenario)
    assert (heard.variant, heard.shadow_of, heard.completion) == ("stable", None, "one two three")
    assert (unheard.variant, unheard.shadow_of, unheard.completion) == ("shadow", heard.id, "ONE TWO")
    assert (unheard.model_digest, unheard.engine, unheard.finish_reason) == ("c" * 64, "loud", "length")
    assert unheard.completion_tokens == 2
    assert unheard.messages == heard.messages
    assert "shadow" not in bench.gateway.traffic()  # copies are nobody's requests
    assert len(bench.monitor.seen) == 1


def test_copies_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "_WAITING_BYTES", 300)
    bench = shadowed(EchoEngine())

    async def scenario() -> None:
        for _ in range(2):
            await asyncio.gather(*(ask(bench.gateway) for _ in range(20)))
            await bench.gateway.shadower.join()
        assert 0 < bench.gateway.shadower.dropped < 40
        assert bench.gateway.shadower._waiting_bytes == 0

    run(bench, scenario)


def test_share_of_the_requests_is_copied() -> None:
    bench = shadowed(LoudEngine(), share=25.0)

    async def scenario() -> None:
        for _ in range(200):
            await ask(bench.gateway)
        await bench.gateway.shadower.join()

    kept = run(bench, scenario)
    assert 30 <= sum(one.shadow_of is not None for one in kept) <= 70


@pytest.mark.parametrize("engine", [BreakingEngine(), SlowEngine()])
def test_shadow_that_fails_or_hangs_is_nobodys_trouble(engine: EchoEngine) -> None:
    bench = shadowed(engine)

    async def scenario() -> None:
        for _ in range(400):
            assert await ask(bench.gateway) == "one two three"

    kept = run(bench, scenario)
    assert sum(one.shadow_of is None for one in kept) == 400
    if isinstance(engine, BreakingEngine):
        assert {one.finish_reason for one in kept if one.shadow_of is not None} == {"error"}
    else:
        assert bench.gateway.shadower.dropped == 400  # for want of room, and at the end
        assert engine.active == 0


def test_a_copy_that_the_shadow_has_no_room_for_is_dropped_and_no_error_of_its() -> None:
    bench = shadowed(BusyEngine())

    async def scenario() -> None:
        await ask(bench.gateway)
        await bench.gateway.shadower.join()

    assert [one.shadow_of for one in run(bench, scenario)] == [None]
    assert bench.gateway.shadower.dropped == 1


def test_only_a_shadow_with_the_adapter_gets_its_requests() -> None:
    bench = shadowed(LoudEngine())
    bench.engines["stable"] = LoudEngine()
    bench.configure(adapters=("tone",))
    assert bench.gateway.config is not None
    shadow = bench.gateway.config.shadow
    assert shadow is not None

    async def scenario() -> None:
        for adapters in ((), ("tone",)):
            variant = shadow.variant.model_copy(update={"adapters": adapters})
            bench.configure(shadow=shadow.model_copy(update={"variant": variant}))
            reply = await bench.gateway.open(ChatRequest.model_validate(CHAT | {"model": "tone"}))
            await reply.complete()
            await bench.gateway.shadower.join()

    assert [one.variant for one in run(bench, scenario)] == ["stable", "stable", "shadow"]
    assert bench.gateway.shadower.dropped == 0


def test_answers_that_people_did_not_get_are_not_copied() -> None:
    bench = shadowed(LoudEngine())
    bench.engines["stable"] = SlowEngine()

    async def scenario() -> None:
        answer = await bench.gateway.open(ChatRequest.model_validate(CHAT))
        await answer.abandon()
        await bench.gateway.shadower.join()

    assert [one.shadow_of for one in run(bench, scenario)] == [None]
