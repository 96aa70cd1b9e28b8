"""The routes: OpenAI's API over a `Gateway`, and what OpenAI's API lacks.

Bodies are read here rather than by FastAPI, so that every error has OpenAI's shape; the OpenAPI document is given the
same models. Rejected: FastAPI's own validation (422 with another shape) and a middleware that rewrites its errors.
"""

import asyncio
import base64
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from llmray.serve import openapi
from llmray.serve.access import AccessControl
from llmray.serve.core import Gateway
from llmray.serve.embedder import Embedded
from llmray.serve.engine import DeadlineExceededError
from llmray.serve.intake import ClientLeftError, HeaderLimit, Limits, read_body, while_client_waits
from llmray.serve.openapi import OUTPUT_ID_HEADER, body_of, responses
from llmray.serve.output_routes import add_output_routes
from llmray.serve.prompt_routes import add_prompt_routes
from llmray.serve.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    FeedbackRequest,
    as_api_error,
)
from llmray.serve.reply import Reply
from llmray.serve.request_log import CLIENT_LEFT, RequestLog, notes
from llmray.serve.shapes import response_shape
from llmray.serve.sse import EventStream
from llmray.serve.traces import Traces, traces_to_collector

logger = logging.getLogger(__name__)


def create_app(
    gateway: Gateway, limits: Limits | None = None, *, peers_known: bool = True, traces: Traces | None = None
) -> FastAPI:
    """The HTTP face of a gateway.

    Args:
        peers_known: whether a connection shows where a client is, see `AccessControl`.
        traces: makes spans of requests; None for those that OpenTelemetry's variables ask for.
    """
    limits = limits or Limits()
    traces = traces or traces_to_collector("llmray-gateway")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        gateway.start()
        yield
        await gateway.close()
        if traces is not None:
            await asyncio.to_thread(traces.close)

    app = FastAPI(title="llmray", summary="OpenAI-compatible answers whose origin is known", lifespan=lifespan)
    if gateway.ports.keys is not None:
        app.add_middleware(AccessControl, ring=gateway.ports.keys, peers_known=peers_known)
    app.add_middleware(HeaderLimit, limits=limits)
    app.add_middleware(RequestLog, metrics=gateway.accounts.metrics, traces=traces)
    _add_answers(app, gateway, limits)
    _add_models(app, gateway)
    _add_rest(app, gateway, limits)
    add_output_routes(app, gateway)
    add_prompt_routes(app, gateway, limits)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(DeadlineExceededError, _late)
    app.add_exception_handler(ClientLeftError, _client_left)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _our_error)
    return app


def _add_answers(app: FastAPI, gateway: Gateway, limits: Limits) -> None:
    chats = responses(openapi.CHAT, stream=True, output_id=True)
    completions = responses(openapi.COMPLETION, stream=True, output_id=True)

    @app.post("/v1/chat/completions", openapi_extra=body_of(ChatRequest), responses=chats)
    async def chat(request: Request) -> Response:
        return await _respond(gateway, request, await read_body(request, ChatRequest, limits))

    @app.post("/v1/completions", openapi_extra=body_of(CompletionRequest), responses=completions)
    async def complete(request: Request) -> Response:
        return await _respond(gateway, request, await read_body(request, CompletionRequest, limits))

    @app.post("/v1/embeddings", openapi_extra=body_of(EmbeddingRequest), responses=responses(openapi.EMBEDDINGS))
    async def embed(request: Request) -> Response:
        body = await read_body(request, EmbeddingRequest, limits)
        embedded = await while_client_waits(request, gateway.embed(body))
        return Response(orjson.dumps(_embeddings(body, embedded)), media_type="application/json")


def _add_models(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models", responses=responses(openapi.listing(openapi.MODEL)))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(gateway, name) for name in gateway.models()]}

    @app.get("/v1/models/{name:path}", responses=responses(openapi.MODEL))
    async def model(name: str) -> dict[str, Any]:
        if name not in gateway.models():
            raise ApiError(404, f"the model {name!r} does not exist", param="model", code="model_not_found")
        return _model(gateway, name)


def _add_rest(app: FastAPI, gateway: Gateway, limits: Limits) -> None:
    @app.post("/v1/feedback", openapi_extra=body_of(FeedbackRequest), responses=responses(openapi.FEEDBACK))
    async def feedback(request: Request) -> dict[str, Any]:
        kept = await gateway.give_feedback(await read_body(request, FeedbackRequest, limits))
        return {"object": "feedback", "id": kept.id, "output_id": kept.output_id, "kind": kept.kind}

    @app.get("/healthz", responses=responses(openapi.STATUS))
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", responses=responses(openapi.STATUS))
    async def ready() -> dict[str, str]:
        if not await gateway.ready():
            raise ApiError(503, "no model answers", code="model_unavailable", retry_after_s=1.0)
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(await gateway.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _respond(gateway: Gateway, request: Request, body: ChatRequest | CompletionRequest) -> Response:
    if body.stream:
        # the first token is awaited before the status: what is refused has its status code
        reply = await while_client_waits(request, gateway.open(body), undo=Reply.abandon)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(reply, response_shape(body, reply), {OUTPUT_ID_HEADER: reply.id}, with_usage=with_usage)
    reply = await while_client_waits(request, gateway.answer(body))
    return Response(
        orjson.dumps(response_shape(body, reply).whole()),
        media_type="application/json",
        headers={OUTPUT_ID_HEADER: reply.id},
    )


def _embeddings(body: EmbeddingRequest, embedded: Embedded) -> dict[str, Any]:
    rows = embedded.vectors_ND.astype("<f4")
    as_text = body.encoding_format == "base64"
    vectors = [base64.b64encode(row.tobytes()).decode() if as_text else row.tolist() for row in rows]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return {"object": "list", "model": body.model, "data": data, "usage": usage}


def _model(gateway: Gateway, name: str) -> dict[str, Any]:
    assert gateway.config is not None
    config = gateway.config
    found: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "llmray"}
    if name in config.embeddings:
        return found | {"kind": "embedding"}
    variants = [
        {"name": variant.name, "digest": variant.digest, "weight": variant.weight, "quantization": variant.quantization}
        for variant in config.variants
        if name == config.model or name in variant.adapters
    ]
    parent = {} if name == config.model else {"parent": config.model}
    return found | parent | {"kind": "chat", "variants": variants}


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    notes().code = error.code
    headers = {} if error.retry_after_s is None else {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    if error.status in (408, 413):  # the rest of the body is not read
        headers["connection"] = "close"
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _client_left(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _late(request: Request, error: Exception) -> Response:
    assert isinstance(error, DeadlineExceededError)
    return await _api_error(request, as_api_error(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    told = ApiError(error.status_code, str(error.detail), code=code)
    headers = _allowed(request) if error.status_code == 405 else error.headers
    return JSONResponse(told.body(), status_code=error.status_code, headers=headers)


def _allowed(request: Request) -> dict[str, str]:
    """Every method of a path: the router names only those of the first route that it finds there."""
    there = [route for route in request.app.routes if isinstance(route, Route)]
    fitting = [route for route in there if route.path_regex.match(request.url.path)]
    return {"allow": ", ".join(sorted({method for route in fitting for method in route.methods or ()}))}


async def _our_error(_: Request, error: Exception) -> Response:
    logger.error("unexpected error", exc_info=error)
    return JSONResponse(ApiError(500, "internal error", code="internal_error").body(), status_code=500)
