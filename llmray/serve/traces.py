"""OpenTelemetry spans of a request: the gateway's, and within it the engine's, in another process.

Off unless OpenTelemetry's own variables name a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`), and then nothing of it is even
imported. The W3C `traceparent` of the client is taken up, and `EngineRequest.trace` carries ours to the replica; a
request without it makes no spans there. Attributes follow the semantic conventions for generative AI; texts are never
among them. Until the first token an engine queues and reads the prompt, which cannot be told apart from outside: that
is one span, with what stood before the request as attributes. Rejected: automatic instrumentation of FastAPI (one span
for each chunk of a stream) and Ray's tracing hook (it patches every actor call of the cluster).
"""

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from llmray.errors import ConfigError
from llmray.outputs import Output
from llmray.serve.engine import EngineInfo, EngineLoad, EngineRequest, TokenEvent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}


def traces_to_collector(service: str, env: Mapping[str, str] = os.environ) -> "Traces | None":
    """Spans to the collector that OpenTelemetry's variables name; None where they name none.

    Args:
        service: name of this process's part, unless `OTEL_SERVICE_NAME` has one.

    Raises:
        ConfigError: a collector is named, and OpenTelemetry's SDK is not installed.
    """
    if not any(env.get(name) for name in _ENDPOINTS) or env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"{_ENDPOINTS[0]} asks for traces and OpenTelemetry's SDK is not installed: pip install llmray[otel], or "
            f"unset it"
        ) from error
    return Traces(BatchSpanProcessor(OTLPSpanExporter()), service=env.get("OTEL_SERVICE_NAME") or service)


class Traces:
    """Makes the spans of one process."""

    def __init__(self, processor: "SpanProcessor", *, service: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        # a provider of our own: the global one may be Ray's, and is set only once
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("llmray")

    def request(self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]]) -> "RequestSpan":
        """The gateway's span, within the client's if it has one."""
        from opentelemetry.trace import SpanKind

        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name in (b"traceparent", b"tracestate")
        }
        operation = _OPERATIONS.get(path)
        attributes = {"http.request.method": method, "url.path": path[:200]}
        if operation is not None:
            attributes |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": "llmray"}
        return RequestSpan(
            self._tracer.start_span(
                operation or method, context=_context(carrier), kind=SpanKind.SERVER, attributes=attributes
            )
        )

    async def engine(
        self, request: EngineRequest, info: EngineInfo, load: EngineLoad, events: AsyncGenerator[TokenEvent, None]
    ) -> AsyncGenerator[TokenEvent, None]:
        """The events of an engine as they are, and spans about them."""
        from opentelemetry.trace import set_span_in_context

        assert request.trace is not None
        whole = self._tracer.start_span(
            "engine",
            context=_context({"traceparent": request.trace}),
            attributes={
                "gen_ai.response.id": request.id,
                "llmray.engine": info.engine,
                "llmray.quantization": info.quantization,
                "llmray.running_before": load.running,
                "llmray.waiting_before": load.waiting,
                "llmray.waiting_tokens_before": load.waiting_tokens,
            },
        )
        within = set_span_in_context(whole)
        part = self._tracer.start_span("queue and prefill", context=within)
        tokens = 0
        try:
            async with aclosing(events):
                async for event in events:
                    if event.num_tokens and not tokens:
                        whole.add_event("first token")
                        part.set_attribute("gen_ai.usage.input_tokens", event.prompt_tokens)
                        part.set_attribute("gen_ai.usage.cache_read.input_tokens", event.cached_tokens)
                        part.end()
                        part = self._tracer.start_span("decode", context=within)
                    tokens += event.num_tokens
                    if event.finish_reason is not None:
                        whole.add_event("finished", {"reason": event.finish_reason})
                    yield event
        except Exception as error:
            _fail(whole, type(error).__name__)
            raise
        finally:
            whole.set_attribute("gen_ai.usage.output_tokens", tokens)
            part.end()
            whole.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class RequestSpan:
    """The gateway's part of one request."""

    def __init__(self, span: "Span") -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """For what is asked of others; None where the span is not kept."""
        if not self._span.is_recording():
            return None
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, status: int, code: str | None, model: str | None, outputs: Sequence[Output]) -> None:
        """Say what it came to.

        Args:
            status: of HTTP; 0 where the client left before there was one.
            code: of the error that the client got.
        """
        found: dict[str, Any] = {
            "http.response.status_code": status or None,
            "error.type": code,
            "gen_ai.request.model": model,
        }
        if outputs:
            first = outputs[0]
            found |= {
                "gen_ai.response.id": first.id,
                "gen_ai.response.finish_reasons": [output.finish_reason for output in outputs],
                "gen_ai.response.time_to_first_chunk": first.ttft_s,
                "gen_ai.usage.input_tokens": first.prompt_tokens,
                "gen_ai.usage.output_tokens": sum(output.completion_tokens for output in outputs),
                "gen_ai.prompt.name": first.prompt_reference,
                "llmray.variant": first.variant,
                "llmray.model_digest": first.model_digest,
            }
        for name, value in found.items():
            if value is not None:
                self._span.set_attribute(name, value)
        if status >= 500 or any(output.finish_reason == "error" for output in outputs):
            _fail(self._span, code or "error")
        self._span.end()


def _context(carrier: Mapping[str, str]) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _fail(span: "Span", why: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, why))
