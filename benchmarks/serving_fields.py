"""Which fields of a chat request a server honours: asked, and the answer looked at, field by field.

A field that is refused, ignored or done wrongly counts as not honoured; the three are told apart. A random model's answers
mean nothing, so each check compares answers with one another.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import openai

MESSAGES = [{"role": "user", "content": "Return the path of the file, or raise an error if there is none."}]
SCHEMA = {
    "type": "object",
    "properties": {"found": {"type": "boolean"}, "kind": {"enum": ["file", "folder"]}},
    "required": ["found", "kind"],
    "additionalProperties": False,
}
EXTENSIONS = ("top_k",)
_WORD = re.compile(r"[A-Za-z]{3,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One streamed answer."""

    text: str
    tokens: int
    """As the server counts them."""
    finish_reason: str | None
    logprobs: tuple[Any, ...]
    first_s: float
    """From the request to the first text."""
    seconds: float


async def say(client: openai.AsyncOpenAI, model: str, messages: Any = MESSAGES, **fields: Any) -> Said:
    """Ask for a streamed chat answer.

    Raises:
        openai.OpenAIError: refused, or broken off.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    first, text, tokens, reason = 0.0, [], 0, None
    logprobs: list[Any] = []
    extra = {name: fields.pop(name) for name in EXTENSIONS if name in fields}
    stream = await client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}, extra_body=extra, **fields
    )
    async for chunk in stream:
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        for choice in chunk.choices[:1]:
            if piece := getattr(choice.delta, "content", None):
                first = first or clock() - began
                text.append(piece)
            if choice.logprobs is not None:
                logprobs += choice.logprobs.content or []
            reason = choice.finish_reason or reason
    return Said(
        text="".join(text), tokens=tokens, finish_reason=reason, logprobs=tuple(logprobs), first_s=first,
        seconds=clock() - began,
    )  # fmt: skip


async def honoured(client: openai.AsyncOpenAI, model: str, tokenizer: Any) -> dict[str, str]:
    """Field to `yes`, `refused` or `no`."""
    checks = _Checks(client, model, tokenizer)
    greedy = await checks.ask()
    found = {}
    for name, check in (
        ("max_tokens", checks.max_tokens),
        ("temperature", checks.temperature),
        ("top_p", checks.top_p),
        ("top_k", checks.top_k),
        ("seed", checks.seed),
        ("stop", checks.stop),
        ("penalties", checks.penalties),
        ("logit_bias", checks.logit_bias),
        ("logprobs", checks.logprobs),
        ("n", checks.several),
        ("response_format", checks.schema),
        ("sampling of its own, beside others", checks.of_its_own),
    ):
        found[name] = await _verdict(check, greedy)
    return found


async def _verdict(check: Callable[[Said], Awaitable[bool]], greedy: Said) -> str:
    try:
        return "yes" if await check(greedy) else "no"
    except openai.BadRequestError:
        return "refused"
    except (openai.OpenAIError, ValueError, AttributeError, TypeError, IndexError):
        return "no"  # broken off, or not what such an answer looks like


class _Checks:
    def __init__(self, client: openai.AsyncOpenAI, model: str, tokenizer: Any) -> None:
        self._client, self._model, self._tokenizer = client, model, tokenizer

    async def ask(self, **fields: Any) -> Said:
        return await say(self._client, self._model, **{"temperature": 0.0, "max_tokens": 24, **fields})

    async def max_tokens(self, _: Said) -> bool:
        said = await self.ask(max_tokens=5)
        return (said.tokens, said.finish_reason) == (5, "length")

    async def temperature(self, greedy: Said) -> bool:
        return (await self.ask()).text == greedy.text != (await self.ask(temperature=1.5)).text

    async def top_p(self, greedy: Said) -> bool:
        hot = await self.ask(temperature=2.0)
        return (await self.ask(temperature=2.0, top_p=1e-6)).text == greedy.text != hot.text

    async def top_k(self, greedy: Said) -> bool:
        return (await self.ask(temperature=2.0, top_k=1)).text == greedy.text

    async def seed(self, _: Said) -> bool:
        first, again, other = [(await self.ask(temperature=1.0, seed=seed)).text for seed in (7, 7, 8)]
        return first == again != other

    async def stop(self, greedy: Said) -> bool:
        stop = _WORD.findall(greedy.text, 8)[0]
        said = await self.ask(stop=[stop])
        return (said.text, said.finish_reason) == (greedy.text[: greedy.text.index(stop)], "stop")

    async def penalties(self, _: Said) -> bool:
        before, again = [(await self.ask(max_tokens=64)).text for _ in range(2)]
        after = (await self.ask(max_tokens=64, frequency_penalty=2.0, presence_penalty=2.0)).text
        return before == again and self._most_frequent(after) < self._most_frequent(before)

    async def logit_bias(self, _: Said) -> bool:
        wanted = self._tokenizer.encode(" lambda")[0]
        said = await self.ask(max_tokens=4, logit_bias={str(wanted): 100})
        return said.text.replace(self._tokenizer.decode([wanted]), "") == "" != said.text

    async def logprobs(self, _: Said) -> bool:
        said = await self.ask(max_tokens=6, logprobs=True, top_logprobs=3)
        return len(said.logprobs) == said.tokens == 6 and all(
            len(one.top_logprobs) == 3 and one.logprob <= 0 for one in said.logprobs
        )

    async def several(self, _: Said) -> bool:
        said = await self._client.chat.completions.create(
            model=self._model, messages=MESSAGES, n=2, temperature=1.0, max_tokens=8
        )
        return len({choice.message.content for choice in said.choices}) == 2

    async def schema(self, _: Said) -> bool:
        form = {"name": "answer", "schema": SCHEMA, "strict": True}
        said = await self.ask(max_tokens=64, response_format={"type": "json_schema", "json_schema": form})
        value = json.loads(said.text)
        return set(value) == {"found", "kind"} and value["kind"] in ("file", "folder")

    async def of_its_own(self, greedy: Said) -> bool:
        hot = [self.ask(temperature=2.0) for _ in range(3)]
        *others, mine = await asyncio.gather(*hot, self.ask())
        # batching may turn a near tie later on; a random model at temperature 2 shares no beginning with greedy
        begin = greedy.text[:6]
        return mine.text.startswith(begin) and not any(one.text.startswith(begin) for one in others)

    def _most_frequent(self, text: str) -> int:
        ids = self._tokenizer.encode(text)
        return max(map(ids.count, ids), default=0)
