"""What a gateway replica keeps about its answers: figures, the output log's queue, the monitor's queue.

Nothing here waits: an answer's account is counted and appended to bounded queues, which a task empties off the request
path.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llmray.outputs import Output
from llmray.serve.cost import SharedTime
from llmray.serve.engine import EngineRequest
from llmray.serve.metrics import EngineLoads, GatewayMetrics
from llmray.serve.outbox import Outbox
from llmray.serve.packing import pack
from llmray.serve.ports import Observation, OutputSink, Watcher
from llmray.serve.tally import Tally
from llmray.serve.text_log import kept, output_size, size_of
from llmray.serve.variants import TextLog


@dataclass(frozen=True, slots=True)
class _Unmasked:
    """An output whose texts are masked when it is sent, off the request path."""

    record: Output
    policy: TextLog


class Accounts:
    def __init__(
        self,
        outputs: OutputSink | None,
        *,
        monitor: Callable[[], Watcher | None],
        shadow: Callable[[EngineRequest, Output], None] | None = None,
        text_log: Callable[[], TextLog] = TextLog,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Count and keep.

        Args:
            outputs: the output log; None keeps none.
            monitor: who watches the traffic now.
            shadow: is offered each request with its answer; None where there are no shadows.
            text_log: how much text the log keeps now.
        """
        self.metrics = GatewayMetrics()
        self.now = clock
        """Seconds since the epoch, by this gateway's clock."""
        self._outputs = outputs
        self._monitor = monitor
        self._shadow = shadow
        self._text_log = text_log
        self._log: Outbox[bytes | _Unmasked] = Outbox("output log", self._record, size=_size)
        self._tap: Outbox[Observation] = Outbox(
            "monitor tap",
            self._observe,
            size=size_of,
            capacity_bytes=64 << 20,
            batch=64,
            timeout_s=5.0,
            keep_trying=False,
        )
        self._traffic: dict[str, Tally] = {}
        self._shared: dict[str, SharedTime] = {}

    def start(self) -> None:
        """Begin to empty the queues, on the running event loop."""
        self._log.start()
        self._tap.start()

    async def close(self) -> None:
        """Send what is queued."""
        await asyncio.gather(self._log.close(), self._tap.close())

    async def flush(self) -> None:
        """Wait until every output so far is in the log, or cannot be."""
        await self._log.flush()

    async def text(self, engines: EngineLoads, **figures: float) -> bytes:
        """Prometheus text; a monitor that does not answer within a second is shown as down."""
        status: Mapping[str, Any] | None = None
        if (monitor := self._monitor()) is not None:
            with suppress(Exception):
                status = await asyncio.wait_for(monitor.status(), 1.0)
        queues = {
            "llmray_output_log_waiting": float(len(self._log)),
            "llmray_output_log_dropped_total": float(self._log.dropped),
            "llmray_tap_dropped_total": float(self._tap.dropped),
            **figures,
        }
        return self.metrics.text(queues, status, engines)

    def traffic(self) -> dict[str, Tally]:
        """What was counted of each application since this replica started."""
        return self._traffic

    def tally(self, app: str) -> Tally:
        """Where an application's answers are counted."""
        return self._traffic.setdefault(app, Tally())

    def shared_time(self, app: str) -> SharedTime:
        """What divides an application's time among its answers."""
        if app not in self._shared:
            self._shared[app] = SharedTime(self.now)
        return self._shared[app]

    def keep(self, record: Output) -> None:
        """Queue an output for the log, where there is one."""
        if self._outputs is not None:
            policy = self._text_log()
            self._log.put(_Unmasked(record, policy) if policy.redact else pack(kept(record, policy)))

    def show(self, record: Output, request: EngineRequest, text: str | None) -> None:
        """Show an answer to the shadow and the monitor.

        Args:
            text: what the person said, for the monitor; None for token ids, in which it can read nothing.
        """
        if self._shadow is not None:
            self._shadow(request, record)
        if text is not None and self._monitor() is not None and record.finish_reason in ("stop", "length"):
            self._tap.put(
                Observation(
                    output_id=record.id,
                    at=record.at.timestamp(),
                    model_digest=record.model_digest,
                    variant=record.variant,
                    text=text,
                    completion=record.completion,
                )
            )

    async def _record(self, batch: Sequence[bytes | _Unmasked]) -> None:
        assert self._outputs is not None
        if any(isinstance(one, _Unmasked) for one in batch):
            batch = await asyncio.to_thread(lambda: [_packed(one) for one in batch])
        await self._outputs.put_packed([one for one in batch if isinstance(one, bytes)])

    async def _observe(self, batch: Sequence[Observation]) -> None:
        if (monitor := self._monitor()) is not None:
            await monitor.observe(batch)


def _packed(one: bytes | _Unmasked) -> bytes:
    return one if isinstance(one, bytes) else pack(kept(one.record, one.policy))


def _size(one: bytes | _Unmasked) -> int:
    return len(one) if isinstance(one, bytes) else output_size(one.record)
