"""From a gateway to one replica and back, over real connections: asyncio's loop and the one that Ray's workers have."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from bare_replica import LOOPS, Replica, ask, run, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.errors import LLMRayError, UnavailableError
from llmray.serve.channel import Channel, LeavingError, Send
from llmray.serve.engine import EngineRequest, OverloadedError, TokenEvent
from llmray.serve.wire import Peer


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

    def greet(self, said: bytearray) -> None:
        raise AssertionError("it is known")

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
