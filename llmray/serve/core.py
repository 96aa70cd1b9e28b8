"""The gateway without HTTP and without Ray: a request comes in, a model is chosen, an answer is opened.

`planning` says what is asked, `variants` who answers, `reply` is what comes back, `accounts` what is kept of it.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from llmray.errors import InputError, LLMRayError, NotFoundError, UnavailableError
from llmray.outputs import Feedback, Output
from llmray.serve.access import caller
from llmray.serve.accounts import Accounts
from llmray.serve.answer import Answer, in_time
from llmray.serve.embedder import Embedded, Embedder
from llmray.serve.engine import DeadlineExceededError, EngineLoad, EngineRequest, OverloadedError, RequestRefusedError
from llmray.serve.metrics import EngineLoads
from llmray.serve.outbox import INTERVAL_S
from llmray.serve.planning import Plan, make_plans
from llmray.serve.ports import Backend, Ports, PromptTemplate, Watcher
from llmray.serve.prompts import PromptCache
from llmray.serve.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    FeedbackRequest,
    as_api_error,
    registry_away,
)
from llmray.serve.reply import Reply
from llmray.serve.request_log import notes
from llmray.serve.shadow import Shadower
from llmray.serve.tally import Tally
from llmray.serve.text_log import check
from llmray.serve.variants import GatewayConfig, Shadow, TextLog, Variant, choose

Result = TypeVar("Result")

_ATTEMPTS = 3
_LOG_PATIENCE_S = 10.0
"""How long who asks after an output waits for the registry."""
_ELSEWHERE_S = 1.5 * INTERVAL_S
"""After which another replica has sent what it answered before."""


class Gateway:
    """Everything a gateway replica holds."""

    def __init__(
        self,
        ports: Ports,
        *,
        backend: Callable[[str], Backend],
        watcher: Callable[[str], Watcher],
        embedder: Callable[[str], Embedder] | None = None,
        probe: Callable[[str], Awaitable[object]] | None = None,
        engine_loads: Callable[[str], Awaitable[Mapping[str, EngineLoad]]] | None = None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        """Bind the ports.

        Args:
            backend: model application to its engine.
            watcher: monitor application to the monitor.
            embedder: embedding application to its engine; None where there are none.
            probe: asks a model application whether it is there; None where it always is.
            engine_loads: model application to how busy each of its replicas is; None where nobody can say.
        """
        self.config: GatewayConfig | None = None
        self.accounts = Accounts(
            ports.outputs, monitor=self._monitor, shadow=self._offer, text_log=self._text_log, clock=clock
        )
        self.shadower = Shadower(self._shadow, backend, self.accounts.keep, clock=clock, new_id=new_id)
        self.ports = ports
        """What it is bound to."""
        self._backend = backend
        self._watcher = watcher
        self._embedder = embedder
        self._probe = probe
        self._engine_loads = engine_loads
        self._new_id = new_id
        self._prompts = None if ports.prompts is None else PromptCache(ports.prompts, clock=time.monotonic)

    def configure(self, config: GatewayConfig) -> None:
        """Take over a configuration; requests under way keep theirs.

        Raises:
            ConfigError: texts are to be masked, and what that needs is not installed.
        """
        check(config.text_log)
        self.config = config

    def start(self) -> None:
        """Begin to empty the queues, on the running event loop."""
        self.accounts.start()
        self.shadower.start()

    async def close(self) -> None:
        """Send what is queued."""
        await self.shadower.close()
        await self.accounts.close()

    async def open(self, body: ChatRequest | CompletionRequest) -> Reply:
        """Begin an answer, or the `n` that were asked for: the first token of each is there.

        Raises:
            ApiError: the request cannot be answered; status and field say why.
            DeadlineExceededError: the time that it allows is over.
        """
        return await self._answer(body, whole=False)

    async def answer(self, body: ChatRequest | CompletionRequest) -> Reply:
        """The whole answer; where its replica died it is begun anew, since nobody has seen any of it.

        Raises:
            ApiError: the request cannot be answered; status and field say why.
            DeadlineExceededError: the time that it allows is over.
        """
        return await self._answer(body, whole=True)

    async def _answer(self, body: ChatRequest | CompletionRequest, *, whole: bool) -> Reply:
        started = self.accounts.now()
        deadline = None if body.timeout_s is None else asyncio.get_running_loop().time() + body.timeout_s
        notes().model = body.model
        config = self._configured()
        adapter = self._adapter(config, body.model)
        if body.store and self.ports.outputs is None:
            raise ApiError(400, "this gateway keeps no outputs", param="store", code="unsupported_value")
        lost: LLMRayError | None = None
        for _ in range(_ATTEMPTS):
            config = self._configured()
            self._adapter(config, body.model)
            # each attempt has ids of its own: what a lost one leaves in the log must not stand for the answer
            async with in_time(deadline):
                plans = await make_plans(
                    body,
                    new_id=self._new_id,
                    default_prompt=config.default_prompt,
                    adapter=adapter,
                    resolve=self.resolve_prompt,
                )
            notes().prompt = plans[0].prompt_version
            notes().outputs.clear()
            variant = choose(_having(config, adapter), plans[0].key)
            reply = Reply([Answer(self.accounts, plan, variant, started, deadline) for plan in plans], started)
            try:
                await reply.begin(self._backend(variant.app))
                if whole:
                    await reply.complete()
            except UnavailableError as error:
                lost = error
                _charge_nothing()
                continue
            except (RequestRefusedError, OverloadedError, DeadlineExceededError) as error:
                raise _told(error, plans[0]) from error
            return reply
        raise ApiError(503, f"the model does not answer: {lost}", code="model_unavailable", retry_after_s=1.0)

    async def embed(self, body: EmbeddingRequest) -> Embedded:
        """Vectors of texts.

        Raises:
            ApiError: the request cannot be answered; status and field say why.
        """
        models = {} if self.config is None else self.config.embeddings
        if body.model not in models or self._embedder is None:
            raise _no_model(body.model, sorted(models))
        try:
            embedded = await self._embedder(models[body.model]).embed(body.texts)
        except RequestRefusedError as error:
            raise as_api_error(error) from error
        except UnavailableError as error:
            raise ApiError(
                503, f"the model does not answer: {error}", code="model_unavailable", retry_after_s=1.0
            ) from error
        found = embedded.vectors_ND.shape[1]
        if body.dimensions not in (None, found):
            raise ApiError(
                400,
                f"dimensions: {body.model} has {found}: leave it out",
                param="dimensions",
                code="unsupported_value",
            )
        if (who := caller.get()) is not None:
            who.tokens += embedded.tokens
        self.accounts.metrics.embed(body.model, embedded.tokens)
        return embedded

    def models(self) -> list[str]:
        """What clients may ask for as `model`: the model, its adapters, the embedding models."""
        if self.config is None:
            return []
        adapters = sorted({name for variant in self.config.variants for name in variant.adapters})
        return list(dict.fromkeys([self.config.model, *adapters, *self.config.embeddings]))

    async def ready(self) -> bool:
        """Whether a model answers within a second."""
        if self.config is None:
            return False
        if self._probe is None:
            return True
        served = [variant.app for variant in self.config.variants if variant.weight > 0]
        asked = await asyncio.gather(
            *(asyncio.wait_for(self._probe(app), 1.0) for app in served), return_exceptions=True
        )
        return any(not isinstance(one, BaseException) for one in asked)

    async def give_feedback(self, body: FeedbackRequest) -> Feedback:
        """Attach feedback to an output.

        Raises:
            ApiError: 404 for an output that nobody knows, or that another project got.
        """
        sink = self.ports.feedback
        if sink is None:
            raise ApiError(501, "this gateway keeps no feedback: bind it to a registry", code="no_feedback")
        if caller.get() is not None:
            await self.output(body.output_id)
            if body.other_output_id is not None:
                await self.output(body.other_output_id)
        feedback = Feedback(
            id=self._new_id(),
            output_id=body.output_id,
            kind=body.kind,
            value=body.record_value(),
            other_output_id=body.other_output_id,
            source=body.source,
            rule=body.rule,
            at=datetime.fromtimestamp(self.accounts.now(), UTC),
        )
        await self._of_output(lambda: sink.put_feedback(feedback))
        self.accounts.metrics.feedback.labels(body.kind).inc()
        return feedback

    async def output(self, output_id: str) -> Output:
        """Where an answer came from.

        Raises:
            ApiError: 404 for an output that nobody knows, or that another project got.
        """
        log = self.ports.outputs
        if log is None:
            raise ApiError(501, "this gateway keeps no outputs: bind it to a registry", code="no_outputs")
        found = await self._of_output(lambda: log.output(output_id))
        who = caller.get()
        if who is not None and found.project is not None and found.project != who.project:
            raise _no_output(f"there is no output {output_id}")
        return found

    async def _of_output(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        """What the registry says of an output that was answered just now, perhaps by another replica of the gateway."""
        try:
            async with asyncio.timeout(_LOG_PATIENCE_S):
                await self.accounts.flush()
                try:
                    return await ask()
                except NotFoundError:
                    await asyncio.sleep(_ELSEWHERE_S)
                    return await ask()
        except InputError as error:
            raise _no_output(str(error)) from error
        except (UnavailableError, TimeoutError) as error:
            raise registry_away() from error

    async def resolve_prompt(self, reference: str, key: str) -> PromptTemplate:
        """The prompt that a reference names; of a split label, the version that `key` falls on.

        Raises:
            ApiError: 404 for a prompt, version or alias that does not exist.
        """
        if self._prompts is None:
            raise ApiError(501, "this gateway has no prompts: bind it to a registry", param="prompt", code="no_prompts")
        try:
            return await self._prompts.get(reference, key)
        except InputError as error:
            raise ApiError(404, str(error), param="prompt", code="prompt_not_found") from error
        except UnavailableError as error:
            raise registry_away("prompt") from error

    async def metrics_text(self) -> bytes:
        """Prometheus text; an engine that does not answer within a second is left out."""
        engines = await self._busy()
        return await self.accounts.text(
            engines,
            llmray_prompt_stale_total=float(self._prompts.stale if self._prompts else 0),
            llmray_shadow_dropped_total=float(self.shadower.dropped),
        )

    def traffic(self) -> dict[str, Tally]:
        """What was counted of each application since this replica started."""
        return self.accounts.traffic()

    async def _busy(self) -> EngineLoads:
        if self.config is None or self._engine_loads is None:
            return {}
        variants = self.config.variants
        asked = (asyncio.wait_for(self._engine_loads(variant.app), 1.0) for variant in variants)
        found = await asyncio.gather(*asked, return_exceptions=True)
        return {
            variant.name: loads
            for variant, loads in zip(variants, found, strict=True)
            if not isinstance(loads, BaseException)
        }

    def _configured(self) -> GatewayConfig:
        if self.config is None:
            raise ApiError(503, "no model is deployed", code="model_unavailable", retry_after_s=1.0)
        return self.config

    def _adapter(self, config: GatewayConfig, model: str) -> str | None:
        """The adapter that a model's name stands for; None for the model itself."""
        if model == config.model:
            return None
        if not _having(config, model):
            raise _no_model(model, [name for name in self.models() if name not in config.embeddings])
        return model

    def _shadow(self) -> Shadow | None:
        return None if self.config is None else self.config.shadow

    def _offer(self, request: EngineRequest, answered: Output) -> None:
        self.shadower.offer(request, answered)

    def _text_log(self) -> TextLog:
        return TextLog() if self.config is None else self.config.text_log

    def _monitor(self) -> Watcher | None:
        app = None if self.config is None else self.config.monitor_app
        return None if app is None else self._watcher(app)


def _having(config: GatewayConfig, adapter: str | None) -> list[Variant]:
    """Variants that may answer."""
    if adapter is None:
        return list(config.variants)
    return [variant for variant in config.variants if adapter in variant.adapters and variant.weight > 0]


def _no_model(model: str, there: list[str]) -> ApiError:
    return ApiError(
        404,
        f"the model {model[:200]!r} does not exist: this server has {', '.join(there) or 'none'}",
        param="model",
        code="model_not_found",
    )


def _no_output(why: str) -> ApiError:
    return ApiError(404, why, param="output_id", code="output_not_found")


def _charge_nothing() -> None:
    """What an attempt came to that is made again is not the caller's to pay."""
    if (who := caller.get()) is not None:
        who.tokens = 0


def _told(error: LLMRayError, plan: Plan) -> ApiError:
    """A refusal by the name of the field that the client sent."""
    told = as_api_error(error)
    if plan.call_forced and told.param == "response_format":
        return ApiError(400, told.message.replace("response_format", "tool_choice"), "tool_choice", told.code)
    return told
