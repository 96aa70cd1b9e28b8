"""Which keys are good, remembered for seconds: a request whose key is known waits for nobody.

A key is looked up when it is first seen. For `FRESH_S` its answer holds; until `HOLDS_S` it holds while it is asked
again in the background; after that a request waits for the answer. So a revoked key ends within `HOLDS_S`. While the
registry is away, keys that were good go on for `GRACE_S` from the last time that it said so, and others are not known.
Keys are kept by their hash, and the memory is bounded: a flood of wrong keys pushes out only wrong ones. Rejected: asking
for each request (a hop to another process and a query), and signed keys (they cannot be revoked).
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from llmray.errors import UnavailableError
from llmray.serve.ports import Key, KeyRing
from llmray.serve.shelf import MOST_LOOKUPS, MOST_WRONG, Shelf

FRESH_S = 1.5
HOLDS_S = 4.0
GRACE_S = 900.0
_PATIENCE_S = 1.0
"""How long a request with a key that was good waits for the registry."""
_MOST_GOOD = 10_000
_ANY = b"any"


@dataclass(slots=True)
class _Known:
    key: Key | None
    at: float
    """When the registry was asked."""


class Keys:
    def __init__(self, ring: KeyRing, *, clock: Callable[[], float]) -> None:
        """Know nothing yet.

        Args:
            clock: monotonic seconds.
        """
        self._ring = ring
        self._clock = clock
        self._good: Shelf[bytes, _Known] = Shelf(_MOST_GOOD)
        self._wrong: Shelf[bytes, _Known] = Shelf(MOST_WRONG)
        self._asking: dict[bytes, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(MOST_LOOKUPS)
        self._any: tuple[bool, float] | None = None

    async def key(self, token: str) -> Key | None:
        """Whom a token stands for; None for a wrong, expired or revoked one.

        Raises:
            UnavailableError: it is not known, and the registry cannot be asked.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known, now = self._find(digest), self._clock()
        if known is not None and now - known.at < FRESH_S:
            return known.key
        asked = self._ask(digest, self._look_up(digest, token))
        if known is not None and now - known.at < HOLDS_S:
            return known.key
        good = known is not None and known.key is not None and now - known.at < GRACE_S
        try:
            async with asyncio.timeout(_PATIENCE_S if good else None):  # wait_for may lose a cancellation
                await asyncio.shield(asked)
        except (UnavailableError, TimeoutError):
            if good and known is not None:
                return known.key
            raise
        found = self._find(digest)
        return None if found is None else found.key

    async def any_keys(self) -> bool:
        """Whether there is any key at all; what was known goes on while the registry is away.

        Raises:
            UnavailableError: it was never known.
        """
        known, now = self._any, self._clock()
        if known is not None and now - known[1] < FRESH_S:
            return known[0]
        asked = self._ask(_ANY, self._look_for_any())
        if known is None or now - known[1] >= HOLDS_S:
            try:
                async with asyncio.timeout(None if known is None else _PATIENCE_S):
                    await asyncio.shield(asked)
            except (UnavailableError, TimeoutError):
                if known is None:
                    raise
        assert self._any is not None
        return self._any[0]

    def _find(self, digest: bytes) -> _Known | None:
        return self._good.get(digest) or self._wrong.get(digest)

    def _ask(self, digest: bytes, look: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """The lookup that is under way, or this one."""
        if (task := self._asking.get(digest)) is not None:
            look.close()
            return task
        # in a context of its own: Serve cancels what a request that ends has asked for
        task = asyncio.get_running_loop().create_task(look, context=Context())
        self._asking[digest] = task
        task.add_done_callback(lambda done: self._done(digest, done))
        return task

    def _done(self, digest: bytes, task: "asyncio.Task[None]") -> None:
        del self._asking[digest]
        if not task.cancelled():
            task.exception()  # whoever waits gets it; where nobody does, the next one asks again

    async def _look_up(self, digest: bytes, token: str) -> None:
        async with self._places:
            key = await self._ring.key(token)
        known = _Known(key, self._clock())
        shelf, other = (self._wrong, self._good) if key is None else (self._good, self._wrong)
        other.forget(digest)
        shelf.put(digest, known)

    async def _look_for_any(self) -> None:
        self._any = (await self._ring.any_keys(), self._clock())
