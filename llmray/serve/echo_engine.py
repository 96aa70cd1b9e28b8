"""An engine that repeats the last thing it was told, word by word: for tests, and to measure the framework itself.

It honours `max_tokens` and `stop`; a seed and a temperature change nothing, since nothing is drawn.
"""

import asyncio
import re
from collections.abc import AsyncGenerator

from llmray.serve.detokenize import StopText
from llmray.serve.engine import EngineInfo, EngineRequest, RequestRefusedError, TokenEvent, last_user_text

_WORD = re.compile(r"\s*\S+|\s+$")


class EchoEngine:
    def __init__(self, *, step_s: float = 0.0, context_tokens: int = 8192) -> None:
        """Answer one word each `step_s` seconds."""
        self.info = EngineInfo(
            engine="echo", quantization="none", context_tokens=context_tokens, load_s=0.0, weight_bytes=0, device="none"
        )
        self.active = 0
        """Answers under way."""
        self.closed = False
        self._step_s = step_s

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        text = request.prompt if request.messages is None else last_user_text(request.messages)
        words: list[str] = _WORD.findall(text or "")
        context = self.info.context_tokens
        if len(words) >= context:
            raise RequestRefusedError(
                f"the prompt has {len(words)} tokens and the model's context holds {context}: shorten it",
                "messages" if request.messages is not None else "prompt",
                "context_length_exceeded",
            )
        limit = min(request.sampling.max_tokens or context, context - len(words))
        stop = StopText(request.sampling.stop)
        self.active += 1
        try:
            for number, word in enumerate(words[:limit]):
                await asyncio.sleep(self._step_s)
                shown = stop.push(word)
                if stop.found:
                    yield TokenEvent(shown, 1, len(words), "stop")
                    return
                if number + 1 == limit and limit < len(words):
                    yield TokenEvent(shown + stop.flush(), 1, len(words), "length")
                    return
                yield TokenEvent(shown, 1, len(words))
            yield TokenEvent(stop.flush(), 0, len(words), "stop")
        finally:
            self.active -= 1

    def close(self) -> None:
        self.closed = True
