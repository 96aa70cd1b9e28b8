"""How a request gets from a gateway to a model's replica and its tokens back: one TCP connection between each two processes.

Serve starts, watches, scales and ends the replicas, and says which there are; the requests themselves pass by it. A
handle's way (router, gRPC for asyncio, acceptance, one message a token) takes 8 ms to a replica and back where this takes
one (docs/design/door.md). What happens within one turn of a replica's loop goes in one frame: a step of eight streams is
one message. Each replica has a secret, which it gives out through Ray alone (see `wire`).

A connection that breaks fails the answers on it at one end and frees their compute at the other. A replica that is to end
says so to all: what reaches it after that is turned away unread, and goes to another; what it had taken is finished. The
gateways hang up, each after its last answer, so that no request is on its way to a replica that is gone.
Rejected: an HTTP server in each replica (a parser for each message), Unix sockets (gateways run on other machines), and
keeping a call of Serve's open beside each answer, so that it sees them (that is the cost which this avoids).
"""

import asyncio
import hmac
import logging
import pickle
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from itertools import count

from llmray.errors import LLMRayError, UnavailableError
from llmray.serve.engine import EngineRequest, TokenEvent
from llmray.serve.wire import PROOF_BYTES, Peer, proof, taken

logger = logging.getLogger(__name__)

Send = Callable[[TokenEvent], None]
Answering = Callable[[EngineRequest, Send], Awaitable[None]]
"""Gives the events of one answer away; raises what it fails with. Cancelled when nobody wants the rest."""

_HELLO_S = 5.0
_FAREWELL_S = 5.0
_LEAVING = 0
"""No request has this number: it says that the replica takes no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """Where a replica is reached, and how it wants to be chosen."""

    replica: str
    host: str
    port: int
    secret: bytes = field(repr=False)
    routing: str
    """`power_of_two`, `prefix` or `session`."""
    under_way: int = 0
    """Answers there now."""


class LeavingError(UnavailableError):
    """The replica is ending and has not looked at the request: another one will take it."""


class ChannelServer:
    """A replica's end: takes requests from every gateway that knows its secret."""

    def __init__(self, answer: Answering) -> None:
        """Take nothing yet.

        Args:
            answer: called in a task of its own for each request.
        """
        self.secret = secrets.token_bytes(PROOF_BYTES)
        self.answer = answer
        self.answering: set[asyncio.Task[None]] = set()
        self.leaving = False
        self._callers: set[_Caller] = set()
        self._hung_up = asyncio.Event()
        self._opening = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def listens(self) -> bool:
        """Whether gateways can come, or could before it was left."""
        return self._server is not None

    async def listen(self, host: str) -> int:
        """Take requests; a second call changes nothing.

        Returns:
            The port.
        """
        async with self._opening:
            if self._server is None:
                self._server = await asyncio.get_running_loop().create_server(lambda: _Caller(self), host, 0)
                self._port = int(self._server.sockets[0].getsockname()[1])
        return self._port

    async def leave(self) -> None:
        """Take no more, finish what was taken, and close once the gateways have hung up."""
        self.leaving = True
        if self._server is not None:
            self._server.close()
        for caller in self._callers:
            caller.put(_LEAVING, None)
        while self.answering:
            await asyncio.wait(self.answering)
        await self._until_alone()
        for caller in self._callers:
            caller.close()
        await self._until_alone()

    def came(self, caller: "_Caller") -> None:
        """A gateway that knows the secret."""
        self._callers.add(caller)
        if self.leaving:
            caller.put(_LEAVING, None)

    def left(self, caller: "_Caller") -> None:
        """It has hung up, or is gone."""
        self._callers.discard(caller)
        self._hung_up.set()

    async def _until_alone(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                while self._callers:
                    self._hung_up.clear()
                    await self._hung_up.wait()


class Channel:
    """A gateway's end, to one replica."""

    def __init__(self, door: Door, gone: Callable[["Channel"], None]) -> None:
        """Not connected yet.

        Args:
            gone: called once, when no more requests can be sent here.
        """
        self.door = door
        self.takes_requests = False
        self._gone = gone
        self._replica: _Replica | None = None
        self._numbers = count(_LEAVING + 1)
        self._streams: dict[int, asyncio.Queue[TokenEvent | Exception]] = {}
        self._others = 0

    @property
    def under_way(self) -> int:
        """Answers in the replica: this gateway's now, and those of others as the replica said last."""
        return len(self._streams) + self._others

    async def open(self) -> None:
        """Connect.

        Raises:
            UnavailableError: nobody is there, or not the replica.
        """
        replica = _Replica(self)
        try:
            async with asyncio.timeout(_HELLO_S):
                await asyncio.get_running_loop().create_connection(lambda: replica, self.door.host, self.door.port)
                await replica.known_to_each_other
        except OSError as error:  # a TimeoutError is one
            raise UnavailableError(f"replica {self.door.replica} does not answer: {error}") from error
        else:
            self._replica, self.takes_requests = replica, not replica.closing
        finally:
            if not self.takes_requests:
                replica.give_up()
        if not self.takes_requests:
            raise UnavailableError(f"replica {self.door.replica} hung up")
        self.told(self.door.under_way)

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        """The events of one answer; leaving early frees its compute.

        Raises:
            LeavingError: it was not taken, and another replica may take it.
            UnavailableError: the replica is gone.
            LLMRayError: what the replica answered.
        """
        if not self.takes_requests or self._replica is None:
            raise LeavingError(f"replica {self.door.replica} takes no more requests")
        number = next(self._numbers)
        stream = self._streams[number] = asyncio.Queue()
        ended = False
        try:
            self._replica.send((number, request))
            while not ended:
                event = await stream.get()
                ended = isinstance(event, Exception) or event.finish_reason is not None
                if isinstance(event, Exception):
                    raise event
                if ended:
                    del self._streams[number]
                yield event
        finally:
            self._streams.pop(number, None)
            if not ended:
                self._replica.send((number, None))
            self._hang_up()

    def told(self, under_way: int) -> None:
        """Take the replica's word for how many answers it has."""
        self._others = max(0, under_way - len(self._streams))

    def take(self, number: int, event: TokenEvent | Exception | None) -> None:
        """What the replica says of a request, or of itself."""
        if event is None:
            self.retire()
        elif (stream := self._streams.get(number)) is not None:
            stream.put_nowait(event)

    def retire(self) -> None:
        """Send no more requests here, and hang up after the last answer."""
        if self.takes_requests:
            self.takes_requests = False
            self._gone(self)
        self._hang_up()

    def lost(self) -> None:
        """The connection is no more."""
        for stream in self._streams.values():
            stream.put_nowait(UnavailableError(f"replica {self.door.replica} is gone"))
        self.retire()

    def _hang_up(self) -> None:
        if not self.takes_requests and not self._streams and self._replica is not None:
            self._replica.close()


class _Replica(Peer):
    """One replica, seen from a gateway."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._asked = False
        self.known_to_each_other: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.known_to_each_other.done():
            self.known_to_each_other.set_exception(error or ConnectionError("it hung up"))
        self._channel.lost()

    def give_up(self) -> None:
        """Nobody waits for it to be known."""
        self.known_to_each_other.cancel()
        self.close()

    def greet(self, said: bytearray) -> None:
        secret = self._channel.door.secret
        if not self._asked:
            if len(said) < PROOF_BYTES:
                return
            self._asked = True
            self.write(proof(secret, "gateway", taken(said)) + self.challenge)
        if len(said) < PROOF_BYTES or self.known_to_each_other.done():
            return
        if hmac.compare_digest(taken(said), proof(secret, "replica", self.challenge)):
            self.known = True
            self.known_to_each_other.set_result(None)
        else:
            self.known_to_each_other.set_exception(ConnectionError("it does not know the replica's secret"))

    def receive(self, frame: tuple[int, list[tuple[int, bytes]]]) -> None:
        under_way, events = frame
        for number, packed in events:
            try:
                event = pickle.loads(packed)  # noqa: S301 - see data_received
            except Exception as error:  # an error of an engine's may take other arguments than it keeps
                event = LLMRayError(f"what the model said cannot be read: {type(error).__name__}: {error}")
            self._channel.take(number, event)
        self._channel.told(under_way)


class _Caller(Peer):
    """One gateway, seen from a replica."""

    def __init__(self, server: ChannelServer) -> None:
        super().__init__()
        self._server = server
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._ready: list[tuple[int, bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._patience = asyncio.get_running_loop().call_later(_HELLO_S, self.close)
        self.write(self.challenge)

    def connection_lost(self, _: Exception | None) -> None:
        self._patience.cancel()
        self._server.left(self)
        for task in self._answers.values():
            task.cancel()

    def greet(self, said: bytearray) -> None:
        if len(said) < 2 * PROOF_BYTES:
            return
        self._patience.cancel()
        secret = self._server.secret
        if not hmac.compare_digest(taken(said), proof(secret, "gateway", self.challenge)):
            logger.warning("somebody without the secret came to a replica's channel")
            self.close()
            return
        self.write(proof(secret, "replica", taken(said)))
        self.known = True
        self._server.came(self)

    def receive(self, frame: tuple[int, EngineRequest | None]) -> None:
        number, request = frame
        if request is None:
            if (task := self._answers.get(number)) is not None:
                task.cancel()
        elif self._server.leaving:
            self.put(number, LeavingError("the replica is ending"))
        else:
            # in a context of its own: the connection's is that of whatever asked for the door first
            task = asyncio.get_running_loop().create_task(self._answer(number, request), context=Context())
            self._answers[number] = task
            self._server.answering.add(task)
            task.add_done_callback(lambda done: self._ended(number, done))  # a task may be cancelled before it begins

    def put(self, number: int, event: TokenEvent | Exception | None) -> None:
        """Send an event with all others of this turn of the loop."""
        try:
            packed = pickle.dumps(event, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            logger.exception("what the engine said cannot be sent")
            packed = pickle.dumps(LLMRayError(f"what the model said cannot be sent: {type(error).__name__}"))
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._flush)
        self._ready.append((number, packed))

    async def _answer(self, number: int, request: EngineRequest) -> None:
        ended = False

        def send(event: TokenEvent) -> None:
            nonlocal ended
            ended = event.finish_reason is not None
            self.put(number, event)

        try:
            await self._server.answer(request, send)
        except asyncio.CancelledError:
            # a gateway whose wish it was does not read this
            self.put(number, UnavailableError("the answer was given up"))
            raise
        except LLMRayError as error:
            self.put(number, error)
        except Exception as error:
            logger.exception("answer %s broke off", request.id)
            self.put(number, LLMRayError(f"the model failed: {type(error).__name__}"))
        else:
            if not ended:
                self.put(number, UnavailableError("the engine ended an answer without a reason"))

    def _ended(self, number: int, task: "asyncio.Task[None]") -> None:
        del self._answers[number]
        self._server.answering.discard(task)

    def _flush(self) -> None:
        ready, self._ready = self._ready, []
        self.send((len(self._server.answering), ready))
