"""The HTTP edge: OpenAI's requests and errors, held to one rule: a field is honoured or refused, never ignored.

A field that no engine here can do is refused with its name, unless it has the value that asks for nothing
(`best_of: 1`): clients send those. Null is the same as absent, as in OpenAI's API. What only some engines can do is
taken here and refused by the engine, by the same names. Rejected: accepting extra fields, which is how servers come to
give an answer without the penalty or the schema that the client relied on.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import orjson
from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator, model_validator

from llmray.errors import LLMRayError, UserError
from llmray.serve.chat_fields import (
    MAX_BODY_BYTES,
    Document,
    Message,
    Name,
    NamedTool,
    ResponseFormat,
    StreamOptions,
    Strict,
    Text,
    Tool,
    without_nulls,
)
from llmray.serve.engine import DeadlineExceededError, OverloadedError, RequestRefusedError

MAX_DEPTH = 64
"""Levels of lists and objects in a body; a JSON schema has some ten."""
MAX_CHOICES = 128

_ASKS_FOR_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
}
"""Fields of OpenAI's API that we do not do, with the values that change nothing."""

_KNOWN_UNDONE = frozenset(_ASKS_FOR_NOTHING) | {
    "audio",
    "function_call",
    "functions",
    "prediction",
    "prompt_cache_key",
    "reasoning_effort",
    "safety_identifier",
    "verbosity",
    "web_search_options",
}

Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


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
        kind = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Settings(Strict):
    """How to answer: what a request says, or else the prompt that it names."""

    max_tokens: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    """Extension: draw from the k likeliest tokens; 0 for no limit."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Annotated[list[Stop], Field(max_length=4)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
    ] = Field(default_factory=dict, max_length=1024)
    """From token ids to what is added to their logits."""

    @field_validator("stop", mode="before", json_schema_input_type=Stop | Annotated[list[Stop], Field(max_length=4)])
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop


class ChatSettings(Settings):
    response_format: ResponseFormat | None = None
    tools: list[Tool] = Field(default_factory=list, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """None for `auto` where there are tools."""
    parallel_tool_calls: bool = True


class Request(Settings):
    """What chats and completions share."""

    settings_type: ClassVar[type[Settings]] = Settings

    model: Name
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    """Who asks: stays with one variant while a rollout goes on."""
    metadata: Annotated[dict[str, Text], Field(max_length=16)] | None = None
    """Kept with the output, under `metadata` of its sampling."""
    store: bool = False
    """Whether the output must be kept; where there is an output log, each is."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None
    """Extension: seconds after which the answer is of no use any more."""
    documents: list[Document] = Field(default_factory=list, max_length=256)
    """Extension: what was retrieved for this request; kept with the output."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_undone(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = without_nulls(data)
        for name in sorted(_KNOWN_UNDONE & set(kept)):
            value = kept.pop(name)
            if not any(
                value == nothing and type(value) is type(nothing) for nothing in _ASKS_FOR_NOTHING.get(name, ())
            ):
                raise RequestRefusedError(f"{name} is not supported: leave it out", name)
        return kept

    @model_validator(mode="after")
    def _usage_needs_stream(self) -> "Request":
        if self.stream_options is not None and not self.stream:
            raise RequestRefusedError("stream_options needs stream: true", "stream_options", "invalid_value")
        return self

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to report beside each; None to report nothing."""


class ChatRequest(Request, ChatSettings):
    settings_type: ClassVar[type[Settings]] = ChatSettings

    messages: list[Message] = Field(default_factory=list, max_length=4096)
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt: Name | None = None
    """Extension: a prompt of the registry, `ask-docs@production`; its messages come before the request's."""
    variables: Annotated[dict[Name, Text], Field(max_length=256)] | None = None
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
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestRefusedError("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Request):
    prompt: (
        Text | Annotated[list[Text], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    )
    """One prompt or several, as text or as token ids; several have their choices in order."""
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise RequestRefusedError("max_tokens must be at least 1 without echo", "max_tokens", "invalid_value")
        if len(self.prompts) * self.n > MAX_CHOICES:
            raise RequestRefusedError(
                f"{len(self.prompts)} prompts with {self.n} choices each: the limit is {MAX_CHOICES} choices",
                "prompt" if self.n == 1 else "n",
                "invalid_value",
            )
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [tuple(token for token in self.prompt if isinstance(token, int))]
        return [one if isinstance(one, str) else tuple(one) for one in self.prompt if not isinstance(one, int)]

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class EmbeddingRequest(Strict):
    model: Name
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    """Texts. Token ids are refused: they would be those of another model's tokenizer."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Refused unless it is the model's own number."""
    user: Annotated[str, StringConstraints(max_length=512)] | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class FeedbackRequest(Strict):
    output_id: str
    kind: Literal["thumb", "rating", "correction", "preference"]
    value: Any = None
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
    data = _read_json(raw)
    try:
        return model.model_validate(data)
    except RequestRefusedError as error:
        raise as_api_error(error) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = _path(first["loc"], data)
        param = None if path is None else path[:200]
        if first["type"] == "extra_forbidden":
            raise ApiError(
                400, f"unknown field {param}: leave it out", param=param, code="unknown_parameter"
            ) from error
        raise ApiError(400, f"{param or 'body'}: {first['msg']}", param=param, code="invalid_value") from error


def registry_away(param: str | None = None) -> ApiError:
    """The registry cannot be asked; where it is and what it said are for the output log's warnings, not for who may have no key."""
    told = "the registry is not available now: try again"
    return ApiError(503, told, param=param, code="registry_unavailable", retry_after_s=1.0)


def as_api_error(error: LLMRayError) -> ApiError:
    """What an engine refused, as an HTTP error."""
    match error:
        case ApiError():
            return error
        case RequestRefusedError():
            status = 404 if error.code == "model_not_found" else 400
            return ApiError(status, error.message, param=error.param, code=error.code)
        case OverloadedError():
            return ApiError(429, error.message, code="overloaded", retry_after_s=error.retry_after_s)
        case DeadlineExceededError():
            return ApiError(504, str(error), param="timeout_s", code="deadline_exceeded")
    return ApiError(500, str(error), code="answer_broke_off")


def _read_json(raw: bytes) -> Any:
    """The value, if it is flat enough and names no field twice: one of the two would be ignored."""
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    level, depth = [data], 0
    while level := list(chain.from_iterable(_children(node) for node in level)):
        depth += 1
        if depth > MAX_DEPTH:
            raise ApiError(400, f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")
    json.loads(raw, object_pairs_hook=_once, parse_int=float)
    return data


def _children(node: Any) -> list[Any]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [child for child in children if isinstance(child, dict | list)]


def _once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ApiError(400, f"the body names {name[:100]!r} twice", param=name[:100], code="invalid_json")
        seen.add(name)


def _path(location: tuple[int | str, ...], data: Any) -> str | None:
    """The field that pydantic means, without the names that it gives to the members of a union."""
    path: list[str] = []
    for part in location:
        if isinstance(part, str) and isinstance(data, dict):
            if part not in data and part != location[-1]:
                continue
            data = data.get(part)
        elif isinstance(part, int) and isinstance(data, list):
            data = data[part]
        else:
            continue
        path.append(str(part))
    return ".".join(path) or None
