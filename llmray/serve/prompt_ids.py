"""From what a request asks to the token ids that the model reads: a chat through its template, a text, or ids as they are."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmray.serve.engine import ChatMessage, EngineRequest, RequestRefusedError


def prompt_ids(request: EngineRequest, tokenizer: Any, *, vocabulary: int) -> list[int]:
    """Token ids of a prompt, at least one.

    Raises:
        RequestRefusedError: the model has no template for it, or no such token.
    """
    if request.messages is not None:
        return _chat_ids(request, tokenizer)
    if isinstance(request.prompt, tuple):
        if wrong := [token for token in request.prompt if not 0 <= token < vocabulary]:
            raise RequestRefusedError(
                f"there is no token {wrong[0]}: ids go from 0 to {vocabulary - 1}", "prompt", "invalid_value"
            )
        ids = list(request.prompt)
    else:
        ids = list(tokenizer(request.prompt)["input_ids"])
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise RequestRefusedError("prompt must not be empty: this model has no token to begin with", "prompt")
    return ids


def reads_tools(tokenizer: Any) -> bool:
    """Whether the model's chat template does anything with tools."""
    return isinstance(tokenizer.chat_template, str) and "tools" in tokenizer.chat_template


def _chat_ids(request: EngineRequest, tokenizer: Any) -> list[int]:
    assert request.messages is not None
    if not tokenizer.chat_template:
        raise RequestRefusedError(
            "this model has no chat template: use /v1/completions, or give its tokenizer one", "messages"
        )
    try:
        text = tokenizer.apply_chat_template(
            _readable(request.messages), tools=list(request.tools) or None, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template may refuse roles with any error of its own
        raise RequestRefusedError(f"the model's chat template refuses these messages: {error}", "messages") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _readable(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as templates read them: arguments of calls are mappings there, and JSON texts in OpenAI's API."""
    return [
        {**message, "tool_calls": [_call(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise ValueError(f"the arguments of a call to {function.get('name')} are not JSON: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}
