"""A bounded queue from the request path to something slower: never blocks, counts what it drops, empties on a clean
stop.

The output log and the monitor's tap are both this. A request pays one append. The queue is bounded by number and by
bytes: a few requests of megabytes must not fill the memory while the registry is away. Rejected: awaiting the sink in the
request, an unbounded queue (memory grows while the sink is away), and a thread (the sink is asynchronous already).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import islice
from typing import Generic, TypeVar

from llmray.errors import UserError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

INTERVAL_S = 0.2


class Outbox(Generic[Item]):
    def __init__(
        self,
        name: str,
        send: Callable[[Sequence[Item]], Awaitable[None]],
        *,
        size: Callable[[Item], int] = lambda _: 0,
        capacity: int = 10_000,
        capacity_bytes: int = 256 << 20,
        batch: int = 256,
        batch_bytes: int = 4 << 20,
        interval_s: float = INTERVAL_S,
        timeout_s: float = 10.0,
        keep_trying: bool = True,
    ) -> None:
        """Send items in batches of at most `batch` and `batch_bytes`, at most `interval_s` after they came.

        A batch that fails and is kept is halved, since it may be too much for the time that there is, or have one item in it that
        is refused; one that is sent lets the next be a little larger.

        Args:
            send: must bear the same batch twice.
            size: about how many bytes an item takes, where items can be large.
            keep_trying: hold a batch that failed and send it again, until the queue is full; else drop it.
        """
        self.dropped = 0
        """Items that came when the queue was full, or that could not be sent."""
        self._name = name
        self._send = send
        self._size = size
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._batch = batch
        self._batch_bytes = batch_bytes
        self._most = batch
        """Items of the next batch at most."""
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._keep_trying = keep_trying
        self._waiting: deque[tuple[Item, int]] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._next_flush: asyncio.Task[None] | None = None
        self._flushes: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: Item) -> None:
        """Queue an item, or count it as dropped."""
        size = self._size(item)
        if len(self._waiting) >= self._capacity or self._waiting_bytes + size > self._capacity_bytes:
            self.dropped += 1
            return
        self._waiting.append((item, size))
        self._waiting_bytes += size
        self._wake.set()

    def start(self) -> None:
        """Begin to send, on the running event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"outbox {self._name}")

    async def flush(self) -> None:
        """Send what is waiting now; what fails stays or is dropped, as everywhere.

        All who come while one is under way share the next.
        """
        if self._next_flush is None:  # in a context of its own: Serve cancels what a request that ends has asked for
            self._next_flush = asyncio.get_running_loop().create_task(self._flush(), context=Context())
            self._flushes.add(self._next_flush)
            self._next_flush.add_done_callback(self._flushes.discard)
        await asyncio.shield(self._next_flush)

    async def close(self, patience_s: float = 10.0) -> None:
        """Send what is left and stop; what could not be sent within `patience_s` is counted and logged."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        pause_s = self._interval_s
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self.flush()
                while self._waiting:
                    await asyncio.sleep(pause_s)
                    await self.flush()
                    pause_s *= 2
        for flush in tuple(self._flushes):
            flush.cancel()
        await asyncio.gather(*self._flushes, return_exceptions=True)
        if self._waiting:
            self.dropped += len(self._waiting)
            logger.error("%s: %d items could not be sent before the stop", self._name, len(self._waiting))
            self._waiting.clear()
            self._waiting_bytes = 0

    async def _flush(self) -> None:
        async with self._sending:
            self._next_flush = None
            for _ in range(2 * len(self._waiting)):
                if not self._waiting or not await self._send_one():
                    break

    async def _run(self) -> None:
        pause_s = self._interval_s
        while True:
            await self._wake.wait()
            await asyncio.sleep(pause_s)
            self._wake.clear()
            await self.flush()
            if self._waiting:
                self._wake.set()
                pause_s = min(pause_s * 2, 5.0)
            else:
                pause_s = self._interval_s

    async def _send_one(self) -> bool:
        batch = self._next_batch()
        try:
            async with asyncio.timeout(
                self._timeout_s
            ):  # wait_for loses a cancellation that comes as the batch is done
                await self._send(batch)
        except Exception as error:
            logger.warning("%s: %d items not sent: %s", self._name, len(batch), error)
            refused = isinstance(error, UserError)
            kept = len(batch) > 1 if refused else self._keep_trying
            if kept:
                self._most = max(1, len(batch) // 2)
                return refused  # then one of them is wrong: find it at once, and let the others pass
            self.dropped += len(batch)
        else:
            self._most = min(self._batch, self._most + 1 + self._most // 8)
        for _ in batch:
            self._waiting_bytes -= self._waiting.popleft()[1]
        return True

    def _next_batch(self) -> list[Item]:
        batch: list[Item] = []
        room = self._batch_bytes
        for item, size in islice(self._waiting, self._most):
            room -= size
            if batch and room < 0:
                break
            batch.append(item)
        return batch
