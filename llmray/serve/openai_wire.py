"""Our requests as OpenAI's, and OpenAI's chunks as our events: for engines that are servers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmray.errors import UnavailableError
from llmray.serve.engine import ChatMessage, EngineRequest, FinishReason, RequestRefusedError, TokenEvent, TokenLogprob


def body_of(request: EngineRequest, model: str) -> dict[str, Any]:
    """Arguments of the client's `create`.

    Raises:
        RequestRefusedError: the field has no form in this API.
    """
    sampling, chat = request.sampling, request.messages is not None
    body: dict[str, Any] = {"model": model, "temperature": sampling.temperature, "top_p": sampling.top_p}
    extra: dict[str, Any] = {"top_k": sampling.top_k} if sampling.top_k else {}
    if chat:
        body["messages"] = [_message(one) for one in request.messages or ()]
    else:
        body["prompt"] = list(request.prompt) if isinstance(request.prompt, tuple) else request.prompt
        if sampling.max_tokens is None:
            raise RequestRefusedError("this engine's completions need max_tokens: its own default is 16", "max_tokens")
    optional = {
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
        "echo": request.echo or None,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs} if chat else {"logprobs": sampling.logprobs}
    if request.json_schema is not None:
        if not chat:
            raise RequestRefusedError("this engine follows a schema in chats only", "response_format")
        form = {"name": "answer", "schema": json.loads(request.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body | ({"extra_body": extra} if extra else {})


def _message(message: ChatMessage) -> dict[str, Any]:
    """A message of ours, whose calls have objects for arguments, as templates want them, and JSON texts in this API."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


class Reading:
    """One answer as it comes in. A chunk with text counts as one token until the server tells how many there were."""

    def __init__(self, *, echo: bool) -> None:
        self._echo = echo
        self._tokens = 0
        self._finish: FinishReason | None = None
        self._usage: Any = None
        self._held: TokenEvent | None = None

    def push(self, chunk: Any) -> TokenEvent | None:
        """What a chunk brings; the event that ends the answer is kept for `last`, since the usage comes after it."""
        self._usage = chunk.usage or self._usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        text = (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
        logprobs = _logprobs(choice.logprobs)
        tokens = len(logprobs) or int(bool(text))
        event = TokenEvent(text, tokens, 0, None, logprobs)
        if choice.finish_reason is not None:
            self._finish = "length" if choice.finish_reason == "length" else "stop"
            self._held = event
            return None
        self._tokens += tokens
        return event if text or logprobs else None

    def last(self) -> TokenEvent:
        """The event that ends the answer.

        Raises:
            UnavailableError: the server broke the answer off, or does not count tokens.
        """
        if self._held is None:
            raise UnavailableError("the server broke the answer off")
        if self._usage is None:
            raise UnavailableError("the server does not tell the usage: it must honour stream_options.include_usage")
        return replace(
            self._held,
            num_tokens=max(0, self._usage.completion_tokens - self._tokens),
            prompt_tokens=self._usage.prompt_tokens,
            finish_reason=self._finish,
            cached_tokens=getattr(self._usage.prompt_tokens_details, "cached_tokens", None) or 0,
        )

    def whole(self, answer: Any) -> TokenEvent:
        """An answer that came in one piece, with the prompt first."""
        self.push(answer)
        event = self.last()
        prompt = event.prompt_tokens if self._echo else 0
        logprobs = tuple(replace(one, in_prompt=number < prompt) for number, one in enumerate(event.logprobs))
        return replace(event, logprobs=logprobs)


def _logprobs(found: Any) -> tuple[TokenLogprob, ...]:
    """Those of a chat, and those of a completion, which have two forms."""
    if found is None:
        return ()
    if (content := getattr(found, "content", None)) is not None:
        return tuple(
            TokenLogprob(
                _bytes(_get(one, "token"), _get(one, "bytes")),
                _get(one, "logprob"),
                _top(_get(one, "top_logprobs") or ()),
            )
            for one in content
        )
    tops = found.top_logprobs or [None] * len(found.tokens or ())
    return tuple(
        TokenLogprob(token.encode(), logprob, tuple((name.encode(), value) for name, value in _sorted(top)))
        for token, logprob, top in zip(found.tokens or (), found.token_logprobs or (), tops, strict=True)
    )


def _top(tops: Sequence[Any]) -> tuple[tuple[bytes, float], ...]:
    return tuple((_bytes(_get(one, "token"), _get(one, "bytes")), _get(one, "logprob")) for one in tops)


def _sorted(top: dict[str, float] | None) -> list[tuple[str, float]]:
    return sorted((top or {}).items(), key=lambda one: -one[1])


def _bytes(token: str, raw: Sequence[int] | None) -> bytes:
    return token.encode() if raw is None else bytes(raw)


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, dict) else getattr(item, name)
