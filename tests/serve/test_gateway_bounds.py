"""What a client may take of the gateway: its patience, its event loop, its neighbours' time."""

import asyncio
import threading
from typing import Any

import httpx
import pytest
from memory_ports import Bench, MemoryRegistry, finish
from scripted_model import ScriptedEngine
from test_gateway import CHAT, post, run

from llmray.serve import core, intake
from llmray.serve.protocol import ChatRequest, parse


def test_feedback_finds_what_another_replica_answered_and_waits_for_no_hanging_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core, "_LOG_PATIENCE_S", 0.02)
    monkeypatch.setattr(core, "_ELSEWHERE_S", 0.001)
    registry = MemoryRegistry()
    here, there = Bench(registry=registry), Bench(registry=registry)
    body = {"output_id": "out1", "kind": "thumb", "value": "up"}

    async def scenario(client: httpx.AsyncClient) -> None:
        await finish(await there.gateway.open(ChatRequest.model_validate(CHAT)))
        find, misses = registry.output, 0

        async def late(output_id: str) -> Any:
            nonlocal misses
            misses += 1
            if misses == 2:
                await there.gateway.accounts.flush()
            return await find(output_id)

        registry.output = late
        assert (await client.get("/v1/outputs/out1")).status_code == 200
        assert misses == 2
        assert (await client.post("/v1/feedback", json=body)).status_code == 200

        async def hang(*_: Any) -> Any:
            await asyncio.Event().wait()

        registry.output = registry.put_feedback = hang
        refused = await asyncio.gather(
            *(client.post("/v1/feedback", json=body) for _ in range(5)), client.get("/v1/outputs/out1")
        )
        assert {one.status_code for one in refused} == {503}

    run(here, scenario)


def test_token_ids_are_no_text_for_the_monitor() -> None:
    bench = Bench(stable=ScriptedEngine())
    assert post(bench, "/v1/completions", {"model": "docs", "prompt": [1, 2], "max_tokens": 1}).status_code == 200
    assert len(bench.registry.outputs) == 1
    assert bench.monitor.seen == []


def test_a_long_body_is_read_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def watched(model: Any, raw: bytes) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return parse(model, raw)

    monkeypatch.setattr(intake, "parse", watched)
    for words in (1, 60_000):
        post(Bench(), "/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "word " * words}]})
    assert threads == [True, False]
