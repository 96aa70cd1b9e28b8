"""From a request's body to what is asked of an engine: prompt rendered, settings filled in, sampling complete.

Everything that can be wrong with a request before an engine is chosen is found here. A setting of the prompt holds
where the request says nothing.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llmray.serve.engine import ChatMessage, EngineRequest, RequestRefusedError, Sampling
from llmray.serve.ports import PromptTemplate
from llmray.serve.prompts import SETTINGS, render
from llmray.serve.protocol import ChatRequest, CompletionRequest, refused


@dataclass(slots=True, kw_only=True)
class Plan:
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


async def make_plan(
    body: ChatRequest | CompletionRequest,
    *,
    request_id: str,
    default_prompt: str | None,
    resolve: Callable[[str, str], Awaitable[PromptTemplate]],
) -> Plan:
    """What a body asks for.

    Args:
        resolve: from a prompt reference, and who asks, to the version that it names.

    Raises:
        ApiError: the request contradicts itself or its prompt.
    """
    key = body.user or request_id
    if isinstance(body, CompletionRequest):
        request = EngineRequest(id=request_id, prompt=body.prompt, sampling=_sampling(body.sampling_fields()))
        return Plan(
            request=request, messages=({"role": "user", "content": body.prompt},), key=key, metadata=body.metadata
        )
    messages = tuple(message.plain() for message in body.messages)
    fields = body.sampling_fields()
    prompt, variables, reference = None, body.variables or {}, body.prompt or default_prompt
    if reference is not None:
        prompt = await resolve(reference, key)
        try:
            messages = (*render(prompt, variables), *messages)
        except RequestRefusedError as error:
            raise refused(error) from error
        fields = {name: value for name, value in prompt.settings.items() if name in SETTINGS} | fields
    return Plan(
        request=EngineRequest(id=request_id, messages=messages, sampling=_sampling(fields)),
        messages=messages,
        key=key,
        prompt=prompt,
        prompt_reference=reference,
        variables=variables,
        metadata=body.metadata,
    )


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    sampling = replace(Sampling(), **{name: value for name, value in fields.items() if name != "stop"})
    stop = fields.get("stop", ())
    return replace(sampling, stop=(stop,) if isinstance(stop, str) else tuple(stop))
