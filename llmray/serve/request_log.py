"""One line of JSON for each request, by the logger `llmray.request`: who asked, what it came to, what it cost; never a text.

An ASGI middleware sees every request, also those that are refused before there is an answer, and sees the end of a
stream. What only the inside knows (output ids, tokens, the key) is noted on the way, in a `Notes` that a context
variable carries; work that outlives its request must run in a context of its own. In a replica the lines go to a file
beside Serve's logs. A logger that cannot keep up must not hold traffic up: refusals beyond `most_refusals_per_s` are
counted rather than written. Rejected: logging from each route (the refused requests would be missing), and the
server's access log (it knows no output ids).
"""

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmray.outputs import Output
from llmray.serve.metrics import GatewayMetrics
from llmray.serve.traces import Traces

logger = logging.getLogger("llmray.request")

CLIENT_LEFT = 499
"""Status, as proxies log it, where nobody reads the response; nothing was refused."""
_FILE_BYTES = 64 << 20


@dataclass(slots=True, kw_only=True)
class Notes:
    """What the inside of the gateway says of the request under way."""

    trace: str | None = None
    """W3C `traceparent` for what is asked of others on its behalf."""
    code: str | None = None
    """Code of the error that it was answered with."""
    key_id: str | None = None
    model: str | None = None
    prompt: str | None = None
    """`name:version`."""
    outputs: list[Output] = field(default_factory=list)


_NOTES: ContextVar[Notes | None] = ContextVar("llmray_request_notes", default=None)


def notes() -> Notes:
    """Of the request that this code runs for; one that nobody reads outside of a request."""
    return _NOTES.get() or Notes()


def write_to(path: Path) -> None:
    """Have the lines written to a file, which is put aside when it is large; once in a process."""
    handler = RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=3, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


class RequestLog:
    """ASGI middleware: logs, counts and traces each request to `/v1/`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: GatewayMetrics,
        traces: Traces | None = None,
        clock: Callable[[], float] = time.time,
        most_refusals_per_s: int = 20,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces
        self._clock = clock
        self._refusals = _Throttle(most_refusals_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        started = self._clock()
        status = 0
        span = None if self._traces is None else self._traces.request(scope["method"], scope["path"], scope["headers"])
        noted = Notes(trace=None if span is None else span.traceparent)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = _NOTES.set(noted)
        try:
            await self._app(scope, receive, watched)
        except Exception:  # answered further out, by the server's own handler
            status, noted.code = status or 500, noted.code or "internal_error"
            raise
        finally:
            _NOTES.reset(token)
            if status >= 400 and status != CLIENT_LEFT:
                self._metrics.refuse(status, noted.code)
            if span is not None:
                span.end(status, noted.code, noted.model, noted.outputs)
            self._log(scope, noted, status, started)

    def _log(self, scope: Scope, noted: Notes, status: int, started: float) -> None:
        unwritten = 0
        if 400 <= status < 500 and status != CLIENT_LEFT:
            unwritten = self._refusals.passed(started)
            if unwritten < 0:
                return
        line = request_line(scope, noted, status, started, self._clock() - started)
        if unwritten:
            line["refusals_unwritten"] = unwritten
        broken = status >= 500 or (status == 200 and noted.code is not None)
        level = logging.ERROR if broken else logging.INFO
        logger.log(level, "%s", orjson.dumps(line).decode())


def request_line(scope: Scope, noted: Notes, status: int, started: float, seconds: float) -> dict[str, Any]:
    """The fields of one line; those that are not known are not there.

    Args:
        status: 0 where the client left before it had one.
    """
    outputs = noted.outputs
    first = outputs[0] if outputs else None
    client = scope.get("client")
    line = {
        "at": datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds"),
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "code": noted.code,
        "seconds": round(seconds, 4),
        "client": client[0] if client else None,
        "key_id": noted.key_id,
        "model": noted.model,
        "prompt": noted.prompt,
        "traceparent": noted.trace,
    }
    if first is not None:
        line |= {
            "output_ids": [output.id for output in outputs],
            "variant": first.variant,
            "model_digest": first.model_digest,
            "finish_reasons": [output.finish_reason for output in outputs],
            "prompt_tokens": first.prompt_tokens,
            "completion_tokens": sum(output.completion_tokens for output in outputs),
            "ttft_s": None if first.ttft_s is None else round(first.ttft_s, 4),
        }
    return {name: value for name, value in line.items() if value is not None}


class _Throttle:
    """Lets some of what comes in a second through."""

    def __init__(self, most_per_s: int) -> None:
        self._most_per_s = most_per_s
        self._second = 0
        self._count = 0
        self._held = 0

    def passed(self, now: float) -> int:
        """How many were held back since the last that passed; -1 to hold this one back."""
        if int(now) != self._second:
            self._second, self._count = int(now), 0
        self._count += 1
        if self._count > self._most_per_s:
            self._held += 1
            return -1
        held, self._held = self._held, 0
        return held
