"""The engine contract: `submit(request)` gives token events; closing the iterator frees the compute.

One small protocol holds for the transformers engine, a server that runs beside us, and the echo engine of the tests.
Requests and events are plain values: they cross process borders. An engine states what it can do beyond plain sampling
(`EngineInfo.can`), and `check` refuses, by the name of the field, what it cannot: nothing is served without a field
that was asked for. Several answers to one request (`n`) are several requests here. Rejected: callbacks (no
backpressure, no cancellation) and futures of whole answers (no streaming).
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from llmray.errors import UserError

FinishReason = Literal["stop", "length"]
Feature = Literal["adapters", "echo", "json_schema", "logit_bias", "logprobs", "penalties", "tools"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
ChatMessage = Mapping[str, Any]
"""`role`, `content`, and `tool_calls`, `tool_call_id` or `name` where they are: what a chat template reads."""


class RequestRefusedError(UserError):
    """The engine cannot do what a request asks; `param` names the field."""

    def __init__(self, message: str, param: str, code: str = "unsupported_value") -> None:
        super().__init__(message, param, code)
        self.message = message
        self.param = param
        self.code = code

    def __str__(self) -> str:
        return self.message


class OverloadedError(UserError):
    """The engine has so much to do that this request would come too late; nothing was done for it."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class DeadlineExceededError(UserError):
    """The time that a request allowed is over, and its compute is freed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    max_tokens: int | None = None
    """Most tokens to generate; None for as many as the context holds. Zero only with `echo`."""
    temperature: float = 1.0
    """Zero for greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """Zero for no limit."""
    seed: int | None = None
    """The same seed, request and weights give the same answer, but for rounding: what others ask at the same time may choose
    another kernel (nf4 and bf16 on CPUs, any on GPUs), and so another token where two are about as likely."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    presence_penalty: float = 0.0
    """Taken once from the logit of each token that was generated before."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that it was generated before."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their logits."""
    logprobs: int | None = None
    """Log-probabilities to report: of the chosen token and of this many of the likeliest; None for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    id: str
    messages: tuple[ChatMessage, ...] | None = None
    """A chat, for the model's chat template; None for a completion."""
    prompt: str | tuple[int, ...] | None = None
    """Text or token ids to go on from; None for a chat."""
    sampling: Sampling = Sampling()
    echo: bool = False
    """Whether the prompt comes first in the answer, and with `logprobs` its tokens' log-probabilities."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the model may call, in OpenAI's form, for the chat template."""
    json_schema: str | None = None
    """JSON Schema that the answer must satisfy; None for free text."""
    adapter: str | None = None
    """Name of the LoRA adapter to answer with; None for the model itself."""
    timeout_s: float | None = None
    """Seconds from the arrival at the engine until the answer must have ended; None for no limit."""
    session: str | None = None
    """What the requests of one conversation or person share, for routing; None for none."""
    trace: str | None = None
    """W3C `traceparent` of the span that this request is a part of; None where nobody traces."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer, or of an echoed prompt."""

    token: bytes
    """Its text in UTF-8; may be a part of a character."""
    logprob: float | None
    """None for the first token of an echoed prompt."""
    top: tuple[tuple[bytes, float], ...] = ()
    """The likeliest tokens in its place, likeliest first."""
    in_prompt: bool = False


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One decode step, as the client will see it. The last event of an answer has a finish reason."""

    text: str
    """New text; may be empty while bytes of a character or a possible stop text are held back."""
    num_tokens: int
    """Tokens generated since the event before."""
    prompt_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens since the event before, where they were asked for."""
    cached_tokens: int = 0
    """Tokens of the prompt whose KV was there already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What runs, for lineage and for people."""

    engine: str
    quantization: str
    context_tokens: int
    load_s: float
    weight_bytes: int
    device: str
    can: frozenset[Feature] = frozenset()
    """What it does beyond plain sampling."""
    adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters that are loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """How busy an engine is now: what admission, autoscaling and metrics go by."""

    running: int
    """Requests that are being decoded."""
    waiting: int
    """Requests whose first token is still to come."""
    waiting_tokens: int
    """Prompt tokens that stand before a request that comes now."""
    prefill_tokens_per_s: float | None
    """Prompt tokens read a second while prompts were read; None before the first one."""
    kv_used: float = 0.0
    """Share of the KV cache's blocks that are in use, 0 to 1."""


class Engine(Protocol):
    info: EngineInfo

    @property
    def closed(self) -> bool:
        """Whether it can answer no more."""
        ...

    def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        """Generate; the last event has a finish reason.

        Raises:
            RequestRefusedError: on the first step, where the engine cannot do what is asked.
            UnavailableError: the engine is closed.
        """
        ...

    def load(self) -> EngineLoad:
        """How busy it is. Cheap: asked for at each request."""
        ...

    def close(self) -> None:
        """Stop generating and free the weights."""
        ...


def check(request: EngineRequest, info: EngineInfo) -> None:
    """Refuse what an engine cannot do.

    Raises:
        RequestRefusedError: names the field.
    """
    sampling = request.sampling
    asked: tuple[tuple[str, Feature, bool], ...] = (
        ("logprobs", "logprobs", sampling.logprobs is not None),
        ("echo", "echo", request.echo),
        ("presence_penalty", "penalties", sampling.presence_penalty != 0),
        ("frequency_penalty", "penalties", sampling.frequency_penalty != 0),
        ("logit_bias", "logit_bias", bool(sampling.logit_bias)),
        ("response_format", "json_schema", request.json_schema is not None),
        ("tools", "tools", bool(request.tools)),
        ("model", "adapters", request.adapter is not None),
    )
    for field, feature, wanted in asked:
        if wanted and feature not in info.can:
            raise RequestRefusedError(f"{field} is not supported by the engine {info.engine}: leave it out", field)
    if request.adapter is not None and request.adapter not in info.adapters:
        raise RequestRefusedError(
            f"there is no adapter {request.adapter!r}: there are {', '.join(info.adapters) or 'none'}",
            "model",
            "model_not_found",
        )


def last_user_text(messages: Sequence[ChatMessage]) -> str:
    """What the person said last: what the monitor watches."""
    return next((str(one["content"] or "") for one in reversed(messages) if one["role"] == "user"), "")
