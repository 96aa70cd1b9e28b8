"""From a request's body to what is asked of an engine: prompt rendered, settings filled in, sampling complete.

Everything that can be wrong with a request before an engine is chosen is found here. A setting of the prompt holds
where the request says nothing. Each choice is a request of its own to the engine, with an id and a seed of its own:
the batch that engines make anyway does the rest. Rejected: `n` inside the engines (each would do it in its own way).
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from llmray.serve.chat_fields import NamedTool
from llmray.serve.engine import ChatMessage, EngineRequest, RequestRefusedError, Sampling
from llmray.serve.ports import PromptTemplate
from llmray.serve.prompts import render
from llmray.serve.protocol import ApiError, ChatRequest, CompletionRequest, Request, as_api_error

Resolve = Callable[[str, str], Awaitable[PromptTemplate]]

_COMPLETION_TOKENS = 16
"""Of `/v1/completions` where nothing is said, as OpenAI has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be asked of an engine for one choice, before an engine is chosen."""

    request: EngineRequest
    messages: tuple[ChatMessage, ...]
    """What the model reads; a completion's text stands as one user message."""
    key: str
    """What the choice of a variant sticks to."""
    model: str
    """Name that the client asked for."""
    request_id: str
    """What the choices of one request share: the id of the first."""
    choice: int = 0
    sample: int = 0
    """Which of the `n` answers to its prompt."""
    alone: bool = True
    """Whether it is the only choice."""
    prompt: PromptTemplate | None = None
    prompt_reference: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    documents: tuple[Mapping[str, Any], ...] = ()
    call_forced: bool = False
    """Whether `tool_choice` demands a call: then the schema in the engine's request is that of a call."""

    @property
    def prompt_version(self) -> str | None:
        """`name:version`; None without a prompt."""
        return None if self.prompt is None else f"{self.prompt.name}:{self.prompt.version}"


async def make_plans(
    body: ChatRequest | CompletionRequest,
    *,
    new_id: Callable[[], str],
    default_prompt: str | None,
    adapter: str | None,
    resolve: Resolve,
) -> list[Plan]:
    """What a body asks for, choice by choice.

    Args:
        adapter: LoRA adapter that the body names as its model.
        resolve: from a prompt reference, and who asks, to the version that it names.

    Raises:
        ApiError: the request contradicts itself or its prompt.
    """
    request_id = new_id()
    try:
        if isinstance(body, ChatRequest):
            plans = [await _plan_chat(body, request_id, default_prompt, resolve)]
        else:
            plans = [_plan_completion(body, request_id, prompt) for prompt in body.prompts]
    except RequestRefusedError as error:
        raise as_api_error(error) from error
    choices = [(plan, sample) for plan in plans for sample in range(body.n)]
    return [
        replace(
            plan,
            request=replace(
                plan.request,
                id=request_id if choice == 0 else new_id(),
                adapter=adapter,
                timeout_s=body.timeout_s,
                session=body.user,
                sampling=replace(plan.request.sampling, seed=_seed(plan.request.sampling.seed, sample)),
            ),
            choice=choice,
            sample=sample,
            alone=len(choices) == 1,
            metadata=body.metadata,
            documents=tuple(document.model_dump(exclude_none=True) for document in body.documents),
        )
        for choice, (plan, sample) in enumerate(choices)
    ]


def _plan_completion(body: CompletionRequest, request_id: str, prompt: str | tuple[int, ...]) -> Plan:
    message: ChatMessage = {"role": "user", "content": prompt if isinstance(prompt, str) else ""}
    if not isinstance(prompt, str):
        message = {**message, "token_ids": list(prompt)}
    max_tokens = _COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    request = EngineRequest(id=request_id, prompt=prompt, sampling=_sampling(body, max_tokens), echo=body.echo)
    return Plan(
        request=request, messages=(message,), key=body.user or request_id, model=body.model, request_id=request_id
    )


async def _plan_chat(body: ChatRequest, request_id: str, default_prompt: str | None, resolve: Resolve) -> Plan:
    messages = tuple(message.plain() for message in body.messages)
    prompt, variables, reference = None, body.variables or {}, body.prompt or default_prompt
    max_tokens = body.max_completion_tokens
    if reference is not None:
        prompt = await resolve(reference, body.user or request_id)
        messages = (*render(prompt, variables), *messages)
        body = _filled(body, prompt)
    tools, schema, forced = _tools(body)
    request = EngineRequest(
        id=request_id,
        messages=messages,
        sampling=_sampling(body, body.max_tokens if max_tokens is None else max_tokens),
        tools=tools,
        json_schema=None if schema is None else json.dumps(schema),
    )
    return Plan(
        request=request,
        messages=messages,
        key=body.user or request_id,
        model=body.model,
        request_id=request_id,
        prompt=prompt,
        prompt_reference=reference,
        variables=variables,
        call_forced=forced,
    )


def _filled(body: ChatRequest, prompt: PromptTemplate) -> ChatRequest:
    """The body with the prompt's settings where it has none."""
    settings = {name: prompt.settings[name] for name in body.settings_type.model_fields if name in prompt.settings}
    try:
        read = body.settings_type.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ApiError(
            400,
            f"the settings of {prompt.name}:{prompt.version} are wrong: {first['loc'][0]}: {first['msg']}",
            param="prompt",
            code="invalid_value",
        ) from error
    new = read.model_fields_set - body.model_fields_set
    return body.model_copy(update={name: getattr(read, name) for name in new})


def _tools(body: ChatRequest) -> tuple[tuple[Mapping[str, Any], ...], dict[str, Any] | None, bool]:
    """Tools for the chat template, schema of the answer, and whether the answer must be a call."""
    schema = None if body.response_format is None else body.response_format.schema_wanted()
    choice = body.tool_choice
    if choice is not None and choice not in ("none", "auto") and not body.tools:
        raise RequestRefusedError("tool_choice needs tools to choose from", "tool_choice", "invalid_value")
    if not body.tools or choice == "none":
        return (), schema, False
    functions = [tool.function for tool in body.tools]
    if len({function.name for function in functions}) < len(functions):
        raise RequestRefusedError("tools: each needs a name of its own", "tools", "invalid_value")
    plain = tuple(tool.plain() for tool in body.tools)
    if isinstance(choice, NamedTool):
        functions = [function for function in functions if function.name == choice.function.name]
        if not functions:
            raise RequestRefusedError(f"there is no tool {choice.function.name!r}", "tool_choice", "invalid_value")
    parameters = {function.name: function.parameters for function in functions}
    if isinstance(choice, NamedTool) or choice == "required":
        return plain, _calls_or(parameters), True
    if any(function.strict for function in functions):
        raise RequestRefusedError(
            "a call is kept to its schema where tool_choice asks for one: leave strict out",
            "tools",
            "unsupported_value",
        )
    return plain, None if schema is None else _calls_or(parameters, schema), False


def _calls_or(functions: Mapping[str, Mapping[str, Any] | None], *others: Mapping[str, Any]) -> dict[str, Any]:
    """Schema of what satisfies another schema, or else of one call of any of the functions."""
    options: list[Any] = [_moved(other, f"#/anyOf/{number}") for number, other in enumerate(others)]
    for name, parameters in functions.items():
        arguments = parameters or {"type": "object", "properties": {}, "additionalProperties": False}
        options.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "arguments": _moved(arguments, f"#/anyOf/{len(options)}/properties/arguments"),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": options}


def _moved(node: Any, root: str) -> Any:
    """A schema that stands inside another: its references start where it stands."""
    if isinstance(node, Mapping):
        return {
            name: root + value[1:]
            if name == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for name, value in node.items()
        }
    return [_moved(item, root) for item in node] if isinstance(node, list) else node


def _sampling(body: Request, max_tokens: int | None) -> Sampling:
    names = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty")
    return replace(
        Sampling(
            max_tokens=max_tokens,
            seed=body.seed,
            stop=tuple(body.stop or ()),
            logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
            logprobs=body.num_logprobs,
        ),
        **{name: value for name in names if (value := getattr(body, name)) is not None},
    )


def _seed(seed: int | None, sample: int) -> int | None:
    """Another seed for each sample, within 64 bits."""
    return None if seed is None else (seed + sample + (1 << 63)) % (1 << 64) - (1 << 63)
