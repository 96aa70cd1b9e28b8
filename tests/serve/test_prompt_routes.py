"""`/v1/prompts` over a real registry, without Ray."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from memory_ports import Bench

import llmray as lr

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray Serve's own, from pydantic, as it is imported
    from llmray.deployment import RegistryBridge

from llmray.serve.gateway import create_app

TEXTS = ("What is {x}?", "Explain {x}.")
LABEL = "/v1/prompts/ask/labels/production"


def play(scenario: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> None:
    """Against a gateway whose registry knows two versions of `ask`."""

    async def run() -> None:
        bench = Bench(registry=RegistryBridge.func_or_class())
        transport = httpx.ASGITransport(create_app(bench.gateway), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for text in TEXTS:
                body = {"name": "ask", "messages": [{"role": "user", "content": text}], "author": "ada"}
                assert (await client.post("/v1/prompts", json=body)).status_code == 200
            await scenario(client)
            await bench.gateway.close()

    asyncio.run(run())


async def ask(client: httpx.AsyncClient, prompt: str = "ask@production", **rest: Any) -> httpx.Response:
    body = {"model": "docs", "prompt": prompt, "variables": {"x": "water"}, **rest}
    return await client.post("/v1/chat/completions", json=body)


def test_a_label_is_moved_split_rolled_back_and_deleted_and_the_gateway_follows(llmray_home: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        moved = await client.post(LABEL, json={"version": 1, "reason": "first"})
        assert (moved.json()["versions"], moved.json()["protected"]) == ({"1": 1.0}, False)
        assert (await ask(client)).json()["choices"][0]["message"]["content"] == "What is water?"
        assert (await client.get("/v1/prompts/ask@production")).json()["labels"] == ["production"]
        split = await client.post(LABEL, json={"versions": {"1": 50, "ask@latest": 50}})
        assert split.json()["versions"] == {"1": 50, "2": 50}
        listed = (await client.get("/v1/prompts")).json()
        assert [(one["version"], one["labels"]) for one in listed["data"]] == [
            (2, ["latest", "production"]),
            (1, ["production"]),
        ]
        assert [label["label"] for label in listed["labels"]] == ["latest", "production"]
        back = await client.post(f"{LABEL}/rollback", json={})
        assert back.json()["versions"] == {"1": 1.0}
        assert (await client.delete(LABEL)).json()["versions"] == {}
        assert (await client.delete(LABEL)).status_code == 404
        assert (await ask(client, "ask@staging")).status_code == 404

    play(scenario)


def test_both_versions_of_a_split_answer_and_each_output_says_which(llmray_home: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await client.post(LABEL, json={"versions": {"1": 1, "2": 1}})
        seen: dict[str, str] = {}
        for user in map(str, range(20)):
            answers = [(await ask(client, user=user)).json() for _ in range(2)]
            assert len({one["llmray"]["prompt_digest"] for one in answers}) == 1
            seen[answers[0]["llmray"]["prompt"]] = answers[0]["choices"][0]["message"]["content"]
        assert seen == {"ask:1": "What is water?", "ask:2": "Explain water."}

    play(scenario)


def test_an_answer_resolves_to_all_that_made_it_at_once(llmray_home: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        made = await ask(client, "ask:2", temperature=0.5)
        output = (await client.get(f"/v1/outputs/{made.headers['x-llmray-output-id']}")).json()
        shown = {name: output[name] for name in ("prompt_reference", "variables", "completion", "model_digest")}
        assert shown == {
            "prompt_reference": "ask:2",
            "variables": {"x": "water"},
            "completion": "Explain water.",
            "model_digest": "a" * 64,
        }
        assert output["sampling"]["temperature"] == 0.5
        assert output["prompt_digest"] == (await client.get("/v1/prompts/ask:2")).json()["digest"]
        missing = await client.get("/v1/outputs/none")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "output_not_found")

    play(scenario)


def test_a_protected_label_needs_evidence(llmray_home: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        protected = await client.post(f"{LABEL}/protection", json={})
        assert protected.json()["versions"] == {}
        passed, held, other = (
            lr.record_verdict(version, {"decision": decision})
            for version, decision in (("ask:1", "promote"), ("ask:1", "hold"), ("ask:2", "promote"))
        )
        for evidence in ({}, {"evidence": held}, {"evidence": other}, {"evidence": "nothing"}):
            refused = await client.post(LABEL, json={"version": 1, **evidence})
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "gate_refused")
        moved = await client.post(LABEL, json={"version": 1, "evidence": passed})
        assert moved.json()["protected"] is True
        split = {"versions": {"1": 90, "2": 10}}
        assert (await client.post(LABEL, json={**split, "evidence": passed})).status_code == 409
        assert (await client.post(LABEL, json={**split, "evidence": other})).json()["versions"] == {"1": 90, "2": 10}
        assert (await client.delete(LABEL)).status_code == 409

    play(scenario)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/prompts/ask@nowhere", None, 404),
        ("GET", "/v1/prompts/%00", None, 404),
        ("POST", "/v1/prompts", b"{", 400),
        ("POST", "/v1/prompts", {"name": "ask"}, 400),
        ("POST", "/v1/prompts", {"name": "A B", "messages": [{"role": "user", "content": "x"}]}, 400),
        ("POST", "/v1/prompts", {"name": "ask", "messages": [{"role": "user"}]}, 400),
        ("POST", "/v1/prompts", {"name": "ask", "messages": [{"role": "robot", "content": "x"}]}, 400),
        ("POST", "/v1/prompts", {"name": "ask", "messages": [{"role": "user", "content": "{x.y}"}]}, 400),
        ("POST", "/v1/prompts", {"settings": {"temperature": "hot"}}, 400),
        ("POST", "/v1/prompts", {"settings": {"temprature": 1}}, 400),
        ("POST", LABEL, {}, 400),
        ("POST", LABEL, {"version": 1, "versions": {"1": 1}}, 400),
        ("POST", LABEL, {"version": True}, 400),
        ("POST", LABEL, {"versions": {"1": 0}}, 400),
        ("POST", LABEL, {"version": "no reference"}, 400),
        ("POST", LABEL, {"version": 9}, 404),
        ("POST", "/v1/prompts/nobody/labels/production", {"version": 1}, 404),
        ("POST", "/v1/prompts/A B/labels/production", {"version": 1}, 404),
        ("POST", "/v1/prompts/ask/labels/A B", {"version": 1}, 400),
        ("POST", "/v1/prompts/ask/labels/latest/protection", {}, 400),
        ("POST", f"{LABEL}/protection", {"protected": False}, 400),
        ("POST", LABEL, {"version": 1, "evidence": {"decision": "promote"}}, 400),
        ("POST", f"{LABEL}/rollback", {"reason": 1}, 400),
        ("POST", f"{LABEL}/rollback", {}, 404),
        ("DELETE", "/v1/prompts/%F0%9F%92%A3/labels/production", None, 404),
    ],
)
def test_what_is_wrong_or_missing_has_openai_shape(
    llmray_home: Path, method: str, path: str, body: Any, status: int
) -> None:
    if isinstance(body, dict) and "settings" in body:
        body = {"name": "ask", "messages": [{"role": "user", "content": "x"}], **body}

    async def scenario(client: httpx.AsyncClient) -> None:
        sent = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        response = await client.request(method, path, **sent)
        assert response.status_code == status, response.text
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    play(scenario)
