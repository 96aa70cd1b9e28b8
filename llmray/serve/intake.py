"""What is taken in from a client, and what is too much: headers, body, time to send it; and the client that has left.

A body is counted while it comes, so that a huge one is refused without being read, and a slow one is given up after
its time. Rejected: trusting `content-length` alone (a chunked body has none), and leaving limits to the proxy in front
(the one in Serve has none that fit, and tests run without it).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from llmray.serve.chat_fields import MAX_BODY_BYTES
from llmray.serve.protocol import ApiError, parse
from llmray.serve.request_log import notes

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")

_LONG_BYTES = 256 << 10
"""Bodies from which reading them would hold up every other stream: some milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    body_timeout_s: float = 30.0
    """For the whole body to arrive."""
    max_headers: int = 200
    max_header_bytes: int = 64 << 10
    """Names and values together."""


class ClientLeftError(Exception):
    """Nobody waits for the response."""


class HeaderLimit:
    """Refuse requests with too many headers before anything else looks at them."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", ())
        if len(headers) > self._limits.max_headers or (
            sum(len(name) + len(value) for name, value in headers) > self._limits.max_header_bytes
        ):
            error = ApiError(
                431,
                f"the request has {len(headers)} headers; the limit is {self._limits.max_headers} headers "
                f"and {self._limits.max_header_bytes} bytes",
                code="headers_too_large",
            )
            notes().code = error.code
            response = JSONResponse(error.body(), status_code=431, headers={"connection": "close"})
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


async def read_body(request: Request, model: type[Body], limits: Limits) -> Body:
    """Read a request's JSON.

    Raises:
        ApiError: 408, 413 or 415 for a body that is too slow, too long or no JSON by its own word; 400 for what is wrong in it.
        ClientLeftError: the client left before it had sent everything.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(415, f"the body must be application/json, not {kind[:100]!r}", code="unsupported_media_type")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_long()
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            raw = await _receive(request)
    except TimeoutError as error:
        raise ApiError(
            408, f"the body did not arrive within {limits.body_timeout_s:g} s", code="request_timeout"
        ) from error
    if len(raw) > _LONG_BYTES:
        return await asyncio.to_thread(parse, model, raw)
    return parse(model, raw)


async def while_client_waits(
    request: Request,
    work: Coroutine[Any, Any, Result],
    *,
    undo: Callable[[Result], Awaitable[None]] | None = None,
) -> Result:
    """Do work for a client; when it leaves, the work is cancelled.

    Args:
        undo: frees a result that nobody took, also one that the work came to after it was cancelled.

    Raises:
        ClientLeftError: it left.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_until_gone(request))
    taken = False
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        done = task.done()
        await _stop(left)
        taken = done
        if not done:
            raise ClientLeftError
        return task.result()
    finally:
        if not taken:
            await _stop(left)
            await _stop(task)
            if undo is not None and not task.cancelled() and task.exception() is None:
                await undo(task.result())


async def _receive(request: Request) -> bytes:
    chunks, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise _too_long()
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stop(task: "asyncio.Future[Any]") -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # it was raised above, or nobody waits for it


def _too_long() -> ApiError:
    return ApiError(413, f"the body is longer than {MAX_BODY_BYTES} bytes", code="request_too_large")
