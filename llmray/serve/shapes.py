"""Answers as OpenAI's clients read them: whole, or in chunks; as chats or as completions.

A shape holds what has to be known over the chunks of one reply: where each choice stands, which text may still become
a tool call. It reads events and knows nothing of HTTP.
"""

import codecs
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Protocol

from llmray.serve.answer import Answer
from llmray.serve.engine import TokenEvent, TokenLogprob
from llmray.serve.protocol import ChatRequest, CompletionRequest
from llmray.serve.reply import Reply
from llmray.serve.tool_calls import Call, ToolCallReader


class ResponseShape(Protocol):
    def whole(self) -> dict[str, Any]:
        """The response, once every answer has ended."""
        ...

    def chunk(self, number: int, event: TokenEvent) -> dict[str, Any] | None:
        """What a stream sends for an event of a choice; None for nothing."""
        ...

    def usage(self) -> dict[str, Any]:
        """The last chunk of a stream that was asked for its usage."""
        ...


def response_shape(body: ChatRequest | CompletionRequest, reply: Reply) -> ResponseShape:
    """The shape that a request is answered in."""
    return ChatShape(body, reply) if isinstance(body, ChatRequest) else CompletionShape(body, reply)


class ChatShape:
    def __init__(self, body: ChatRequest, reply: Reply) -> None:
        self._reply = reply
        self._head = _head(body, reply)
        self._choices = [_ChatChoice(answer, parallel=body.parallel_tool_calls) for answer in reply.answers]

    def whole(self) -> dict[str, Any]:
        choices = [choice.whole(number) for number, choice in enumerate(self._choices)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._reply.usage()}

    def chunk(self, number: int, event: TokenEvent) -> dict[str, Any] | None:
        choice = self._choices[number].chunk(number, event)
        return None if choice is None else self._chunk([choice])

    def usage(self) -> dict[str, Any]:
        return self._chunk([]) | {"usage": self._reply.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, "usage": None}


class _ChatChoice:
    def __init__(self, answer: Answer, *, parallel: bool) -> None:
        self._answer = answer
        self._parallel = parallel
        names = [tool["function"]["name"] for tool in answer.plan.request.tools]
        self._reader = ToolCallReader(names) if names else None
        self._begun = False
        self._calls = 0

    def whole(self, number: int) -> dict[str, Any]:
        text, calls = self._read(self._answer.text, last=True)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        return self._choice(number, "message", message, self._answer.logprobs, self._answer.finish_reason)

    def chunk(self, number: int, event: TokenEvent) -> dict[str, Any] | None:
        text, calls = self._read(event.text, last=event.finish_reason is not None)
        if not (text or calls or event.finish_reason or event.logprobs):
            return None
        delta: dict[str, Any] = {"content": text} if text or not (self._begun or calls) else {}
        if not self._begun:
            delta = {"role": "assistant", **delta}
            self._begun = True
        if calls:
            delta["tool_calls"] = [
                {"index": self._calls - len(calls) + place, **call} for place, call in enumerate(calls)
            ]
        return self._choice(number, "delta", delta, event.logprobs, event.finish_reason)

    def _choice(
        self, number: int, name: str, said: dict[str, Any], tokens: Sequence[TokenLogprob], reason: str | None
    ) -> dict[str, Any]:
        asked = self._answer.plan.request.sampling.logprobs is not None
        return {
            "index": number,
            name: said,
            "logprobs": {"content": [_chat_logprob(token) for token in tokens], "refusal": None} if asked else None,
            "finish_reason": "tool_calls" if reason == "stop" and self._calls else reason,
        }

    def _read(self, text: str, *, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """Text and calls that new text brings."""
        if self._reader is None:
            return text, []
        parts: Iterable[str | Call] = [*self._reader.push(text), *(self._reader.flush() if last else ())]
        texts, calls = [], []
        for part in parts:
            if self._calls and not self._parallel:
                break  # one call was asked for: what follows it is not part of the answer
            if isinstance(part, str):
                texts.append(part)
            else:
                calls.append(self._call(part))
                self._calls += 1
        return "".join(texts), calls

    def _call(self, call: Call) -> dict[str, Any]:
        # nine letters and digits: Mistral's chat template takes no other id back
        call_id = sha256(f"{self._answer.id}:{self._calls}".encode()).hexdigest()[:9]
        return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class CompletionShape:
    def __init__(self, body: CompletionRequest, reply: Reply) -> None:
        self._reply = reply
        self._head = {**_head(body, reply), "object": "text_completion"}
        self._offsets = [_Offsets() for _ in reply.answers]

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(number, answer.text, answer.logprobs, answer.finish_reason)
            for number, answer in enumerate(self._reply.answers)
        ]
        return {**self._head, "choices": choices, "usage": self._reply.usage()}

    def chunk(self, number: int, event: TokenEvent) -> dict[str, Any] | None:
        if not (event.text or event.finish_reason or event.logprobs):
            return None
        choice = self._choice(number, event.text, event.logprobs, event.finish_reason)
        return {**self._head, "choices": [choice], "usage": None}

    def usage(self) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._reply.usage()}

    def _choice(
        self, number: int, text: str, tokens: Sequence[TokenLogprob], finish_reason: str | None
    ) -> dict[str, Any]:
        asked = self._reply.answers[number].plan.request.sampling.logprobs is not None
        return {
            "index": number,
            "text": text,
            "logprobs": _legacy_logprobs(tokens, self._offsets[number]) if asked else None,
            "finish_reason": finish_reason,
        }


class _Offsets:
    """Where tokens begin in a text, in characters; a token may be a part of one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def next(self, token: bytes) -> int:
        at = self._at
        self._at += len(self._decoder.decode(token))
        return at


def _head(body: ChatRequest | CompletionRequest, reply: Reply) -> dict[str, Any]:
    variant = reply.answers[0].variant
    return {
        "id": reply.id,
        "created": reply.created,
        "model": body.model,
        "system_fingerprint": f"{variant.digest[:12]}-{variant.quantization}",
        "llmray": reply.provenance(),
    }


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    top = [_one_logprob(text, logprob) for text, logprob in token.top]
    return {**_one_logprob(token.token, token.logprob), "top_logprobs": top}


def _one_logprob(token: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def _legacy_logprobs(tokens: Sequence[TokenLogprob], offsets: _Offsets) -> dict[str, Any]:
    """As completions have them: the chosen token is always among the likeliest; nothing is known of the very first."""
    return {
        "tokens": [_legacy_text(token.token) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None
            if token.logprob is None
            else {_legacy_text(text): logprob for text, logprob in (*token.top, (token.token, token.logprob))}
            for token in tokens
        ],
        "text_offset": [offsets.next(token.token) for token in tokens],
    }


def _legacy_text(token: bytes) -> str:
    """A token as text; a part of a character as OpenAI's completions write it, so that two parts stay two keys."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
