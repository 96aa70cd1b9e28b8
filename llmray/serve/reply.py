"""The answers to one request: one or several, streamed together, given up together.

Several answers are several requests to one variant. Their events come as they are ready, each with the number of its
choice; if one breaks off, so do the others, and when the client leaves, all of them are freed. Rejected: an
`asyncio.TaskGroup` (its scope must not be left open over the yields of a generator).
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from llmray.serve.answer import Answer
from llmray.serve.engine import TokenEvent
from llmray.serve.ports import Backend


class Reply:
    """Iterate it, and close it whatever happens."""

    def __init__(self, answers: Sequence[Answer], started: float) -> None:
        self.answers = list(answers)
        self.id = answers[0].id
        self.created = int(started)

    async def begin(self, backend: Backend) -> None:
        """Await the first event of each answer; where one fails, or nobody waits any more, all are freed.

        Raises:
            RequestRefusedError: the engine cannot do what is asked.
            UnavailableError: the model's application is not there.
        """
        if len(self.answers) == 1:
            return await self.answers[0].begin(backend)
        tasks = [asyncio.ensure_future(answer.begin(backend)) for answer in self.answers]
        begun = False
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            begun = True
        finally:
            if not begun:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.abandon()
        return None

    async def events(self) -> AsyncGenerator[tuple[int, TokenEvent], None]:
        """Events with the number of their choice; leaving early frees the engine."""
        if len(self.answers) == 1:
            async with aclosing(self.answers[0].events()) as events:
                async for event in events:
                    yield 0, event
            return
        ready: asyncio.Queue[tuple[int, TokenEvent | Exception | None]] = asyncio.Queue(len(self.answers))
        tasks = [asyncio.ensure_future(_pump(answer, number, ready)) for number, answer in enumerate(self.answers)]
        try:
            ended = 0
            while ended < len(tasks):
                number, came = await ready.get()
                if isinstance(came, Exception):
                    raise came
                if came is None:
                    ended += 1
                else:
                    yield number, came
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def complete(self) -> None:
        """Wait until every answer is there."""
        try:
            async with aclosing(self.events()) as events:
                async for _ in events:
                    pass
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Nobody wants it any more; nothing where it has ended."""
        for answer in self.answers:
            await answer.abandon()

    def provenance(self) -> dict[str, Any]:
        """The `llmray` field of a response."""
        first = self.answers[0]
        prompt = first.plan.prompt
        return {
            "output_id": self.id,
            "output_ids": [answer.id for answer in self.answers],
            "prompt": first.plan.prompt_version,
            "prompt_digest": None if prompt is None else prompt.digest,
            "model_digest": first.variant.digest,
            "variant": first.variant.name,
        }

    def usage(self) -> dict[str, Any]:
        """Tokens, each prompt counted once however many answers it has."""
        firsts = [answer for answer in self.answers if answer.plan.sample == 0]
        read = sum(answer.prompt_tokens for answer in firsts)
        generated = sum(answer.completion_tokens for answer in self.answers)
        return {
            "prompt_tokens": read,
            "completion_tokens": generated,
            "total_tokens": read + generated,
            "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in firsts)},
        }


async def _pump(answer: Answer, number: int, ready: asyncio.Queue[tuple[int, TokenEvent | Exception | None]]) -> None:
    try:
        async with aclosing(answer.events()) as events:
            async for event in events:
                await ready.put((number, event))
    except Exception as error:
        await ready.put((number, error))
    else:
        await ready.put((number, None))
