"""One answer from request to record: prompt, variant, engine, account.

This is the gateway without HTTP and without Ray. An answer is opened (its first event awaited, so that a refusal still
has a status code), streamed, and closed exactly once however it ends: finished, failed, or the client gone. Closing
counts it, records it and shows it to the monitor, all by appending to bounded queues.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from llmray.errors import InputError, LLMRayError, UnavailableError
from llmray.serve.engine import ChatMessage, EngineRequest, RequestRefusedError, Sampling, TokenEvent, last_user_text
from llmray.serve.metrics import GatewayMetrics
from llmray.serve.outbox import Outbox
from llmray.serve.ports import Backend, FeedbackRecord, Observation, OutputRecord, Ports, PromptTemplate, Watcher
from llmray.serve.prompts import PromptCache, render
from llmray.serve.protocol import ApiError, ChatRequest, CompletionRequest, FeedbackRequest, refused
from llmray.serve.shadow import Shadower
from llmray.serve.tally import Tally, shape_of
from llmray.serve.variants import GatewayConfig, Variant, choose

logger = logging.getLogger(__name__)

_SETTINGS = frozenset({"temperature", "top_p", "top_k", "max_tokens", "stop", "seed"})
_ATTEMPTS = 3


@dataclass(slots=True, kw_only=True)
class _Plan:
    """What will be asked of an engine, before one is chosen."""

    request: EngineRequest
    messages: tuple[ChatMessage, ...]
    """What the model reads; a completion's text stands as one user message."""
    key: str
    """What the choice of a variant sticks to."""
    prompt: PromptTemplate | None = None
    prompt_reference: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None


class Gateway:
    """Everything a gateway replica holds."""

    def __init__(
        self,
        ports: Ports,
        *,
        backend: Callable[[str], Backend],
        watcher: Callable[[str], Watcher],
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        """Bind the ports.

        Args:
            backend: model application to its engine.
            watcher: monitor application to the monitor.
        """
        self.metrics = GatewayMetrics()
        self.config: GatewayConfig | None = None
        self._ports = ports
        self._backend = backend
        self._watcher = watcher
        self._clock = clock
        self._new_id = new_id
        self._prompts = None if ports.prompts is None else PromptCache(ports.prompts, clock=time.monotonic)
        self._log: Outbox[OutputRecord] = Outbox("output log", self._record)
        self._tap: Outbox[Observation] = Outbox(
            "monitor tap", self._observe, batch=64, timeout_s=5.0, keep_trying=False
        )
        self.shadower = Shadower(
            lambda: None if self.config is None else self.config.shadow, backend, self._keep, clock=clock, new_id=new_id
        )
        self._traffic: dict[str, Tally] = {}

    def configure(self, config: GatewayConfig) -> None:
        """Take over a configuration; requests under way keep theirs."""
        self.config = config

    def start(self) -> None:
        """Begin to empty the queues, on the running event loop."""
        self._log.start()
        self._tap.start()
        self.shadower.start()

    async def close(self) -> None:
        """Send what is queued."""
        await self.shadower.close()
        await self._tap.close()
        await self._log.close()

    async def open(self, body: ChatRequest | CompletionRequest) -> "Answer":
        """Begin an answer: its first token is there.

        Raises:
            ApiError: the request cannot be answered; status and field say why.
        """
        started = self._clock()
        config = self._configured(body.model)
        plan = await self._plan(body, config)
        lost: LLMRayError | None = None
        for _ in range(_ATTEMPTS):
            variant = choose(self._configured(body.model).variants, plan.key)
            answer = Answer(self, plan, variant, started)
            try:
                await answer.begin(self._backend(variant.app))
            except RequestRefusedError as error:
                raise refused(error) from error
            except UnavailableError as error:
                lost = error
                continue
            return answer
        raise ApiError(503, f"the model does not answer: {lost}", code="model_unavailable", retry_after_s=1.0)

    async def give_feedback(self, body: FeedbackRequest) -> FeedbackRecord:
        """Attach feedback to an output.

        Raises:
            ApiError: 404 for an output that nobody knows.
        """
        if self._ports.feedback is None:
            raise ApiError(501, "this gateway keeps no feedback: bind it to a registry", code="no_feedback")
        await self._log.flush()
        feedback = FeedbackRecord(
            id=self._new_id(),
            output_id=body.output_id,
            kind=body.kind,
            value=body.record_value(),
            other_output_id=body.other_output_id,
            source=body.source,
            rule=body.rule,
            at=datetime.fromtimestamp(self._clock(), UTC),
        )
        try:
            await self._ports.feedback.put_feedback(feedback)
        except InputError as error:
            raise ApiError(404, str(error), param="output_id", code="output_not_found") from error
        except UnavailableError as error:
            raise ApiError(503, str(error), code="registry_unavailable", retry_after_s=1.0) from error
        self.metrics.feedback.labels(body.kind).inc()
        return feedback

    async def resolve_prompt(self, reference: str) -> PromptTemplate:
        """The prompt that a reference names.

        Raises:
            ApiError: 404 for a prompt, version or alias that does not exist.
        """
        if self._prompts is None:
            raise ApiError(501, "this gateway has no prompts: bind it to a registry", param="prompt", code="no_prompts")
        try:
            return await self._prompts.get(reference)
        except InputError as error:
            raise ApiError(404, str(error), param="prompt", code="prompt_not_found") from error
        except UnavailableError as error:
            raise ApiError(503, str(error), param="prompt", code="registry_unavailable", retry_after_s=1.0) from error

    async def metrics_text(self) -> bytes:
        """Prometheus text; a monitor that does not answer within a second is shown as down."""
        status: Mapping[str, Any] | None = None
        if self.config is not None and self.config.monitor_app is not None:
            with suppress(Exception):
                status = await asyncio.wait_for(self._watcher(self.config.monitor_app).status(), 1.0)
        queues = {
            "llmray_output_log_waiting": float(len(self._log)),
            "llmray_output_log_dropped_total": float(self._log.dropped),
            "llmray_tap_dropped_total": float(self._tap.dropped),
            "llmray_shadow_dropped_total": float(self.shadower.dropped),
            "llmray_prompt_stale_total": float(self._prompts.stale if self._prompts else 0),
        }
        return self.metrics.text(queues, status)

    def traffic(self) -> dict[str, Tally]:
        """What was counted of each application since this replica started."""
        return self._traffic

    def tally(self, app: str) -> Tally:
        """Where an application's answers are counted."""
        return self._traffic.setdefault(app, Tally())

    def ended(self, record: OutputRecord, request: EngineRequest, text: str) -> None:
        """Take the account of an answer."""
        self._keep(record)
        self.shadower.offer(request, record)
        if (
            self.config is not None
            and self.config.monitor_app is not None
            and record.finish_reason in ("stop", "length")
        ):
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

    def now(self) -> float:
        """Seconds since the epoch, by this gateway's clock."""
        return self._clock()

    def _configured(self, model: str) -> GatewayConfig:
        if self.config is None:
            raise ApiError(503, "no model is deployed", code="model_unavailable", retry_after_s=1.0)
        if model != self.config.model:
            raise ApiError(
                404,
                f"the model {model!r} does not exist: this server has {self.config.model!r}",
                param="model",
                code="model_not_found",
            )
        return self.config

    async def _plan(self, body: ChatRequest | CompletionRequest, config: GatewayConfig) -> _Plan:
        request_id = self._new_id()
        key = body.user or request_id
        if isinstance(body, CompletionRequest):
            request = EngineRequest(id=request_id, prompt=body.prompt, sampling=_sampling(body.sampling_fields()))
            return _Plan(
                request=request, messages=({"role": "user", "content": body.prompt},), key=key, metadata=body.metadata
            )
        messages = tuple(message.plain() for message in body.messages)
        fields = body.sampling_fields()
        prompt, variables, reference = None, body.variables or {}, body.prompt or config.default_prompt
        if reference is not None:
            prompt = await self.resolve_prompt(reference)
            try:
                messages = (*render(prompt, variables), *messages)
            except RequestRefusedError as error:
                raise refused(error) from error
            fields = {name: value for name, value in prompt.settings.items() if name in _SETTINGS} | fields
        return _Plan(
            request=EngineRequest(id=request_id, messages=messages, sampling=_sampling(fields)),
            messages=messages,
            key=key,
            prompt=prompt,
            prompt_reference=reference,
            variables=variables,
            metadata=body.metadata,
        )

    def _keep(self, record: OutputRecord) -> None:
        if self._ports.outputs is not None:
            self._log.put(record)

    async def _record(self, batch: Sequence[OutputRecord]) -> None:
        assert self._ports.outputs is not None
        await self._ports.outputs.put_outputs(batch)

    async def _observe(self, batch: Sequence[Observation]) -> None:
        if self.config is not None and self.config.monitor_app is not None:
            await self._watcher(self.config.monitor_app).observe(batch)


class Answer:
    """An answer under way: iterate it, and close it whatever happens."""

    def __init__(self, gateway: Gateway, plan: _Plan, variant: Variant, started: float) -> None:
        self.id = plan.request.id
        self.variant = variant
        self.created = int(started)
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self._gateway = gateway
        self._plan = plan
        self._started = started
        self._ttft_s: float | None = None
        self._pieces: list[str] = []
        self._events: AsyncGenerator[TokenEvent, None] | None = None
        self._first: TokenEvent | None = None
        self._open = False

    async def begin(self, backend: Backend) -> None:
        """Await the first event.

        Raises:
            RequestRefusedError: the engine cannot do what is asked.
            UnavailableError: the model's application is not there.
        """
        self._open = True
        self._gateway.tally(self.variant.app).begin()
        self._gateway.metrics.running.labels(self.variant.name).inc()
        self._events = backend.submit(self._plan.request)
        try:
            self._first = await anext(self._events)
        except RequestRefusedError:
            await self._close("refused")
            raise
        except asyncio.CancelledError:
            await self._close("cancelled")
            raise
        except BaseException:
            await self._close("error")
            raise

    async def events(self) -> AsyncGenerator[TokenEvent, None]:
        """Every event, the first one included; leaving early frees the engine."""
        assert self._events is not None
        assert self._first is not None
        outcome = "cancelled"
        try:
            event: TokenEvent | None = self._first
            while event is not None:
                self._take(event)
                yield event
                event = None if event.finish_reason is not None else await anext(self._events)
            outcome = self.finish_reason or "error"
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException:
            outcome = "error"
            raise
        finally:
            await self._close(outcome)

    async def text(self) -> str:
        """The whole answer."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return "".join(self._pieces)

    async def abandon(self) -> None:
        """The client left before the first event was sent."""
        await self._close("cancelled")

    def provenance(self) -> dict[str, Any]:
        """The `llmray` field of a response."""
        prompt = self._plan.prompt
        return {
            "output_id": self.id,
            "prompt": None if prompt is None else f"{prompt.name}:{prompt.version}",
            "prompt_digest": None if prompt is None else prompt.digest,
            "model_digest": self.variant.digest,
            "variant": self.variant.name,
        }

    def _take(self, event: TokenEvent) -> None:
        if self._ttft_s is None and event.num_tokens:
            self._ttft_s = self._gateway.now() - self._started
        self._pieces.append(event.text)
        self.prompt_tokens = event.prompt_tokens
        self.completion_tokens += event.num_tokens
        self.finish_reason = event.finish_reason

    async def _close(self, outcome: str) -> None:
        if not self._open:
            return
        self._open = False
        latency_s = self._gateway.now() - self._started
        metrics, name = self._gateway.metrics, self.variant.name
        metrics.running.labels(name).dec()
        metrics.requests.labels(name, self.variant.digest, outcome).inc()
        self._gateway.tally(self.variant.app).end(
            outcome,
            latency_s=latency_s,
            ttft_s=self._ttft_s,
            tokens=self.completion_tokens,
            shape=shape_of("".join(self._pieces)),
        )
        if self._first is not None:
            metrics.prompt_tokens.labels(name).inc(self.prompt_tokens)
            metrics.generation_tokens.labels(name).inc(self.completion_tokens)
            if self._ttft_s is not None:
                metrics.ttft.labels(name).observe(self._ttft_s)
            metrics.latency.labels(name).observe(latency_s)
            record = self._record(outcome, latency_s)
            self._gateway.ended(record, self._plan.request, last_user_text(self._plan.messages))
        if self._events is not None:
            await self._events.aclose()

    def _record(self, outcome: str, latency_s: float) -> OutputRecord:
        plan = self._plan
        sampling = asdict(plan.request.sampling) | ({"metadata": dict(plan.metadata)} if plan.metadata else {})
        return OutputRecord(
            id=self.id,
            at=datetime.fromtimestamp(self._started, UTC),
            prompt_digest=None if plan.prompt is None else plan.prompt.digest,
            prompt_reference=plan.prompt_reference,
            variables=plan.variables,
            messages=[dict(message) for message in plan.messages],
            completion="".join(self._pieces),
            finish_reason=outcome,
            model_digest=self.variant.digest,
            variant=self.variant.name,
            quantization=self.variant.quantization,
            engine=self.variant.engine,
            sampling=sampling,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            ttft_s=self._ttft_s,
            latency_s=latency_s,
        )


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    sampling = replace(Sampling(), **{name: value for name, value in fields.items() if name != "stop"})
    stop = fields.get("stop", ())
    return replace(sampling, stop=(stop,) if isinstance(stop, str) else tuple(stop))
