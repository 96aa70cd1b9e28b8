"""From a gateway to replicas and back, over real connections: asyncio's loop and the one that Ray's workers have."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.errors import LLMRayError, UnavailableError
from llmray.serve.balancer import Balancer
from llmray.serve.channel import Channel, ChannelServer, Door, LeavingError, Send
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineRequest, OverloadedError, TokenEvent
from llmray.serve.wire import Peer

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


@pytest.mark.parametrize("loop", LOOPS)
def test_answers_come_back_each_to_its_request(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def scenario() -> None:
        replica = Replica()
        channel = await replica.channel()
        texts = [f"word{number} " * (number % 7 + 1) + "end" for number in range(50)] + [
            "long " * 4000 + "end",
            "x" * 3_000_000,
        ]
        found = await asyncio.gather(*(text_of(channel.submit(ask(text))) for text in texts))
        assert found == texts
        assert (channel.under_way, len(replica.server.answering)) == (0, 0)
        await replica.server.leave()

    run(scenario(), loop)


def test_errors_arrive_as_what_they_are_and_ours_without_their_text() -> None:
    async def scenario() -> None:
        channel = await Replica().channel()
        with pytest.raises(OverloadedError, match="too many") as told:
            await text_of(channel.submit(ask("full")))
        assert told.value.retry_after_s == 3.0
        with pytest.raises(LLMRayError, match="the model failed: ZeroDivisionError"):
            await text_of(channel.submit(ask("broken")))
        assert await text_of(channel.submit(ask("still here"))) == "still here"

    run(scenario())


class Unsendable(TokenEvent):
    """An event that no pickle takes."""

    def __reduce_ex__(self, _: Any) -> Any:
        raise TypeError("no")


class PickyError(LLMRayError):
    """An error that can be sent and not be read: its arguments are not those that it keeps."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def test_what_cannot_be_sent_or_read_hurts_its_own_answer_alone() -> None:
    class Strange(Replica):
        async def answer(self, request: EngineRequest, send: Send) -> None:
            if request.prompt == "unsendable":
                send(Unsendable("x", 1, 1, "stop"))
            elif request.prompt == "unreadable":
                raise PickyError("a", "b")
            else:
                await super().answer(request, send)

    async def scenario() -> None:
        channel = await Strange().channel()
        asked = [text_of(channel.submit(ask(text))) for text in ("unsendable", "well", "unreadable", "done")]
        unsendable, well, unreadable, done = await asyncio.gather(*asked, return_exceptions=True)
        assert (well, done) == ("well", "done")
        assert "cannot be sent: TypeError" in str(unsendable)
        assert "cannot be read: TypeError" in str(unreadable)
        request = ask("x", session=lambda: None)  # type: ignore[arg-type]  # no pickle takes a function like this
        with pytest.raises(AttributeError):
            await text_of(channel.submit(request))
        assert channel.under_way == 0

    run(scenario())


def test_a_request_that_is_given_up_before_it_began_leaves_nothing() -> None:
    async def scenario() -> None:
        replica = Replica()
        channel = await replica.channel()
        assert channel._replica is not None
        for number in range(1000, 1030):  # both frames arrive in one piece
            channel._replica.send((number, ask("never")))
            channel._replica.send((number, None))
        assert await text_of(channel.submit(ask("after"))) == "after"
        assert not replica.server.answering
        assert replica.answered == ["1"]
        await replica.server.leave()

    run(scenario())


@pytest.mark.parametrize("loop", LOOPS)
def test_leaving_early_frees_the_compute_and_a_gateway_that_is_gone_does(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def scenario() -> None:
        replica = Replica(open_gate=False)
        channel = await replica.channel()
        events = channel.submit(ask("one two"))
        await anext(events)
        await events.aclose()
        await replica.freed.wait()
        assert channel.under_way == 0
        replica.freed.clear()
        lost = channel.submit(ask("one two"))
        await anext(lost)
        assert channel._replica is not None
        channel._replica.close()
        await replica.freed.wait()
        with pytest.raises(UnavailableError, match="is gone"):
            await anext(lost)
        with pytest.raises(LeavingError):
            await anext(channel.submit(ask("more")))

    run(scenario(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_replica_that_ends_finishes_what_it_took_and_turns_away_what_comes(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def scenario() -> None:
        replica = Replica(open_gate=False)
        channel = await replica.channel()
        begun = asyncio.ensure_future(text_of(channel.submit(ask("to the end"))))
        await replica.began.wait()
        leaving = asyncio.ensure_future(replica.server.leave())
        await asyncio.sleep(0)
        late = channel.submit(ask("late", 2))  # sent before the gateway has heard
        with pytest.raises(LeavingError):
            await anext(late)
        assert not channel.takes_requests
        assert not leaving.done()
        replica.gate.set()
        assert await begun == "to the end"
        await leaving
        assert replica.answered == ["1"]

    run(scenario(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_each_end_proves_itself_before_anything_is_unpickled(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    bomb = b"cllmray.serve.channel\nbombed\n)R."
    evil = bytes(64) + len(bomb).to_bytes(4, "big") + bomb

    async def scenario() -> None:
        replica = Replica()
        door = await replica.door()
        reader, writer = await asyncio.open_connection(door.host, door.port)
        writer.write(evil)
        challenge = await reader.read()
        assert len(challenge) == 32  # and then the end
        writer.close()

        async def impostor(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(evil)

        false = await asyncio.start_server(impostor, "127.0.0.1", 0)
        port = false.sockets[0].getsockname()[1]
        channel = Channel(replace(door, port=port), lambda _: None)
        with pytest.raises(UnavailableError, match="does not know the replica's secret"):
            await channel.open()
        false.close()
        with pytest.raises(UnavailableError, match="does not answer"):
            await Channel(replace(door, port=port), lambda _: None).open()
        assert door.secret.hex() not in repr(door)
        assert repr(door.secret) not in repr(door)
        assert not channel.takes_requests

    run(scenario(), loop)


class Cluster:
    """What Serve says of replicas."""

    def __init__(self, *replicas: Replica, routing: str = "power_of_two") -> None:
        self.doors: dict[str, Door] = {}
        self.replicas = list(replicas)
        self.routing = routing
        self.woken = 0
        self.asleep = False
        self.now = 0.0
        self.balancer = Balancer(self.find, self.wake, clock=lambda: self.now, draw=random.Random(1))

    async def find(self) -> list[Door]:
        if self.asleep:
            return []
        return await self.all_doors()

    async def all_doors(self) -> list[Door]:
        for replica in self.replicas:
            if replica.name not in self.doors:
                self.doors[replica.name] = await replica.door(self.routing)
        return [self.doors[replica.name] for replica in self.replicas]

    async def wake(self) -> Door:
        self.woken += 1
        if not (doors := await self.all_doors()):
            raise UnavailableError("there is no replica")
        return doors[0]

    async def looked(self) -> None:
        """Have the balancer look, as it does after a while."""
        self.now += 10
        await self.balancer._look()


def test_a_gateway_that_starts_finds_all_replicas_before_it_sends() -> None:
    async def scenario() -> None:
        cluster = Cluster(Replica("a"), Replica("b"))
        found = await asyncio.gather(*(text_of(cluster.balancer.submit(ask("a b"))) for _ in range(40)))
        assert (found, cluster.woken) == (["a b"] * 40, 0)
        assert min(len(replica.answered) for replica in cluster.replicas) > 5

    run(scenario())


def test_a_model_that_sleeps_is_asked_for_by_each_request_and_joined_once() -> None:
    async def scenario() -> None:
        cluster = Cluster(Replica())
        cluster.asleep = True
        found = await asyncio.gather(*(text_of(cluster.balancer.submit(ask("a b"))) for _ in range(20)))
        assert (found, cluster.woken) == (["a b"] * 20, 20)
        assert len(cluster.replicas[0].server._callers) == 1
        none = Cluster()
        with pytest.raises(UnavailableError, match="no replica"):
            await text_of(none.balancer.submit(ask("a b")))

    run(scenario())


def test_a_question_that_hangs_is_no_reason_to_wait_for_a_replica_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmray.serve.balancer.LOOK_S", 0.01)

    class Hanging(Cluster):
        async def wake(self) -> Door:
            self.woken += 1
            self.asleep = False
            await asyncio.Event().wait()
            raise AssertionError

    async def scenario() -> None:
        cluster = Hanging(Replica())
        cluster.asleep = True
        assert await text_of(cluster.balancer.submit(ask("a b"))) == "a b"
        assert cluster.woken == 1

    run(scenario())


def test_a_request_that_was_turned_away_goes_to_another_replica() -> None:
    async def scenario() -> None:
        old, new = Replica("old"), Replica("new")
        cluster = Cluster(old)
        await cluster.looked()
        cluster.replicas = [new]
        leaving = asyncio.ensure_future(old.server.leave())
        await asyncio.sleep(0)
        assert await text_of(cluster.balancer.submit(ask("over there", 7))) == "over there"
        assert (old.answered, new.answered) == ([], ["7"])
        await leaving

    run(scenario())


def test_replicas_that_come_are_used_and_those_that_go_are_left() -> None:
    async def scenario() -> None:
        one, two, three = (Replica(name) for name in "abc")
        cluster = Cluster(one)
        await cluster.looked()
        cluster.replicas = [one, two, three]
        await cluster.looked()
        for number in range(60):
            await text_of(cluster.balancer.submit(ask("x", number)))
        assert min(len(replica.answered) for replica in (one, two, three)) > 5
        cluster.replicas = [three]
        await cluster.looked()
        assert len(cluster.balancer._channels) == 3  # once may be a slip
        await cluster.looked()
        three.answered.clear()
        for number in range(10):
            await text_of(cluster.balancer.submit(ask("x", number)))
        assert len(three.answered) == 10

    run(scenario())


def test_the_less_busy_of_two_and_a_sessions_own() -> None:
    async def scenario() -> None:
        busy, idle = Replica("busy", open_gate=False), Replica("idle")
        cluster = Cluster(busy)
        held = [cluster.balancer.submit(ask("held on", number)) for number in range(3)]
        for events in held:
            await anext(events)
        cluster.replicas.append(idle)
        await cluster.looked()
        for number in range(8):
            await text_of(cluster.balancer.submit(ask("x", number)))
        assert len(idle.answered) == 8
        for events in held:
            await events.aclose()
        sessions = Cluster(Replica("a"), Replica("b"), Replica("c"), routing="session")
        await sessions.looked()
        for number in range(9):
            await text_of(sessions.balancer.submit(ask("x", number, session="eve")))
        assert sorted(len(replica.answered) for replica in sessions.replicas) == [0, 0, 9]

    run(scenario())


def test_what_other_gateways_have_under_way_counts_until_a_look_says_otherwise() -> None:
    async def scenario() -> None:
        busy, idle = Replica("busy", open_gate=False), Replica("idle")
        other, cluster = Cluster(busy), Cluster(busy, idle)
        held = [other.balancer.submit(ask("held on", number)) for number in range(3)]
        for events in held:
            await anext(events)
        cluster.doors = {"busy": replace(other.doors["busy"], under_way=3)}
        for number in range(5):
            await text_of(cluster.balancer.submit(ask("x", number)))
        assert len(idle.answered) == 5
        cluster.doors["busy"] = other.doors["busy"]
        await cluster.looked()
        assert [channel.under_way for channel in cluster.balancer._channels.values()] == [0, 0]
        for events in held:
            await events.aclose()

    run(scenario())


class Wire:
    def __init__(self) -> None:
        self.sent = bytearray()

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.sent += data


class Known(Peer):
    """One end, whose other end is known."""

    def __init__(self) -> None:
        super().__init__()
        self.known = True
        self._transport = self.wire = Wire()  # type: ignore[assignment]
        self.found: list[object] = []

    def receive(self, frame: Any) -> None:
        self.found.append(frame)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20), cuts=st.lists(st.integers(1, 40), min_size=1))
@settings(max_examples=50)
def test_frames_are_the_same_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    sender, receiver = Known(), Known()
    values = [list(range(size)) for size in sizes]
    for value in values:
        sender.send(value)
    sent, at, number = bytes(sender.wire.sent), 0, 0
    while at < len(sent):
        size = cuts[number % len(cuts)]
        receiver.data_received(sent[at : at + size])
        at, number = at + size, number + 1
    assert receiver.found == values
