"""The HTTP edge: OpenAI's requests and errors, held to one rule: a field is honoured or refused, never ignored.

A field that no engine here can do is refused with its name, unless it has the value that asks for nothing (`n: 1`,
`logprobs: false`): clients send those. Null is the same as absent, as in OpenAI's API. Rejected: accepting extra
fields, which is how servers come to give an answer without the penalty or the schema that the client relied on.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from llmray.errors import UserError
from llmray.serve.engine import ChatMessage, DeadlineExceededError, OverloadedError, RequestRefusedError

MAX_BODY_BYTES = 4 << 20

_ASKS_FOR_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
}
"""Fields of OpenAI's API that we do not do yet, with the values that change nothing."""

_KNOWN_UNDONE = frozenset(_ASKS_FOR_NOTHING) | {
    "audio",
    "function_call",
    "functions",
    "prediction",
    "prompt_cache_key",
    "reasoning_effort",
    "safety_identifier",
    "top_logprobs",
    "verbosity",
    "web_search_options",
}

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(max_length=MAX_BODY_BYTES)]


class ApiError(UserError):
    """An answer that is an error, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, message, param, code, retry_after_s)  # what pickle calls it with
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients parse."""
        kind = {404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return _without_nulls(data)

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        """Content may be a list of text parts; images and sound are refused."""
        if not isinstance(content, list):
            return content
        if any(
            not isinstance(part, dict) or set(part) != {"type", "text"} or part["type"] != "text" for part in content
        ):
            raise ValueError("only parts of the form {'type': 'text', 'text': …} can be read")
        if not all(isinstance(part["text"], str) for part in content):
            raise ValueError("the text of a part must be a string")
        return "".join(part["text"] for part in content)

    def plain(self) -> ChatMessage:
        """As chat templates know it: a developer's message is a system one."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return _without_nulls(data)


class Request(_Strict):
    """What chats and completions share."""

    model: str
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    """Extension: draw from the k likeliest tokens; 0 for no limit."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: (
        Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(max_length=4)] | None
    ) = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Kept with the output, under `metadata` of its sampling."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_undone(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = _without_nulls(data)
        for name in sorted(_KNOWN_UNDONE & set(kept) - set(cls.model_fields)):
            value = kept.pop(name)
            if not any(
                value == nothing and type(value) is type(nothing) for nothing in _ASKS_FOR_NOTHING.get(name, ())
            ):
                raise RequestRefusedError(f"{name} is not supported: leave it out", name)
        return kept

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _usage_needs_stream(self) -> "Request":
        if self.stream_options is not None and not self.stream:
            raise RequestRefusedError("stream_options needs stream: true", "stream_options", "invalid_value")
        return self

    def sampling_fields(self) -> dict[str, Any]:
        """What this request sets about sampling."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ChatRequest(Request):
    messages: Annotated[list[Message], Field(max_length=4096)] = []
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    prompt: str | None = None
    """Extension: a prompt of the registry, `ask-docs@production`; its messages come before the request's."""
    variables: Annotated[dict[str, Text], Field(max_length=256)] | None = None
    """Extension: what fills the prompt's placeholders."""

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestRefusedError(
                "max_tokens and max_completion_tokens say the same: send one", "max_tokens", "invalid_value"
            )
        if not self.messages and self.prompt is None:
            raise RequestRefusedError("messages must not be empty", "messages", "invalid_value")
        if self.variables and self.prompt is None:
            raise RequestRefusedError("variables need a prompt to fill", "variables", "invalid_value")
        return self

    def sampling_fields(self) -> dict[str, Any]:
        fields = super().sampling_fields()
        if self.max_completion_tokens is not None:
            fields["max_tokens"] = self.max_completion_tokens
        return fields


class CompletionRequest(Request):
    prompt: Text

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        """OpenAI's API takes a list; one text at a time is what we do."""
        return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt


class FeedbackRequest(_Strict):
    output_id: str
    kind: Literal["thumb", "rating", "correction", "preference"]
    value: Any
    """thumb: `up` or `down`; rating: 1 to 5; correction: the better text; preference: a reason, or null."""
    other_output_id: str | None = None
    """For a preference: the answer that lost against `output_id`."""
    source: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "user"
    rule: Annotated[str, StringConstraints(max_length=2000)] | None = None

    @model_validator(mode="after")
    def _value_fits_kind(self) -> "FeedbackRequest":
        fits = {
            "thumb": self.value in ("up", "down"),
            "rating": isinstance(self.value, int) and not isinstance(self.value, bool) and 1 <= self.value <= 5,
            "correction": isinstance(self.value, str) and bool(self.value.strip()),
            "preference": self.value is None or isinstance(self.value, str),
        }
        if not fits[self.kind]:
            asked = {"thumb": "'up' or 'down'", "rating": "a number from 1 to 5", "correction": "the better text"}
            raise RequestRefusedError(
                f"the value of a {self.kind} must be {asked.get(self.kind, 'a reason or null')}",
                "value",
                "invalid_value",
            )
        if (self.kind == "preference") != (self.other_output_id is not None):
            raise RequestRefusedError(
                "a preference, and nothing else, names the answer that lost in other_output_id",
                "other_output_id",
                "invalid_value",
            )
        if self.other_output_id == self.output_id:
            raise RequestRefusedError("an answer cannot win against itself", "other_output_id", "invalid_value")
        return self

    def record_value(self) -> dict[str, Any]:
        """As the registry keeps it."""
        if self.value is None:
            return {}
        return {
            {"thumb": "thumb", "rating": "rating", "correction": "text", "preference": "reason"}[self.kind]: self.value
        }


Body = TypeVar("Body", bound=BaseModel)


def parse(model: type[Body], raw: bytes) -> Body:
    """Read a request body.

    Raises:
        ApiError: 413 for a body that is too long; 400, with the field as `param`, for all else that is wrong.
    """
    if len(raw) > MAX_BODY_BYTES:
        raise ApiError(413, f"the body has {len(raw)} bytes; the limit is {MAX_BODY_BYTES}", code="request_too_large")
    try:
        return model.model_validate(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    except RequestRefusedError as error:
        raise refused(error) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        if first["type"] == "extra_forbidden":
            raise ApiError(
                400, f"unknown field {param}: leave it out", param=param, code="unknown_parameter"
            ) from error
        raise ApiError(400, f"{param or 'body'}: {first['msg']}", param=param, code="invalid_value") from error


REFUSALS = (RequestRefusedError, OverloadedError, DeadlineExceededError)
"""What a model may answer instead of an answer."""


def refused(error: RequestRefusedError | OverloadedError | DeadlineExceededError) -> ApiError:
    """A model's refusal as an HTTP error."""
    if isinstance(error, OverloadedError):
        return ApiError(429, error.message, code="overloaded", retry_after_s=error.retry_after_s)
    if isinstance(error, DeadlineExceededError):
        return ApiError(504, str(error), param="timeout_s", code="deadline_exceeded")
    return ApiError(400, error.message, param=error.param, code=error.code)


def _without_nulls(data: Any) -> Any:
    return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data
