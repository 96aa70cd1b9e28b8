"""Any OpenAI-compatible server as an engine: `vllm serve`, llama.cpp's `llama-server`, `transformers serve`.

It runs beside us in an environment of its own, since such servers pin their own torch, and requests stream through it with
OpenAI's own client. What it can do beyond plain sampling is written in its configuration; everything else is refused by
name, because servers of this kind ignore fields that they do not know. When it dies the engine is closed, so that Serve
replaces the replica, and requests under way fail at once. Rejected: importing those engines (their pins exclude each
other's), and a restart in place (the replica would look well while it loads).
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import openai

from llmray.errors import ConfigError, UnavailableError
from llmray.serve.child_server import ChildServer
from llmray.serve.engine import (
    EngineInfo,
    EngineLoad,
    EngineRequest,
    OverloadedError,
    RequestRefusedError,
    TokenEvent,
    check,
)
from llmray.serve.external_args import External
from llmray.serve.openai_wire import Reading, body_of

logger = logging.getLogger(__name__)


class ExternalEngine:
    def __init__(self, server: ChildServer, external: External, info: EngineInfo, model: str) -> None:
        """Speak to a running server.

        Args:
            model: what it knows the model by.
        """
        self.info = info
        self._server = server
        self._external = external
        self._model = model
        self._running: dict[str, EngineRequest] = {}
        self._waiting: dict[str, EngineRequest] = {}
        self._client: openai.AsyncOpenAI | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def open(
        cls, folder: Path, external: External, *, quantization: str, device: str | None = None
    ) -> "ExternalEngine":
        """Start the server and wait until it is ready.

        Args:
            quantization: what the command makes of the weights: a name for the record.

        Raises:
            ConfigError: the folder does not say how long the context is, and neither does the configuration.
            UnavailableError: the server did not become ready.
        """
        context = external.context_tokens or _context_tokens(folder)
        began = time.perf_counter()
        fill = {"{model}": str(folder)}
        server = ChildServer(
            [_filled(word, fill) for word in external.command],
            env={name: _filled(value, fill) for name, value in external.env.items()},
            health=external.health,
            start_timeout_s=external.start_timeout_s,
            health_every_s=external.health_every_s,
        )
        info = EngineInfo(
            engine="external",
            quantization=quantization,
            context_tokens=context,
            load_s=time.perf_counter() - began,
            weight_bytes=0,
            device=device or "external",
            can=frozenset(external.can),
            adapters=external.adapters,
        )
        logger.info("%s serves %s after %.1f s", external.command[0], folder.name, info.load_s)
        return cls(server, external, info, _filled(external.model_name, fill))

    @property
    def closed(self) -> bool:
        """Whether the server is gone."""
        return self._server.dead is not None

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        if self.closed:
            raise UnavailableError(f"the engine is closed: {self._server.dead}")
        check(request, self.info)
        body = body_of(request, request.adapter or self._model)
        self._waiting[request.id] = request
        try:
            async with aclosing(self._events(request, body)) as events:
                async for event in events:
                    if waited := self._waiting.pop(request.id, None):
                        self._running[request.id] = waited
                    yield event
        except openai.OpenAIError as error:
            raise _ours(error, request) from error
        finally:
            self._waiting.pop(request.id, None)
            self._running.pop(request.id, None)

    def load(self) -> EngineLoad:
        """As seen from here. Prompts are not tokenized on this side: four characters count as a token."""
        return EngineLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_tokens=sum(map(_about_tokens, self._waiting.values())),
            prefill_tokens_per_s=None,
        )

    def close(self) -> None:
        """End the server."""
        self._server.close()

    def _client_here(self) -> openai.AsyncOpenAI:
        """The client of the loop that runs: connections belong to one."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._loop = loop
            self._client = openai.AsyncOpenAI(
                base_url=f"{self._server.url}/v1",
                api_key="none",
                max_retries=0,
                timeout=None,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=False),  # no proxy stands before our own child
            )
        return self._client

    async def _events(self, request: EngineRequest, body: Mapping[str, Any]) -> AsyncGenerator[TokenEvent, None]:
        chat = request.messages is not None
        client = self._client_here()
        create = client.chat.completions.create if chat else client.completions.create
        reading = Reading(echo=request.echo)
        if request.echo:  # only the count at the end tells which tokens are the prompt's
            yield reading.whole(await create(**body))
            return
        stream = await create(**body, stream=True, stream_options={"include_usage": True})
        try:
            async for chunk in stream:
                if (event := reading.push(chunk)) is not None:
                    yield event
        finally:
            await stream.close()
        yield reading.last()


def _ours(error: openai.OpenAIError, request: EngineRequest) -> Exception:
    if isinstance(error, openai.RateLimitError):
        try:
            wait_s = float(error.response.headers.get("retry-after", 1.0))
        except ValueError:  # it may be a date
            wait_s = 1.0
        return OverloadedError(f"the server is full: {error}", wait_s)
    if isinstance(error, openai.APIStatusError) and error.status_code < 500:
        # servers seldom name the field; what remains to be refused after `check` is a prompt that is too long
        param = str(error.param or ("prompt" if request.messages is None else "messages"))
        too_long = "context_length_exceeded" if "context" in error.message.lower() else "invalid_value"
        named = str(error.code or error.status_code)
        code = too_long if named == str(error.status_code) else named
        return RequestRefusedError(f"the server refuses this: {error.message}", param, code)
    return UnavailableError(f"the server broke off: {error}")


def _filled(text: str, fill: Mapping[str, str]) -> str:
    for name, value in fill.items():
        text = text.replace(name, value)
    return text


def _context_tokens(folder: Path) -> int:
    try:
        return int(json.loads((folder / "config.json").read_text())["max_position_embeddings"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{folder} does not say how many tokens the context holds: set external.context_tokens"
        ) from error


def _about_tokens(request: EngineRequest) -> int:
    if isinstance(request.prompt, tuple):
        return len(request.prompt)
    texts = [request.prompt] if request.prompt is not None else [one.get("content") for one in request.messages or ()]
    return sum(len(text or "") for text in texts) // 4 + 1
