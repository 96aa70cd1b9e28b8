"""Keys, scopes and quotas at the gateway's door, over ports in memory: no cluster."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_ports import Bench

from llmray.errors import UnavailableError
from llmray.serve import keys as keys_module
from llmray.serve.access import AccessControl
from llmray.serve.embedder import Embedded
from llmray.serve.gateway import create_app
from llmray.serve.keys import FRESH_S, GRACE_S, HOLDS_S, Keys
from llmray.serve.ports import Key
from llmray.serve.quota import Exceeded, Quota, TokenBucket

CHAT = {"model": "docs", "messages": [{"role": "user", "content": "one two three"}]}
GOOD = "lr-1-good"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class MemoryRing:
    def __init__(self, **keys: Key) -> None:
        self.keys = {f"lr-1-{secret}": key for secret, key in keys.items()}
        self.any = bool(keys)
        self.up = True
        self.asked = 0

    async def key(self, token: str) -> Key | None:
        self._check()
        return self.keys.get(token)

    async def any_keys(self) -> bool:
        self._check()
        return self.any

    def _check(self) -> None:
        self.asked += 1
        if not self.up:
            raise UnavailableError("the registry is away")


def key(*scopes: str, **quota: int) -> Key:
    return Key(id="k1", project="docs", user="ada", scopes=frozenset(scopes), **quota)


class Door:
    """A gateway with somebody at its door."""

    def __init__(self, ring: MemoryRing, *, client: str = "10.0.0.9", peers_known: bool = True) -> None:
        self.bench, self.ring, self.clock = Bench(), ring, Clock()
        self.app = AccessControl(create_app(self.bench.gateway), ring, peers_known=peers_known, clock=self.clock)
        self._transport = httpx.ASGITransport(self.app, client=(client, 5000))

    def play(self, scenario: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://localhost") as client:
                self.bench.gateway.start()
                try:
                    return await scenario(client)
                finally:
                    await self.bench.gateway.close()

        return asyncio.run(run())

    def chat(self, token: str | None = None, **headers: str) -> httpx.Response:
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return self.play(lambda client: client.post("/v1/chat/completions", json=CHAT, headers=headers))


def error(response: httpx.Response) -> tuple[int, str]:
    body = response.json()["error"]
    assert body["message"]
    return response.status_code, body["code"]


def test_without_keys_only_this_machine_is_served() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        assert Door(MemoryRing(), client=host).chat("none").status_code == 200
    for host in ("10.0.0.9", "::ffff:10.0.0.9", "", "localhost.evil", "testclient"):
        refused = Door(MemoryRing(), client=host).chat(**{"x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1"})
        assert error(refused) == (401, "invalid_api_key")
        assert "llmray keys create" in refused.text
    assert error(Door(MemoryRing(), client="127.0.0.1", peers_known=False).chat()) == (401, "invalid_api_key")


def test_without_keys_pages_of_other_sites_get_nothing_through_a_browser() -> None:
    door = Door(MemoryRing(), client="127.0.0.1")
    for own in ({"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}, {"host": "[::1]:8000"}):
        assert door.chat(**own).status_code == 200
    for foreign in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": "evil.example:8000"},
        {"host": "[::1"},
        {"sec-fetch-site": "cross-site"},
    ):
        assert error(door.chat(**foreign)) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer none",
        "Basic bHI=",
        GOOD,
        f"Bearer {GOOD}x",
        "Bearer lr-1-",
        "Bearer \u00e9",
    ],
)
def test_with_keys_nobody_comes_in_without_one(authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    door = Door(MemoryRing(good=key()), client="127.0.0.1")
    response = door.play(lambda client: client.post("/v1/chat/completions", json=CHAT, headers=headers))
    assert error(response) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert not door.bench.registry.outputs


def test_a_key_lets_in_and_stands_in_the_record() -> None:
    door = Door(MemoryRing(good=key()))
    assert door.chat(GOOD).status_code == 200
    [record] = door.bench.registry.outputs.values()
    assert (record.project, record.key_id) == ("docs", "k1")


def test_scopes_hold_for_their_paths() -> None:
    async def statuses(client: httpx.AsyncClient) -> list[int]:
        client.headers["authorization"] = f"Bearer {GOOD}"
        body = {"output_id": "out1", "kind": "thumb", "value": "up"}
        return [
            (await client.post("/v1/chat/completions", json=CHAT)).status_code,
            (await client.get("/v1/models")).status_code,
            (await client.get("/openapi.json")).status_code,
            (await client.post("/v1/feedback", json=body)).status_code,
            (await client.get("/v1/prompts/ask@production")).status_code,
            (await client.get("/metrics")).status_code,
        ]

    assert Door(MemoryRing(good=key())).play(statuses) == [200] * 6
    assert Door(MemoryRing(good=key("infer"))).play(statuses) == [200, 200, 200, 403, 403, 403]
    assert Door(MemoryRing(good=key("metrics", "prompts"))).play(statuses) == [403, 403, 403, 403, 200, 200]
    assert Door(MemoryRing(good=key("feedback"))).play(statuses) == [403, 403, 403, 404, 403, 403]


def test_health_is_open_to_everybody() -> None:
    door = Door(MemoryRing(good=key()))
    door.ring.up = False
    assert door.play(lambda client: client.get("/healthz")).status_code == 200


def test_a_known_key_asks_nobody_and_a_revoked_one_ends_within_seconds() -> None:
    door = Door(MemoryRing(good=key()))
    statuses: list[int] = []

    async def scenario(client: httpx.AsyncClient) -> None:
        async def ask() -> None:
            response = await client.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {GOOD}"})
            statuses.append(response.status_code)

        await ask()
        asked = door.ring.asked
        for _ in range(20):
            await ask()
        assert door.ring.asked == asked
        del door.ring.keys[GOOD]
        door.clock.now += HOLDS_S
        await ask()

    door.play(scenario)
    assert statuses == [200] * 21 + [401]


def test_the_registry_may_go_away() -> None:
    door = Door(MemoryRing(good=key()))

    async def scenario(client: httpx.AsyncClient) -> list[int]:
        async def ask(token: str) -> int:
            headers = {"authorization": f"Bearer {token}"}
            return (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code

        statuses = [await ask(GOOD)]
        door.ring.up = False
        for later in (FRESH_S, HOLDS_S, GRACE_S / 2):
            door.clock.now += later
            statuses.append(await ask(GOOD))
        statuses.append(await ask("lr-1-other"))
        door.clock.now += GRACE_S
        statuses.append(await ask(GOOD))
        door.ring.up = True
        return [*statuses, await ask(GOOD)]

    assert door.play(scenario) == [200, 200, 200, 200, 503, 503, 200]
    away = Door(MemoryRing(good=key()), client="127.0.0.1")
    away.ring.up = False
    refused = away.chat()
    assert error(refused) == (503, "registry_unavailable")
    assert "is away" not in refused.text  # what the registry says may name its host


def test_a_flood_of_wrong_keys_is_forgotten_and_pushes_out_no_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "MOST_WRONG", 10)
    ring = MemoryRing(good=key())
    known = Keys(ring, clock=Clock())

    async def scenario() -> None:
        assert await known.key(GOOD) is not None
        found = await asyncio.gather(*(known.key(f"lr-1-{number}") for number in range(200)))
        assert set(found) == {None}
        assert len(known._wrong) == 10
        assert not known._asking
        asked = ring.asked
        await asyncio.gather(*(known.key(GOOD) for _ in range(50)), *(known.key("lr-1-199") for _ in range(50)))
        assert ring.asked == asked

    asyncio.run(scenario())


def test_limits_that_change_give_nothing_back() -> None:
    ring = MemoryRing(old=key(requests_per_minute=3), new=key(requests_per_minute=2, tokens_per_minute=10_000))
    door = Door(ring)

    async def scenario(client: httpx.AsyncClient) -> list[int]:
        tokens = [{"authorization": f"Bearer lr-1-{name}"} for name in ("old", "new") * 3]
        return [(await client.post("/v1/chat/completions", json=CHAT, headers=each)).status_code for each in tokens]

    assert door.play(scenario) == [200, 200, 200, 429, 429, 429]


def test_feedback_is_for_outputs_of_ones_own_project() -> None:
    ring = MemoryRing(good=key(), other=replace(key(), project="others"))

    async def scenario(client: httpx.AsyncClient) -> list[int]:
        mine, others = ({"authorization": f"Bearer lr-1-{name}"} for name in ("good", "other"))
        answers = [await client.post("/v1/chat/completions", json=CHAT, headers=mine) for _ in range(2)]
        first, second = (answer.json()["id"] for answer in answers)
        theirs = (await client.post("/v1/chat/completions", json=CHAT, headers=others)).json()["id"]
        thumb = {"output_id": first, "kind": "thumb", "value": "up"}
        over_theirs = {"output_id": first, "kind": "preference", "other_output_id": theirs}
        asked = (thumb, mine), (thumb, others), (over_theirs, mine), (over_theirs | {"other_output_id": second}, mine)
        return [(await client.post("/v1/feedback", json=body, headers=headers)).status_code for body, headers in asked]

    assert Door(ring).play(scenario) == [200, 404, 404, 200]


def test_embedded_tokens_are_charged_and_counted() -> None:
    class Words:
        async def embed(self, texts: list[str]) -> Embedded:
            return Embedded(np.ones((len(texts), 1), np.float32), sum(len(text.split()) for text in texts))

    door = Door(MemoryRing(good=key(tokens_per_minute=1000)))
    door.bench.embedders["embed-app"] = Words()
    door.bench.configure(embeddings={"words": "embed-app"})

    async def scenario(client: httpx.AsyncClient) -> str:
        client.headers["authorization"] = f"Bearer {GOOD}"
        assert (await client.post("/v1/embeddings", json={"model": "words", "input": ["a b c", "d"] * 100})).is_success
        return (await client.get("/metrics")).text

    text = door.play(scenario)
    [quota] = door.app._quotas.values()
    assert dict(quota.headers(door.clock()))[b"x-ratelimit-remaining-tokens"] == b"600"
    assert 'llmray_embedding_tokens_total{model="words"} 400.0' in text
    assert 'llmray_embedding_requests_total{model="words"} 1.0' in text


def test_one_lookup_answers_all_who_wait_and_outlives_who_leaves() -> None:
    ring = MemoryRing(good=key())
    known = Keys(ring, clock=Clock())

    async def scenario() -> None:
        first = asyncio.ensure_future(known.key(GOOD))
        others = [asyncio.ensure_future(known.key(GOOD)) for _ in range(9)]
        await asyncio.sleep(0)
        first.cancel()
        assert [found.id for found in await asyncio.gather(*others) if found] == ["k1"] * 9
        assert ring.asked == 1

    asyncio.run(scenario())


def test_a_lookup_is_nobodys_own() -> None:
    request: ContextVar[str | None] = ContextVar("request", default=None)

    class Ring(MemoryRing):
        async def key(self, token: str) -> Key | None:
            assert request.get() is None, "Serve would cancel it when this request ends"
            return await super().key(token)

    async def scenario() -> None:
        request.set("1")
        assert await Keys(Ring(good=key()), clock=Clock()).key(GOOD)

    asyncio.run(scenario())


def test_requests_over_the_quota_are_told_when_to_come_back() -> None:
    door = Door(MemoryRing(good=key(requests_per_minute=2)))

    async def scenario(client: httpx.AsyncClient) -> list[httpx.Response]:
        client.headers["authorization"] = f"Bearer {GOOD}"
        found = [await client.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
        assert (await client.get("/v1/models")).status_code == 200  # looking costs nothing
        door.clock.now += 30.0
        return [*found, await client.post("/v1/chat/completions", json=CHAT)]

    responses = door.play(scenario)
    assert [response.status_code for response in responses] == [200, 200, 429, 200]
    assert error(responses[2]) == (429, "rate_limit_exceeded")
    assert responses[2].headers["retry-after"] == "30"
    assert responses[2].headers["x-ratelimit-limit-requests"] == "2"
    assert [one.headers["x-ratelimit-remaining-requests"] for one in responses] == ["1", "0", "0", "0"]
    assert responses[1].headers["x-ratelimit-reset-requests"] == "60.000s"


def test_tokens_are_charged_by_what_an_answer_had() -> None:
    door = Door(MemoryRing(good=key(tokens_per_minute=1000)))

    async def scenario(client: httpx.AsyncClient) -> list[int]:
        client.headers["authorization"] = f"Bearer {GOOD}"
        found = []
        for body in (CHAT, CHAT | {"stream": True}, {"model": "docs"}):  # the last one is wrong, and costs nothing
            response = await client.post("/v1/chat/completions", json=body)
            found.append(int(response.headers["x-ratelimit-remaining-tokens"]))
        return found

    assert all(left < 1000 - 12 for left in door.play(scenario))  # more is held back while an answer is under way
    [quota] = door._transport.app._quotas.values()  # type: ignore[attr-defined]
    assert quota._tokens.level(door.clock.now) == 1000 - 2 * 6  # three words in and three out, twice


steps = st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 200)), min_size=1, max_size=60)


@given(st.integers(1, 100), steps)
def test_a_bucket_never_gives_more_than_its_limit_in_any_window(limit: int, steps: list[tuple[float, float]]) -> None:
    now, given_out, bucket = 0.0, [], TokenBucket(limit, now=0.0)
    for pause, amount in steps:
        now += pause
        if amount <= limit and bucket.wait_s(amount, now) == 0.0:
            bucket.take(amount, now)
            given_out.append((now, amount))
    for start, (begin, _) in enumerate(given_out):
        total = 0.0
        for end, amount in given_out[start:]:
            total += amount
            assert total <= limit * (1 + (end - begin) / 60.0) + 1e-6


@given(st.integers(1, 100), steps)
def test_who_waits_as_long_as_told_gets_a_turn(limit: int, steps: list[tuple[float, float]]) -> None:
    now, bucket = 0.0, TokenBucket(limit, now=0.0)
    for pause, amount in steps:
        now += pause
        wait_s = bucket.wait_s(amount, now)
        assert wait_s <= 60.0 + 60.0 * 200 / limit
        now += wait_s + 1e-6
        assert bucket.wait_s(amount, now) <= 1e-6
        bucket.take(min(amount, limit), now)


@given(st.integers(1, 500), st.lists(st.tuples(st.floats(0, 20), st.integers(0, 2000)), min_size=1, max_size=60))
def test_what_is_used_keeps_to_the_limit_in_the_long_run(limit: int, requests: list[tuple[float, int]]) -> None:
    quota, now, used, largest = Quota(None, limit, now=0.0), 0.0, 0, 0
    for pause, tokens in requests:
        now += pause
        held = quota.reserve(10.0, now)
        if isinstance(held, Exceeded):
            assert held.retry_after_s > 0
            continue
        quota.settle(held, tokens, now)
        used, largest = used + tokens, max(largest, tokens)
    assert used <= limit * (1 + now / 60.0) + largest + 1e-6
