"""One answer under way: opened, streamed, and closed exactly once however it ends.

An answer is opened by awaiting its first event, so that a refusal still has a status code. It ends finished, failed, or
with the client gone; closing counts it, records it and shows it to the monitor, all by appending to bounded queues
(`accounts`).
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from llmray.outputs import Output
from llmray.serve.access import Caller, caller
from llmray.serve.accounts import Accounts
from llmray.serve.engine import (
    DeadlineExceededError,
    OverloadedError,
    RequestRefusedError,
    TokenEvent,
    TokenLogprob,
    last_user_text,
)
from llmray.serve.metrics import Ended
from llmray.serve.planning import Plan
from llmray.serve.ports import Backend
from llmray.serve.request_log import notes
from llmray.serve.tally import shape_of
from llmray.serve.variants import Variant


@asynccontextmanager
async def in_time(deadline: float | None) -> AsyncGenerator[None, None]:
    """Give up what is done when its time is over.

    Args:
        deadline: by the event loop's clock; None for no limit.

    Raises:
        DeadlineExceededError: it was over.
    """
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineExceededError("the time that the request allows is over") from error


class Answer:
    """An answer under way: iterate it, and close it whatever happens."""

    def __init__(
        self, accounts: Accounts, plan: Plan, variant: Variant, started: float, deadline: float | None = None
    ) -> None:
        """Not begun yet.

        Args:
            deadline: when it must have ended, by the event loop's clock.
        """
        self.id = plan.request.id
        self.plan = plan
        self.variant = variant
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.finish_reason: str | None = None
        self.logprobs: list[TokenLogprob] = []
        self._caller = caller.get() or Caller()
        self._accounts = accounts
        self._started = started
        self._deadline = deadline
        self._ttft_s: float | None = None
        self._pieces: list[str] = []
        self._events: AsyncGenerator[TokenEvent, None] | None = None
        self._first: TokenEvent | None = None
        self._open = False
        self._shared_time = accounts.shared_time(variant.app)
        self._begun = 0.0
        self._figures = accounts.metrics.answer(plan.model, variant.name, plan.prompt_version)

    async def begin(self, backend: Backend) -> None:
        """Await the first event.

        Raises:
            RequestRefusedError: the engine cannot do what is asked.
            OverloadedError: it would come too late.
            DeadlineExceededError: the time that the request allows is over.
            UnavailableError: the model's application is not there.
        """
        self._open = True
        self._begun = self._shared_time.begin()
        self._accounts.tally(self.variant.app).begin(another=self.plan.sample > 0)
        self._figures.begun()
        request = self.plan.request
        if self._deadline is not None:  # the engine is told what is left: it frees what it does for a gateway that died
            request = replace(request, timeout_s=max(0.0, self._deadline - asyncio.get_running_loop().time()))
        self._events = backend.submit(request)
        try:
            self._first = await self._next(self._events)
        except DeadlineExceededError:
            await self._close("deadline")
            raise
        except (RequestRefusedError, OverloadedError):
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
                event = None if event.finish_reason is not None else await self._next(self._events)
            outcome = self.finish_reason or "error"
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except DeadlineExceededError:
            outcome = "deadline"
            raise
        except BaseException:
            outcome = "error"
            raise
        finally:
            await self._close(outcome)

    @property
    def text(self) -> str:
        """What was generated so far."""
        return "".join(self._pieces)

    async def abandon(self) -> None:
        """Nobody wants it any more; nothing where it has ended."""
        await self._close("cancelled")

    async def _next(self, events: AsyncGenerator[TokenEvent, None]) -> TokenEvent:
        if self._deadline is None:
            return await anext(events)
        async with in_time(self._deadline):
            return await anext(events)

    def _take(self, event: TokenEvent) -> None:
        if self._ttft_s is None and event.num_tokens:
            self._ttft_s = self._accounts.now() - self._started
            self._figures.first_token(self._ttft_s)
        self._pieces.append(event.text)
        self.logprobs.extend(event.logprobs)
        self.prompt_tokens = event.prompt_tokens
        self.cached_tokens = max(self.cached_tokens, event.cached_tokens)
        self.completion_tokens += event.num_tokens
        self.finish_reason = event.finish_reason

    async def _close(self, outcome: str) -> None:
        if not self._open:
            return
        self._open = False
        latency_s = self._accounts.now() - self._started
        share_s = self._shared_time.end(self._begun)
        self._figures.ended(
            Ended(
                outcome=outcome,
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.completion_tokens,
                ttft_s=self._ttft_s,
                latency_s=latency_s,
            )
        )
        self._accounts.tally(self.variant.app).end(
            outcome,
            latency_s=latency_s,
            ttft_s=self._ttft_s,
            tokens=self.completion_tokens,
            shape=shape_of(self.text),
            another=self.plan.sample > 0,
        )
        self._caller.tokens += self.prompt_tokens + self.completion_tokens
        if self._first is not None:
            record = self._record(outcome, latency_s, share_s)
            notes().outputs.append(record)
            self._accounts.keep(record)
            if self.plan.sample == 0:  # n answers were asked for once
                self._accounts.show(record, self.plan.request, last_user_text(self.plan.messages) or None)
        if self._events is not None:
            await self._events.aclose()

    def _record(self, outcome: str, latency_s: float, share_s: float) -> Output:
        plan = self.plan
        return Output(
            id=self.id,
            at=datetime.fromtimestamp(self._started, UTC),
            prompt_digest=None if plan.prompt is None else plan.prompt.digest,
            prompt_reference=plan.prompt_reference,
            variables=plan.variables,
            messages=[dict(message) for message in plan.messages],
            completion=self.text,
            finish_reason=outcome,
            model_digest=self.variant.digest,
            variant=self.variant.name,
            quantization=self.variant.quantization,
            engine=self.variant.engine,
            sampling=self._asked(),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            ttft_s=self._ttft_s,
            latency_s=latency_s,
            project=self._caller.project,
            key_id=self._caller.key_id,
            adapter=plan.request.adapter,
            choice=plan.choice,
            request_id=None if plan.alone else plan.request_id,
            documents=list(plan.documents),
            cost=None if self.variant.price_s is None else share_s * self.variant.price_s,
            cached_tokens=self.cached_tokens,
        )

    def _asked(self) -> dict[str, Any]:
        """Sampling, and what else was asked, where it was."""
        request = self.plan.request
        others = {
            "echo": request.echo,
            "tools": list(request.tools),
            "json_schema": request.json_schema,
            "timeout_s": request.timeout_s,
            "metadata": dict(self.plan.metadata or {}),
        }
        return asdict(request.sampling) | {name: value for name, value in others.items() if value}
