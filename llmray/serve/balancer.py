"""The replicas of one model, as one gateway reaches them: which there are, and which of them gets a request.

Serve is asked for its replicas every five seconds while requests come; what a connection says (that it broke, that its
replica is ending) counts at once. Where none is there, each request asks Serve for one, and waits: that is what Serve
counts, and what wakes a model that was scaled to zero. Of two replicas drawn at random the one with fewer answers under
way gets a request (Mitzenmacher 2001, "The power of two choices in randomized load balancing"), or its key's own, see
`routing`.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from contextvars import Context

from llmray.errors import UnavailableError
from llmray.serve.channel import Channel, Door, LeavingError
from llmray.serve.engine import EngineRequest, TokenEvent
from llmray.serve.routing import key_of, replica_for

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""Between two looks at which replicas there are; also how long one may take."""


class Balancer:
    def __init__(
        self,
        find: Callable[[], Awaitable[Iterable[Door]]],
        wake: Callable[[], Awaitable[Door]],
        *,
        clock: Callable[[], float],
        draw: random.Random | None = None,
    ) -> None:
        """Know no replica yet.

        Args:
            find: the doors of all replicas that run.
            wake: the door of one, awaited until there is one. Raises UnavailableError where none will be.
            clock: monotonic seconds.
            draw: which two replicas are compared.
        """
        self._find = find
        self._wake = wake
        self._clock = clock
        self._draw = draw or random.Random()
        self._channels: dict[str, Channel] = {}
        self._joining = asyncio.Lock()
        self._looked = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._missing: set[str] = set()

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        """The events of one answer, from one replica; leaving early frees its compute.

        Raises:
            UnavailableError: no replica is there, or the one that answered is gone.
            LLMRayError: what the replica answered.
        """
        while True:
            if not self._channels:
                await self._first()
            elif self._clock() - self._looked > LOOK_S:
                self._look()
            channel = self._best(request)
            try:
                async with aclosing(channel.submit(request)) as events:
                    async for event in events:
                        yield event
            except LeavingError:  # comes before the first event, if at all
                continue
            return

    def _best(self, request: EngineRequest) -> Channel:
        channels = self._channels
        if len(channels) == 1:
            return next(iter(channels.values()))
        key = key_of(next(iter(channels.values())).door.routing, request)
        if key is None:
            return min(self._draw.sample(list(channels.values()), 2), key=lambda channel: channel.under_way)
        return channels[replica_for(key, {name: channel.under_way for name, channel in channels.items()})]

    async def _first(self) -> None:
        """Wait until a replica is there: those that run, or else the one that Serve gives; whichever hangs, the other counts."""
        await asyncio.shield(self._look())
        waking: asyncio.Task[None] | None = None
        try:
            while not self._channels:
                waking = waking or asyncio.ensure_future(self._join_woken())
                await asyncio.wait((waking,), timeout=LOOK_S)
                if waking.done():
                    waking.result()
                    waking = None
                elif not self._channels:
                    await asyncio.shield(self._look())
        finally:
            if waking is not None:
                waking.cancel()

    async def _join_woken(self) -> None:
        await self._join(await self._wake())

    def _look(self) -> "asyncio.Task[None]":
        """The look at all replicas that is under way, or a new one; it never fails."""
        if self._looking is None:
            # in a context of its own: Serve cancels what a request that ends has asked for
            self._looking = asyncio.get_running_loop().create_task(self._look_around(), context=Context())
        return self._looking

    async def _look_around(self) -> None:
        """Connect to the replicas that are new, and leave those that Serve has not named twice."""
        try:
            doors = {door.replica: door for door in await self._find()}
            missing = self._channels.keys() - doors.keys()
            for name in missing & self._missing:
                self._channels[name].retire()
            self._missing = missing
            await asyncio.gather(*map(self._join, doors.values()))
        except UnavailableError as error:
            # as where a model sleeps; those that are known go on, and the next look comes soon
            logger.info("no look at the replicas: %s", error)
        except Exception:  # whatever else Serve can raise
            logger.exception("no look at the replicas")
        finally:
            self._looked = self._clock()
            self._looking = None

    async def _join(self, door: Door) -> None:
        async with self._joining:
            if (known := self._channels.get(door.replica)) is not None:
                known.told(door.under_way)
                return
            channel = Channel(door, self._forget)
            await channel.open()
            self._channels[door.replica] = channel

    def _forget(self, channel: Channel) -> None:
        if self._channels.get(channel.door.replica) is channel:
            del self._channels[channel.door.replica]
