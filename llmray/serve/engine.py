"""The engine contract: `submit(request)` gives token events; closing the iterator frees the compute.

One small protocol holds for the transformers engine, the echo engine of the tests, and servers run beside us later.
Requests and events are plain values: they cross process borders. Rejected: callbacks (no backpressure, no cancellation)
and futures of whole answers (no streaming).
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llmray.errors import UserError

FinishReason = Literal["stop", "length"]


class RequestRefusedError(UserError):
    """The engine cannot do what a request asks; `param` names the field."""

    def __init__(self, message: str, param: str, code: str = "unsupported_value") -> None:
        super().__init__(message, param, code)
        self.message = message
        self.param = param
        self.code = code

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    max_tokens: int | None = None
    """Most tokens to generate; None for as many as the context holds."""
    temperature: float = 1.0
    """Zero for greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """Zero for no limit."""
    seed: int | None = None
    """The same seed, request and weights give the same answer."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    id: str
    messages: tuple[tuple[str, str], ...] | None = None
    """Roles and contents for the model's chat template; None for a completion."""
    prompt: str | None = None
    """Text to go on from; None for a chat."""
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One decode step, as the client will see it. The last event of an answer has a finish reason."""

    text: str
    """New text; may be empty while bytes of a character or a possible stop text are held back."""
    num_tokens: int
    """Tokens generated since the event before."""
    prompt_tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What runs, for lineage and for people."""

    engine: str
    quantization: str
    context_tokens: int
    load_s: float
    weight_bytes: int
    device: str


class Engine(Protocol):
    info: EngineInfo
    closed: bool
    """Whether it can answer no more."""

    def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        """Generate; the last event has a finish reason.

        Raises:
            RequestRefusedError: on the first step, where the engine cannot do what is asked.
        """
        ...

    def close(self) -> None:
        """Stop generating and free the weights."""
        ...


def last_user_text(messages: Sequence[tuple[str, str]]) -> str:
    """What the person said last: what the monitor watches."""
    return next((content for role, content in reversed(messages) if role == "user"), "")
