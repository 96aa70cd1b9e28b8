"""What a gateway knows of prompts: how fresh, how sticky, and what it serves while the registry is away."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_ports import ASK, MemoryRegistry

from llmray.errors import InputError, NotFoundError, UnavailableError
from llmray.serve.ports import PromptChoice, PromptTemplate
from llmray.serve.prompts import PromptCache

NEW = replace(ASK, version=3, digest="e" * 64)


class HangingRegistry(MemoryRegistry):
    """A registry that answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.let = asyncio.Event()
        self.let.set()

    async def prompt(self, reference: str) -> PromptChoice:
        self.begun += 1
        await self.let.wait()
        return await super().prompt(reference)


def test_a_question_to_the_registry_is_nobodys_own() -> None:
    request: ContextVar[str | None] = ContextVar("request", default=None)

    class Registry(MemoryRegistry):
        async def prompt(self, reference: str) -> PromptChoice:
            assert request.get() is None, "Serve would cancel it when this request ends"
            return await super().prompt(reference)

    async def scenario() -> None:
        request.set("1")
        assert await asker(PromptCache(Registry(), clock=lambda: 0.0))("ask@production") is ASK

    asyncio.run(scenario())


def split(old: float, new: float) -> PromptChoice:
    return PromptChoice(versions=[(ASK, old), (NEW, new)])


def test_alias_is_asked_again_after_a_second_and_a_version_never() -> None:
    async def scenario() -> None:
        registry, now = MemoryRegistry(), [0.0]
        cache = PromptCache(registry, clock=lambda: now[0])
        get = asker(cache)
        assert await get("ask@production") is ASK
        now[0] = 0.9
        await asyncio.gather(*(get("ask@production") for _ in range(20)))
        assert registry.asked == 1
        now[0] = 1.0
        await asyncio.gather(*(get("ask@production") for _ in range(20)))
        assert registry.asked == 2
        await get("ask:2")
        now[0] = 1e6
        await get("ask:2")
        assert registry.asked == 3
        registry.up = False
        assert await get("ask@production") is ASK
        assert await get("ask@production") is ASK
        assert (cache.stale, registry.asked) == (2, 4)  # counted, and the source is left alone for a second
        with pytest.raises(UnavailableError):
            await get("ask@unknown")
        registry.up = True
        del registry.prompts["ask@production"]
        now[0] += 1
        with pytest.raises(NotFoundError):
            await get("ask@production")
        registry.up = False  # gone once, it is not served from memory again
        now[0] += 1
        with pytest.raises(UnavailableError):
            await get("ask@production")
        with pytest.raises(InputError):
            await get("ask")

    asyncio.run(scenario())


def test_a_registry_that_hangs_holds_nobody_up_and_is_asked_once() -> None:
    async def scenario() -> None:
        registry, now = HangingRegistry(), [0.0]
        cache = PromptCache(registry, clock=lambda: now[0], patience_s=0.01)
        get = asker(cache)
        await get("ask@production")
        registry.let.clear()
        registry.prompts["ask@production"] = PromptChoice(versions=[(NEW, 1.0)])
        now[0] = 1.0
        assert await asyncio.gather(*(get("ask@production") for _ in range(20))) == [ASK] * 20
        now[0] = 9.0
        assert await get("ask@production") is ASK
        assert (registry.begun, cache.stale) == (2, 21)
        registry.let.set()
        while await get("ask@production") is not NEW:
            await asyncio.sleep(0)

    asyncio.run(scenario())


def test_a_flood_of_wrong_names_does_not_reach_the_registry() -> None:
    async def scenario() -> None:
        registry, now = HangingRegistry(), [0.0]
        get = asker(PromptCache(registry, clock=lambda: now[0]))
        registry.let.clear()
        asking = [asyncio.ensure_future(get(f"ask@wrong-{number}")) for number in range(100)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert registry.begun == 16  # at one time
        registry.let.set()
        assert {type(one) for one in await asyncio.gather(*asking, return_exceptions=True)} == {NotFoundError}
        asked = registry.asked
        with pytest.raises(NotFoundError):
            await get("ask@wrong-7")
        assert registry.asked == asked
        registry.prompts["ask@wrong-7"] = ASK
        now[0] = 1.0
        assert await get("ask@wrong-7") is ASK

    asyncio.run(scenario())


def test_a_caller_that_leaves_takes_the_question_from_nobody() -> None:
    async def scenario() -> None:
        registry = HangingRegistry()
        registry.let.clear()
        get = asker(PromptCache(registry, clock=lambda: 0.0))
        first, second = (asyncio.ensure_future(get("ask@production")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        registry.let.set()
        assert await second is ASK

    asyncio.run(scenario())


def test_a_split_label_follows_its_weights_and_keeps_its_people() -> None:
    async def scenario() -> None:
        registry, now = MemoryRegistry(), [0.0]
        cache = PromptCache(registry, clock=lambda: now[0])
        registry.prompts["ask@production"] = split(75, 25)
        before = {user: (await cache.get("ask@production", user)).version for user in map(str, range(2000))}
        # four standard deviations of a binomial with n = 2000, p = 1/4
        assert abs(Counter(before.values())[3] - 500) < 4 * math.sqrt(2000 * 0.25 * 0.75)
        registry.prompts["ask@production"] = split(10, 90)
        now[0] = 1.0
        for user, version in before.items():
            if version == 3:
                assert (await cache.get("ask@production", user)).version == 3

    asyncio.run(scenario())


@given(key=st.text())
def test_the_same_key_gets_the_same_version(key: str) -> None:
    async def scenario() -> None:
        registry = MemoryRegistry()
        registry.prompts["ask@production"] = split(1, 1)
        caches = [PromptCache(registry, clock=lambda: 0.0) for _ in range(2)]
        assert len({(await cache.get("ask@production", key)).version for cache in caches}) == 1

    asyncio.run(scenario())


def asker(cache: PromptCache) -> Callable[[str], Awaitable[PromptTemplate]]:
    return lambda reference: cache.get(reference, "somebody")
