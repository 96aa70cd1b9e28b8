"""The routes: OpenAI's API over a `Gateway`, and what OpenAI's API lacks.

Bodies are read here rather than by FastAPI, so that every error has OpenAI's shape; the OpenAPI document is given the
same models. Rejected: FastAPI's own validation (422 with another shape) and a middleware that rewrites its errors.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from llmray.errors import LLMRayError
from llmray.serve.answer import Answer, Gateway
from llmray.serve.protocol import ApiError, ChatRequest, CompletionRequest, FeedbackRequest, parse
from llmray.serve.request_log import RequestLog, notes
from llmray.serve.traces import Traces, traces_to_collector

logger = logging.getLogger(__name__)

OUTPUT_ID_HEADER = "x-llmray-output-id"


def create_app(gateway: Gateway, traces: Traces | None = None) -> FastAPI:
    """The HTTP face of a gateway.

    Args:
        traces: makes spans of requests; None for those that OpenTelemetry's variables ask for.
    """
    traces = traces or traces_to_collector("llmray-gateway")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        gateway.start()
        yield
        await gateway.close()
        if traces is not None:
            await asyncio.to_thread(traces.close)

    app = FastAPI(title="llmray", summary="OpenAI-compatible answers whose origin is known", lifespan=lifespan)
    app.add_middleware(RequestLog, metrics=gateway.metrics, traces=traces)
    _add_answers(app, gateway)
    _add_rest(app, gateway)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _our_error)
    return app


def _add_answers(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/v1/chat/completions", openapi_extra=_body(ChatRequest))
    async def chat(request: Request) -> Response:
        body = parse(ChatRequest, await request.body())
        return await _respond(gateway, body, _ChatShape)

    @app.post("/v1/completions", openapi_extra=_body(CompletionRequest))
    async def complete(request: Request) -> Response:
        body = parse(CompletionRequest, await request.body())
        return await _respond(gateway, body, _CompletionShape)


def _add_rest(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(gateway)] if gateway.config else []}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if gateway.config is None or name != gateway.config.model:
            raise ApiError(404, f"the model {name!r} does not exist", param="model", code="model_not_found")
        return _model(gateway)

    @app.post("/v1/feedback", openapi_extra=_body(FeedbackRequest))
    async def feedback(request: Request) -> dict[str, Any]:
        kept = await gateway.give_feedback(parse(FeedbackRequest, await request.body()))
        return {"object": "feedback", "id": kept.id, "output_id": kept.output_id, "kind": kept.kind}

    @app.get("/v1/prompts/{reference}")
    async def prompt(reference: str) -> dict[str, Any]:
        found = await gateway.resolve_prompt(reference)
        return {
            "object": "prompt",
            "name": found.name,
            "version": found.version,
            "digest": found.digest,
            "messages": list(found.messages),
            "variables": list(found.variables),
            "settings": dict(found.settings),
        }

    @app.get("/healthz")
    async def health() -> Response:
        ready = gateway.config is not None
        return JSONResponse({"status": "ok" if ready else "no model"}, status_code=200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await gateway.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class _ChatShape:
    """Chat answers as OpenAI's clients read them."""

    def __init__(self, answer: Answer, model: str) -> None:
        self._head = {"id": answer.id, "created": answer.created, "model": model, "llmray": answer.provenance()}
        self._begun = False

    def whole(self, text: str, finish_reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        delta: dict[str, str] = {"content": text} if text or not self._begun else {}
        if not self._begun:
            delta = {"role": "assistant", **delta}
            self._begun = True
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}


class _CompletionShape:
    """Completions as OpenAI's clients read them."""

    def __init__(self, answer: Answer, model: str) -> None:
        self._head = {
            "id": answer.id,
            "object": "text_completion",
            "created": answer.created,
            "model": model,
            "llmray": answer.provenance(),
        }

    def whole(self, text: str, finish_reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
        return {**self.chunk(text, finish_reason), "usage": usage}

    def chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": usage}


_Shape = type[_ChatShape] | type[_CompletionShape]


async def _respond(gateway: Gateway, body: ChatRequest | CompletionRequest, shape_type: _Shape) -> Response:
    answer = await gateway.open(body)
    shape = shape_type(answer, body.model)
    headers = {OUTPUT_ID_HEADER: answer.id}
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return _Stream(answer, _sse(answer, shape, with_usage), headers)
    text = await answer.text()
    return Response(
        orjson.dumps(shape.whole(text, answer.finish_reason, _usage(answer))),
        media_type="application/json",
        headers=headers,
    )


class _Stream(StreamingResponse):
    """A stream of events that closes its answer also when the client left before the first byte."""

    def __init__(self, answer: Answer, content: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"cache-control": "no-cache", **headers})
        self._answer = answer
        self._content = content

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            await self._content.aclose()
            await self._answer.abandon()


async def _sse(answer: Answer, shape: _ChatShape | _CompletionShape, with_usage: bool) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(answer.events()) as events:
            async for event in events:
                if event.text or event.finish_reason is not None:
                    yield _data(shape.chunk(event.text, event.finish_reason))
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception as error:
        logger.exception("answer %s broke off", answer.id)
        notes().code = "answer_broke_off"
        message = str(error) if isinstance(error, LLMRayError) else "the answer broke off"
        yield _data(ApiError(500, message, code="answer_broke_off").body())
        return
    if with_usage:
        yield _data(shape.usage(_usage(answer)))
    yield b"data: [DONE]\n\n"


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def _model(gateway: Gateway) -> dict[str, Any]:
    assert gateway.config is not None
    variants = [
        {"name": variant.name, "digest": variant.digest, "weight": variant.weight, "quantization": variant.quantization}
        for variant in gateway.config.variants
    ]
    return {"id": gateway.config.model, "object": "model", "created": 0, "owned_by": "llmray", "variants": variants}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema = _inline(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """The schema without references: FastAPI adds no components for bodies that it does not read."""
    if isinstance(node, dict):
        if "$ref" in node:
            return _inline(definitions[node["$ref"].rsplit("/", 1)[1]], definitions)
        return {name: _inline(value, definitions) for name, value in node.items()}
    return [_inline(item, definitions) for item in node] if isinstance(node, list) else node


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    notes().code = error.code
    headers = {} if error.retry_after_s is None else {"retry-after": str(max(1, round(error.retry_after_s)))}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        ApiError(error.status_code, str(error.detail), code="not_found" if error.status_code == 404 else None).body(),
        status_code=error.status_code,
        headers=error.headers,
    )


async def _our_error(_: Request, error: Exception) -> Response:
    logger.error("unexpected error", exc_info=error)
    return JSONResponse(ApiError(500, "internal error", code="internal_error").body(), status_code=500)
