"""Copies of requests for a model that nobody hears: its answers are kept beside those that people got.

A copy is taken when the client's answer has ended, so it can neither slow nor fail it; a few at a time are answered, a
bounded queue holds the others, and what does not fit is dropped and counted. Rejected: copying when a request comes in (the
copy competes with the answer that somebody waits for), and comparing here (texts are compared offline, by
`shadow_of`).
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime

from llmray.digest import fraction_of
from llmray.outputs import Output
from llmray.serve.engine import EngineRequest, OverloadedError
from llmray.serve.ports import Backend
from llmray.serve.text_log import output_size
from llmray.serve.variants import Shadow

logger = logging.getLogger(__name__)

_AT_A_TIME = 4
_WAITING = 256
_WAITING_BYTES = 64 << 20
_LONGEST_S = 120.0


class Shadower:
    def __init__(
        self,
        shadow: Callable[[], Shadow | None],
        backend: Callable[[str], Backend],
        keep: Callable[[Output], None],
        *,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        """Ask the shadow that is configured at the moment, and hand its answers to `keep`."""
        self.dropped = 0
        """Copies for which there was no room, here or with the shadow, or no time before the end."""
        self._shadow = shadow
        self._backend = backend
        self._keep = keep
        self._clock = clock
        self._new_id = new_id
        self._copies: asyncio.Queue[tuple[EngineRequest, Output]] = asyncio.Queue(_WAITING)
        self._waiting_bytes = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to answer copies, on the running event loop."""
        loop = asyncio.get_running_loop()
        self._copies, self._waiting_bytes = asyncio.Queue(_WAITING), 0
        self._tasks = [loop.create_task(self._run(), name=f"shadow {number}") for number in range(_AT_A_TIME)]

    async def close(self) -> None:
        """Leave what is under way and what waits: nobody misses it."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        while not self._copies.empty():
            self._copies.get_nowait()
            self.dropped += 1

    def offer(self, request: EngineRequest, answered: Output) -> None:
        """Copy a request that was answered, if it is one of the share that is copied."""
        shadow = self._shadow()
        if shadow is None or answered.finish_reason in ("error", "cancelled", "deadline"):
            return
        if request.adapter is not None and request.adapter not in shadow.variant.adapters:
            return  # it could not say what it was asked for
        if fraction_of(f"shadow:{request.id}") * 100 >= shadow.share:
            return
        size = output_size(answered)
        if self._copies.full() or self._waiting_bytes + size > _WAITING_BYTES:
            self.dropped += 1
            return
        self._copies.put_nowait((request, answered))
        self._waiting_bytes += size

    async def join(self) -> None:
        """Wait until every copy that was taken is answered."""
        await self._copies.join()

    async def _run(self) -> None:
        while True:
            request, answered = await self._copies.get()
            self._waiting_bytes -= output_size(answered)
            try:
                if (shadow := self._shadow()) is not None:
                    self._keep(await self._answer(shadow, request, answered))
            except OverloadedError:
                self.dropped += 1  # which says nothing about its answers
            except asyncio.CancelledError:
                self.dropped += 1
                raise
            except Exception as error:
                self.dropped += 1
                logger.warning("the record of a shadow's answer was lost: %s", error)
            finally:
                self._copies.task_done()

    async def _answer(self, shadow: Shadow, request: EngineRequest, answered: Output) -> Output:
        """What the shadow says; an answer that fails is a record too.

        Raises:
            OverloadedError: it is too busy for a copy.
        """
        variant, output_id, began = shadow.variant, self._new_id(), self._clock()
        pieces: list[str] = []
        tokens, ttft_s, outcome = 0, None, "error"
        try:
            async with (
                asyncio.timeout(_LONGEST_S),
                aclosing(self._backend(variant.app).submit(replace(request, id=output_id))) as events,
            ):
                async for event in events:
                    if ttft_s is None and event.num_tokens:
                        ttft_s = self._clock() - began
                    pieces.append(event.text)
                    tokens += event.num_tokens
                    outcome = event.finish_reason or outcome
        except OverloadedError:
            raise
        except Exception as error:
            outcome = "error"
            logger.info("the shadow %s failed a copy of %s: %s", variant.app, answered.id, error)
        return replace(
            answered,
            id=output_id,
            at=datetime.fromtimestamp(began, UTC),
            completion="".join(pieces) if answered.text_kept else "",
            finish_reason=outcome,
            model_digest=variant.digest,
            variant=variant.name,
            quantization=variant.quantization,
            engine=variant.engine,
            completion_tokens=tokens,
            ttft_s=ttft_s,
            latency_s=self._clock() - began,
            cost=None,
            cached_tokens=0,
            shadow_of=answered.id,
        )
