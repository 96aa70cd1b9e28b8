"""An engine that repeats the last thing it was told, word by word: for tests, and to measure the framework itself.

It honours `max_tokens` and `stop`; a seed and a temperature change nothing, since nothing is drawn.
"""

import asyncio
import re
from collections.abc import AsyncGenerator

from llmray.serve.detokenize import StopText
from llmray.serve.engine import (
    EngineInfo,
    EngineLoad,
    EngineRequest,
    RequestRefusedError,
    TokenEvent,
    TokenLogprob,
    check,
    last_user_text,
)

_WORD = re.compile(r"\s*\S+|\s+$")


class EchoEngine:
    def __init__(self, *, step_s: float = 0.0, context_tokens: int = 8192) -> None:
        """Answer one word each `step_s` seconds."""
        self.info = EngineInfo(
            engine="echo",
            quantization="none",
            context_tokens=context_tokens,
            load_s=0.0,
            weight_bytes=0,
            device="none",
            can=frozenset({"echo", "logprobs"}),
        )
        self.active = 0
        """Answers under way."""
        self.closed = False
        self._step_s = step_s

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        check(request, self.info)
        words: list[str] = _WORD.findall(_text(request))
        context = self.info.context_tokens
        if len(words) >= context:
            raise RequestRefusedError(
                f"the prompt has {len(words)} tokens and the model's context holds {context}: shorten it",
                "messages" if request.messages is not None else "prompt",
                "context_length_exceeded",
            )
        asked = request.sampling.max_tokens
        limit = context - len(words) if asked is None else min(asked, context - len(words))
        self.active += 1
        try:
            async for event in self._answer(request, words, limit):
                yield event
        finally:
            self.active -= 1

    async def _answer(self, request: EngineRequest, words: list[str], limit: int) -> AsyncGenerator[TokenEvent, None]:
        stop = StopText(request.sampling.stop)
        if request.echo:
            logprobs = tuple(_certain(request, word, in_prompt=True) for word in words) if _wants(request) else ()
            yield TokenEvent("".join(words), 0, len(words), None if limit else "length", logprobs)
            if not limit:
                return
        for number, word in enumerate(words[:limit]):
            await asyncio.sleep(self._step_s)
            shown = stop.push(word)
            logprobs = (_certain(request, word),) if _wants(request) else ()
            if stop.found:
                yield TokenEvent(shown, 1, len(words), "stop", logprobs)
                return
            if number + 1 == limit and limit < len(words):
                yield TokenEvent(shown + stop.flush(), 1, len(words), "length", logprobs)
                return
            yield TokenEvent(shown, 1, len(words), None, logprobs)
        yield TokenEvent(stop.flush(), 0, len(words), "stop")

    def load(self) -> EngineLoad:
        return EngineLoad(running=self.active, waiting=0, waiting_tokens=0, prefill_tokens_per_s=None)

    def close(self) -> None:
        self.closed = True


def _text(request: EngineRequest) -> str:
    if request.messages is not None:
        return last_user_text(request.messages)
    if isinstance(request.prompt, str):
        return request.prompt
    raise RequestRefusedError("the engine echo has no token ids: send text", "prompt")


def _wants(request: EngineRequest) -> bool:
    return request.sampling.logprobs is not None


def _certain(request: EngineRequest, word: str, *, in_prompt: bool = False) -> TokenLogprob:
    token = word.encode()
    return TokenLogprob(token, 0.0, ((token, 0.0),) if request.sampling.logprobs else (), in_prompt)
