"""The gateway without HTTP and without Ray: a request comes in, a model is chosen, an answer is opened.

`planning` says what is asked, `variants` who answers, `answer` is what comes back, `accounts` what is kept of it.
"""

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from llmray.errors import InputError, LLMRayError, UnavailableError
from llmray.serve.accounts import Accounts
from llmray.serve.answer import Answer
from llmray.serve.planning import make_plan
from llmray.serve.ports import Backend, FeedbackRecord, Ports, PromptTemplate, Watcher
from llmray.serve.prompts import PromptCache
from llmray.serve.protocol import REFUSALS, ApiError, ChatRequest, CompletionRequest, FeedbackRequest, refused
from llmray.serve.variants import GatewayConfig, choose

_ATTEMPTS = 3


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
        self.config: GatewayConfig | None = None
        self.accounts = Accounts(ports.outputs, monitor=self._monitor, clock=clock)
        self.keys = ports.keys
        """Who may ask; None for anybody who reaches this gateway."""
        self._ports = ports
        self._backend = backend
        self._watcher = watcher
        self._new_id = new_id
        self._prompts = None if ports.prompts is None else PromptCache(ports.prompts, clock=time.monotonic)

    def configure(self, config: GatewayConfig) -> None:
        """Take over a configuration; requests under way keep theirs."""
        self.config = config

    def start(self) -> None:
        """Begin to empty the queues, on the running event loop."""
        self.accounts.start()

    async def close(self) -> None:
        """Send what is queued."""
        await self.accounts.close()

    async def open(self, body: ChatRequest | CompletionRequest) -> Answer:
        """Begin an answer: its first token is there.

        Raises:
            ApiError: the request cannot be answered; status and field say why.
        """
        started = self.accounts.now()
        config = self._configured(body.model)
        plan = await make_plan(
            body, request_id=self._new_id(), default_prompt=config.default_prompt, resolve=self.resolve_prompt
        )
        lost: LLMRayError | None = None
        for _ in range(_ATTEMPTS):
            variant = choose(self._configured(body.model).variants, plan.key)
            answer = Answer(self.accounts, plan, variant, started)
            try:
                await answer.begin(self._backend(variant.app))
            except REFUSALS as error:
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
        await self.accounts.flush()
        feedback = FeedbackRecord(
            id=self._new_id(),
            output_id=body.output_id,
            kind=body.kind,
            value=body.record_value(),
            other_output_id=body.other_output_id,
            source=body.source,
            rule=body.rule,
            at=datetime.fromtimestamp(self.accounts.now(), UTC),
        )
        try:
            await self._ports.feedback.put_feedback(feedback)
        except InputError as error:
            raise ApiError(404, str(error), param="output_id", code="output_not_found") from error
        except UnavailableError as error:
            raise ApiError(503, str(error), code="registry_unavailable", retry_after_s=1.0) from error
        self.accounts.metrics.feedback.labels(body.kind).inc()
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
        """Prometheus text."""
        return await self.accounts.text(llmray_prompt_stale_total=float(self._prompts.stale if self._prompts else 0))

    def traffic(self) -> dict[str, dict[str, int]]:
        """For each application, since this replica started: `requests`, `errors`, `running`."""
        return self.accounts.traffic()

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

    def _monitor(self) -> Watcher | None:
        app = None if self.config is None else self.config.monitor_app
        return None if app is None else self._watcher(app)
