"""Admission as a policy and as a replica plays it: no cluster."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_ports import Bench

from llmray.serve.admission import Admission, Admit, Objective, Place, Refuse, decide
from llmray.serve.channel import Channel, Door
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import (
    DeadlineExceededError,
    EngineLoad,
    EngineRequest,
    OverloadedError,
    RequestRefusedError,
    Sampling,
    TokenEvent,
)
from llmray.serve.gateway import create_app
from llmray.serve.replica import ModelReplica

OBJECTIVE = Objective(ttft_s=2.0, max_waiting=4, max_requests=8)
IDLE = EngineLoad(running=0, waiting=0, waiting_tokens=0, prefill_tokens_per_s=100.0)
Replica: Callable[..., Any] = ModelReplica.func_or_class  # type: ignore[attr-defined]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def load(**changes: Any) -> EngineLoad:
    return EngineLoad(**{name: changes.get(name, getattr(IDLE, name)) for name in IDLE.__dataclass_fields__})


def ask(tokens: int = 10, timeout_s: float | None = None) -> EngineRequest:
    return EngineRequest(id="1", prompt=tuple(range(tokens)), timeout_s=timeout_s)


def test_the_queue_is_bounded_in_seconds() -> None:
    assert decide(load(waiting=1, waiting_tokens=110), 50, OBJECTIVE) == Admit(1.6)
    refused = decide(load(waiting=1, waiting_tokens=850), 50, OBJECTIVE)
    assert isinstance(refused, Refuse)
    assert refused.retry_after_s == pytest.approx(7.4)  # 9 s of work stand there, and 1.6 s may, of an objective of 2
    assert decide(load(waiting=1, waiting_tokens=850, prefill_tokens_per_s=1000.0), 50, OBJECTIVE) == Admit(0.9)


def test_and_in_requests_where_no_speed_is_known() -> None:
    unknown = load(prefill_tokens_per_s=None, waiting_tokens=10**9)
    assert decide(unknown, 50, OBJECTIVE) == Admit(None)
    assert isinstance(decide(load(waiting=4, prefill_tokens_per_s=None), 1, OBJECTIVE), Refuse)
    assert isinstance(decide(load(running=7, waiting=1), 1, OBJECTIVE), Refuse)


def test_a_long_prompt_alone_is_nobodys_queue() -> None:
    assert decide(IDLE, 10_000, OBJECTIVE) == Admit(100.0)
    late = decide(IDLE, 10_000, OBJECTIVE, timeout_s=60.0)
    assert isinstance(late, Refuse)
    assert late.late


@given(
    st.integers(0, 10),
    st.integers(0, 10),
    st.integers(0, 10**6),
    st.none() | st.floats(0.1, 1e6),
    st.integers(1, 10**6),
)
def test_less_load_never_refuses_what_more_load_takes(
    running: int, waiting: int, tokens: int, speed: float | None, prompt: int
) -> None:
    busy = load(running=running, waiting=waiting, waiting_tokens=tokens, prefill_tokens_per_s=speed)
    calmer = load(running=running // 2, waiting=waiting // 2, waiting_tokens=tokens // 2, prefill_tokens_per_s=speed)
    decision = decide(busy, prompt, OBJECTIVE)
    if isinstance(decision, Admit):
        assert isinstance(decide(calmer, prompt, OBJECTIVE), Admit)
    else:
        assert decision.retry_after_s >= 1.0


def test_what_was_taken_counts_before_the_engine_has_seen_it_and_no_longer_than_it_is_there() -> None:
    admission = Admission(OBJECTIVE, clock=Clock())
    taken = [admission.enter(ask(20), IDLE) for _ in range(4)]
    with pytest.raises(OverloadedError, match="4 requests wait"):
        admission.enter(ask(20), IDLE)
    assert (admission.waiting, admission.waiting_tokens) == (4, 80)
    taken[0].answered(20)
    taken[0].answered(20)
    assert admission.waiting == 3
    taken.append(admission.enter(ask(20), IDLE))
    for place in [*taken, *taken]:
        place.leave()
    assert (admission.requests, admission.waiting, admission.waiting_tokens) == (0, 0, 0)


def test_the_speed_is_learned_from_what_waited_and_forgotten() -> None:
    clock = Clock()
    admission = Admission(Objective(ttft_s=2.0, max_waiting=99, max_requests=99), clock=clock)
    fast = load(prefill_tokens_per_s=1e6)  # so says the engine, but decoding goes on between

    def serve(places: list[Place], seconds: float) -> None:
        clock.now += seconds
        for place in places:
            place.answered(100)
            place.leave()

    serve([admission.enter(ask(100), fast) for _ in range(10)], 10.0)
    first = admission.enter(ask(100), fast)
    with pytest.raises(OverloadedError) as refused:
        admission.enter(ask(200), fast)
    assert refused.value.retry_after_s >= 1.0
    first.leave()
    clock.now += 300.0
    admission.enter(ask(100), fast)
    admission.enter(ask(200), fast)


def test_an_engine_that_is_slow_to_begin_and_not_by_its_queue_takes_a_burst() -> None:
    clock = Clock()
    admission = Admission(Objective(ttft_s=10.0, max_waiting=99, max_requests=99), clock=clock)
    silent = load(prefill_tokens_per_s=None)

    def serve(count: int) -> None:
        places = [admission.enter(ask(42), silent) for _ in range(count)]
        clock.now += 0.5  # to the first token, whatever waits
        for place in places:
            place.answered(42)
            place.leave()

    serve(2)
    serve(60)


def test_text_counts_by_what_texts_had_in_tokens() -> None:
    admission = Admission(OBJECTIVE, clock=Clock())
    chat = EngineRequest(
        id="1", messages=({"role": "user", "content": "x" * 400}, {"role": "assistant", "content": None})
    )
    place = admission.enter(chat, IDLE)
    assert admission.waiting_tokens == 100
    place.answered(400)
    admission.enter(chat, IDLE)
    assert admission.waiting_tokens == 400


def test_token_ids_teach_nothing_of_texts_and_a_text_has_hardly_more_tokens_than_characters() -> None:
    admission = Admission(OBJECTIVE, clock=Clock())
    text = EngineRequest(id="1", prompt="x" * 4000)
    for _ in range(300):
        place = admission.enter(ask(1000), IDLE)
        place.answered(1000)
        place.leave()
    place = admission.enter(text, IDLE)
    assert admission.waiting_tokens == 1000
    place.leave()
    for _ in range(300):  # a long template and tools around a word
        place = admission.enter(EngineRequest(id="1", prompt="x"), IDLE)
        place.answered(3000)
        place.leave()
    admission.enter(text, IDLE)
    assert admission.waiting_tokens == 5000


@asynccontextmanager
async def door_of(replica: Any) -> AsyncGenerator[Channel]:
    """A connection to a replica that runs here."""
    port, secret = await replica._channel.listen("127.0.0.1"), replica._channel.secret
    channel = Channel(
        Door(replica="r", host="127.0.0.1", port=port, secret=secret, routing="power_of_two"), lambda _: None
    )
    await channel.open()
    yield channel
    channel.retire()


async def text_of(channel: Channel, text: str, **fields: Any) -> str:
    request = EngineRequest(id="1", prompt=text, **fields)
    return "".join([event.text async for event in channel.submit(request)])


def test_a_replica_tells_what_it_refuses_and_why() -> None:
    replica = Replica(EchoEngine, Objective(ttft_s=1.0, max_waiting=1, max_requests=1))

    async def scenario() -> None:
        async with door_of(replica) as channel:
            engine = replica._engine = EndlessEngine()
            first = channel.submit(EngineRequest(id="1", prompt="one two"))
            await anext(first)
            with pytest.raises(OverloadedError, match="under way"):
                await text_of(channel, "three")
            await first.aclose()
            await engine.was_left.wait()
            replica._engine = EchoEngine()
            assert await text_of(channel, "three") == "three"
            with pytest.raises(RequestRefusedError, match="response_format"):
                await text_of(channel, "three", json_schema="{}")

    asyncio.run(scenario())


def test_a_deadline_ends_the_answer_and_frees_the_engine() -> None:
    engine = EndlessEngine()
    replica = Replica(lambda: engine, OBJECTIVE)

    async def scenario() -> None:
        async with door_of(replica) as channel:
            with pytest.raises(DeadlineExceededError, match="the time that the request allows is over"):
                await text_of(channel, "go", timeout_s=0.05)
        assert engine.left == 1
        assert (replica._admission.requests, replica._admission.waiting) == (0, 0)

    asyncio.run(scenario())


def test_who_leaves_frees_the_engine_at_once() -> None:
    engine = EndlessEngine()
    replica = Replica(lambda: engine, OBJECTIVE)

    async def scenario() -> None:
        async with door_of(replica) as channel:
            answer = channel.submit(EngineRequest(id="1", prompt="go", sampling=Sampling()))
            await anext(answer)
            assert replica._admission.requests == 1
            await answer.aclose()
            await engine.was_left.wait()
        assert replica._admission.requests == 0

    asyncio.run(scenario())


def test_the_gateway_tells_who_is_refused_and_who_is_late() -> None:
    engine = EndlessEngine()
    replica = Replica(lambda: engine, Objective(ttft_s=2.0, max_waiting=4, max_requests=1))
    bench = Bench(stable=BehindReplica(replica))
    chat = {"model": "docs", "messages": [{"role": "user", "content": "go"}], "timeout_s": 0.05}

    async def scenario() -> None:
        app = create_app(bench.gateway)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            bench.gateway.start()
            late, refused = await asyncio.gather(
                client.post("/v1/chat/completions", json=chat), client.post("/v1/chat/completions", json=chat)
            )
            cut = await client.post("/v1/chat/completions", json=chat | {"stream": True})
            await bench.gateway.close()
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert cut.status_code == 200
        assert '"code":"deadline_exceeded"' in cut.text
        assert "[DONE]" not in cut.text

    asyncio.run(scenario())
    assert engine.left == 2
    assert [record.finish_reason for record in bench.registry.outputs.values()] == ["deadline", "deadline"]
    counted = bench.gateway.traffic()["stable"]
    assert (counted.requests, counted.errors, counted.running) == (3, 0, 0)


class BehindReplica(EchoEngine):
    """An engine in a replica, as a gateway sees it."""

    def __init__(self, replica: Any) -> None:
        super().__init__()
        self._replica = replica

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        async with door_of(self._replica) as channel, aclosing(channel.submit(request)) as events:
            async for event in events:
                yield event


class EndlessEngine(EchoEngine):
    """Says one word and then nothing until it is left."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0
        self.was_left = asyncio.Event()

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        try:
            yield TokenEvent("on", 1, 1)
            await asyncio.Event().wait()
        finally:
            self.left += 1
            self.was_left.set()
