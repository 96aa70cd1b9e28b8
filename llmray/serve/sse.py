"""A reply as server-sent events, closed however the stream ends."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from fastapi.responses import StreamingResponse

from llmray.errors import LLMRayError
from llmray.serve.protocol import ApiError, as_api_error
from llmray.serve.reply import Reply
from llmray.serve.request_log import notes
from llmray.serve.shapes import ResponseShape

logger = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """Closes its reply also when the client left before the first byte."""

    def __init__(self, reply: Reply, shape: ResponseShape, headers: dict[str, str], *, with_usage: bool) -> None:
        self._reply = reply
        self._content = _events(reply, shape, with_usage=with_usage)
        headers = {"cache-control": "no-cache", **headers}
        super().__init__(self._content, media_type="text/event-stream", headers=headers)

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            await self._content.aclose()
            await self._reply.abandon()


async def _events(reply: Reply, shape: ResponseShape, *, with_usage: bool) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(reply.events()) as events:
            async for number, event in events:
                if (chunk := shape.chunk(number, event)) is not None:
                    yield _data(chunk)
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception as error:
        if isinstance(error, LLMRayError):
            logger.warning("answer %s broke off: %s", reply.id, error)
            told = as_api_error(error)
        else:
            logger.exception("answer %s broke off", reply.id)
            told = ApiError(500, "the answer broke off", code="answer_broke_off")
        notes().code = told.code
        yield _data(told.body())
        return
    if with_usage:
        yield _data(shape.usage())
    yield b"data: [DONE]\n\n"


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
