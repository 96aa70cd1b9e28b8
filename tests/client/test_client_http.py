"""The HTTP client against a real gateway over a socket."""

import asyncio
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import llmray as lr

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
from memory_ports import Bench

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray Serve's own, from pydantic, as it is imported
    from llmray.deployment import RegistryBridge

from llmray.client.http import Client
from llmray.errors import InputError, NotFoundError, UnavailableError
from llmray.serve.gateway import create_app
from llmray.serve.protocol import ChatRequest


class Running:
    def __init__(self, registry: Any = None) -> None:
        self.bench = Bench(registry=registry)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self.server = uvicorn.Server(
            uvicorn.Config(create_app(self.bench.gateway), log_level="error", ws="none", timeout_graceful_shutdown=5)
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.server.serve([self._socket]))
        self.loop.close()

    def answer(self, text: str) -> str:
        """Have one answer given; its output id."""

        async def give() -> str:
            request = ChatRequest.model_validate({"model": "docs", "messages": [{"role": "user", "content": text}]})
            answer = await self.bench.gateway.open(request)
            await answer.complete()
            return answer.id

        return asyncio.run_coroutine_threadsafe(give(), self.loop).result(10)

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join()


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


def test_feedback_prompts_models_metrics(running: Running) -> None:
    client = Client(running.url)
    assert client.healthy()
    first, second = running.answer("one two"), running.answer("three")
    ids = [
        client.thumb(first, "down"),
        client.rate(first, 2, source="eve"),
        client.correct(first, "two one"),
        client.prefer(second, first, source="simulated-annotator", rule="shorter wins"),
    ]
    kept = running.bench.registry.feedback
    assert [feedback.id for feedback in kept] == ids
    assert (kept[3].output_id, kept[3].other_output_id, kept[3].rule) == (second, first, "shorter wins")
    assert client.prompt("ask@production").variables == ("question", "topic")
    assert client.output(first)["completion"] == "one two"
    assert client.models()[0]["variants"][0]["name"] == "stable"
    figures = {(sample.name, sample.labels.get("kind")): sample.value for sample in client.metrics()}
    assert figures["llmray_feedback_total", "preference"] == 1
    assert figures["llmray_generation_tokens_total", None] == 3


def test_prompts_are_made_labelled_and_rolled_back_from_afar(llmray_home: Path) -> None:
    running = Running(RegistryBridge.func_or_class())
    try:
        client = Client(running.url)
        texts = [[{"role": "user", "content": text}] for text in ("What is {x}?", "Explain {x}.")]
        made = [client.put_prompt("ask", text, settings={"temperature": 0.0}) for text in texts]
        assert [(one.version, one.labels) for one in made] == [(1, ("latest",)), (2, ("latest",))]
        assert client.label_prompt("ask@production", 1) == {"1": 1.0}
        assert client.label_prompt("ask@production", {"1": 90, "2": 10}, reason="try it") == {"1": 90, "2": 10}
        assert client.rollback_label("ask@production") == {"1": 1.0}
        assert [one.labels for one in client.prompts()] == [("latest",), ("production",)]
        client.protect_label("ask@production")
        with pytest.raises(InputError, match="evidence is missing"):
            client.label_prompt("ask@production", 2)
        client.label_prompt("ask@production", 2, evidence=lr.record_verdict("ask:2", {"decision": "promote"}))
        lr.protect_label("ask@production", False)
        client.delete_label("ask@production", reason="no more & never")
        with pytest.raises(NotFoundError):
            client.prompt("ask@production")
        with pytest.raises(InputError, match="is no label"):
            client.delete_label("ask:1")
    finally:
        running.stop()


def test_refusals_are_errors_of_ours(running: Running) -> None:
    client = Client(running.url)
    with pytest.raises(NotFoundError, match="no output"):
        client.thumb("unheard-of", "up")
    with pytest.raises(NotFoundError, match="ask@production"):
        client.prompt("ask@nowhere")
    with pytest.raises(InputError, match="1 to 5"):
        client.rate("x", 9)
    running.bench.gateway.config = None
    assert not client.healthy()


def test_no_gateway_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="no gateway"):
        Client("http://127.0.0.1:9").models()
    with pytest.raises(InputError, match="try http://"):
        Client("localhost:8000")
