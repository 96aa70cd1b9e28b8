"""The Ray shell: gateway and model as Serve deployments, and deployment handles as ports.

The model replica sends events in lists: whatever was generated while the last list was under way, so a slow reader
costs no extra calls and the first token leaves at once. The gateway itself is `core`.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from llmray.errors import LLMRayError, UnavailableError
from llmray.serve.core import Gateway
from llmray.serve.embedder import Embedded, Embedder
from llmray.serve.engine import Engine, EngineRequest, TokenEvent
from llmray.serve.gateway import create_app
from llmray.serve.ports import FeedbackRecord, Observation, OutputRecord, Ports, PromptTemplate
from llmray.serve.protocol import ApiError
from llmray.serve.variants import GatewayConfig

logger = logging.getLogger(__name__)

GATEWAY = "Gateway"
MODEL = "Model"
MONITOR = "Monitor"
REGISTRY = "RegistryBridge"
EMBEDDER = "Embedder"


@serve.deployment(name=GATEWAY)
@serve.ingress()
class GatewayReplica:
    """HTTP in, events out; its `user_config` is a `GatewayConfig`."""

    def __init__(self, registry_app: str | None) -> None:
        ports = Ports()
        if registry_app is not None:
            bridge = BridgePorts(registry_app)
            ports = Ports(prompts=bridge, outputs=bridge, feedback=bridge)
        backend = _cached(ModelBackend)
        self.core = Gateway(
            ports,
            backend=backend,
            watcher=_cached(MonitorWatcher),
            embedder=_cached(EmbedderBackend),
            probe=lambda app: backend(app).info(),
        )
        self._id = uuid.uuid4().hex

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.core)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new split of the traffic, or another model: no restart."""
        self.core.configure(GatewayConfig.model_validate(user_config))

    async def traffic(self) -> dict[str, Any]:
        """What a rollout decides on: counts for each application, and the configuration that they were made under."""
        return {
            "replica": self._id,
            "apps": self.core.traffic(),
            "config": None if self.core.config is None else self.core.config.model_dump(),
        }


@serve.deployment(name=MODEL)
class ModelReplica:
    """One engine, alone with its weights."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._engine = make_engine()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[list[TokenEvent], None]:
        """Events of one answer, in lists."""
        ready: list[TokenEvent] = []
        wake = asyncio.Event()
        task = asyncio.get_running_loop().create_task(_pump(self._engine.submit(request), ready, wake))
        try:
            while True:
                await wake.wait()
                wake.clear()
                batch, ready[:] = list(ready), []
                if batch:
                    yield batch
                if task.done() and not ready:
                    await task
                    return
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def info(self) -> dict[str, Any]:
        """What runs here."""
        return asdict(self._engine.info)

    def check_health(self) -> None:
        """Serve replaces a replica whose engine died."""
        if self._engine.closed:
            raise UnavailableError("the engine has stopped")

    def __del__(self) -> None:
        if engine := getattr(self, "_engine", None):
            engine.close()


@serve.deployment(name=EMBEDDER)
class EmbedderReplica:
    """One embedding engine."""

    def __init__(self, make_engine: Callable[[], Embedder]) -> None:
        self._engine = make_engine()

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """One vector a text."""
        return await self._engine.embed(texts)


async def _pump(events: AsyncGenerator[TokenEvent, None], ready: list[TokenEvent], wake: asyncio.Event) -> None:
    try:
        async for event in events:
            ready.append(event)
            wake.set()
    finally:
        await events.aclose()
        asyncio.get_running_loop().call_soon(wake.set)


class ModelBackend:
    """A model application as an engine."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._model = serve.get_deployment_handle(MODEL, app)
        self._handle = self._model.options(stream=True)

    async def info(self) -> Mapping[str, Any]:
        """What runs there."""
        return await self._model.info.remote()

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        response = self._handle.generate.remote(request)
        finished = False
        try:
            async for batch in response:
                for event in batch:
                    yield event
            finished = True
        except BackPressureError as error:
            finished = True
            raise ApiError(429, "too many requests wait already", code="overloaded", retry_after_s=1.0) from error
        except (RayError, RayServeException) as error:
            finished = True
            raise _ours(error, f"the model application {self._app}") from error
        finally:
            if not finished:
                response.cancel()


class EmbedderBackend:
    """An embedding application as an engine."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._handle = serve.get_deployment_handle(EMBEDDER, app)

    async def embed(self, texts: Sequence[str]) -> Embedded:
        try:
            return await self._handle.embed.remote(texts)
        except BackPressureError as error:
            raise ApiError(429, "too many requests wait already", code="overloaded", retry_after_s=1.0) from error
        except (RayError, RayServeException) as error:
            raise _ours(error, f"the embedding application {self._app}") from error


class MonitorWatcher:
    """The monitor application."""

    def __init__(self, app: str) -> None:
        self._handle = serve.get_deployment_handle(MONITOR, app)

    async def observe(self, batch: Sequence[Observation]) -> None:
        await self._handle.observe.remote(list(batch))

    async def status(self) -> Mapping[str, Any]:
        return await self._handle.status.remote()


class BridgePorts:
    """The registry application as prompt source and sinks."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._made: DeploymentHandle | None = None

    @property
    def _handle(self) -> DeploymentHandle:
        if self._made is None:
            self._made = serve.get_deployment_handle(REGISTRY, self._app)
        return self._made

    async def prompt(self, reference: str) -> PromptTemplate:
        return await self._call("prompt", reference)

    async def put_outputs(self, outputs: Sequence[OutputRecord]) -> None:
        await self._call("put_outputs", list(outputs))

    async def put_feedback(self, feedback: FeedbackRecord) -> None:
        await self._call("put_feedback", feedback)

    async def _call(self, method: str, argument: Any) -> Any:
        try:
            return await asyncio.wait_for(getattr(self._handle, method).remote(argument), 5.0)
        except TimeoutError as error:
            raise UnavailableError("the registry does not answer within 5 s") from error
        except (RayError, RayServeException) as error:
            raise _ours(error, "the registry") from error


def _ours(error: Exception, what: str) -> Exception:
    """The error of ours that a Ray error carries; or that `what` is gone; or the error itself."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, LLMRayError):
        return cause
    if isinstance(error, RayTaskError) and not isinstance(error, TaskCancelledError | RayServeException):
        return error
    return UnavailableError(f"{what} is not there now: {type(error).__name__}: {error}")


def _cached(make: Callable[[str], Any]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def get(app: str) -> Any:
        if app not in made:
            made[app] = make(app)
        return made[app]

    return get
