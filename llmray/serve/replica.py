"""The Ray shell: gateway and model as Serve deployments, and deployment handles as ports. The gateway itself is `core`."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import ray
from fastapi import FastAPI
from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from ray.serve._private.logging_utils import get_serve_logs_dir
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from llmray.errors import LLMRayError, UnavailableError
from llmray.outputs import Feedback, Output
from llmray.serve.admission import Admission, Objective
from llmray.serve.answer import in_time
from llmray.serve.balancer import LOOK_S, Balancer
from llmray.serve.channel import ChannelServer, Door, Send
from llmray.serve.core import Gateway
from llmray.serve.embedder import Embedded, Embedder
from llmray.serve.engine import Engine, EngineLoad, EngineRequest, TokenEvent
from llmray.serve.gateway import create_app
from llmray.serve.ports import (
    Key,
    LabelChange,
    Observation,
    Ports,
    PromptChoice,
    PromptDraft,
    PromptLabel,
    PromptVersion,
)
from llmray.serve.protocol import ApiError
from llmray.serve.request_log import notes, write_to
from llmray.serve.scaling import FirstTokens
from llmray.serve.traces import traces_to_collector
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
        self._id = serve.get_replica_context().replica_id.unique_id
        write_to(Path(get_serve_logs_dir()) / f"llmray_requests_{self._id}.jsonl")
        ports = Ports()
        if registry_app is not None:
            bridge = BridgePorts(registry_app)
            ports = Ports(prompts=bridge, store=bridge, outputs=bridge, feedback=bridge, keys=bridge)
        backend = _cached(ModelBackend)
        self.core = Gateway(
            ports,
            backend=backend,
            watcher=_cached(MonitorWatcher),
            embedder=_cached(EmbedderBackend),
            probe=lambda app: backend(app).there(),
            engine_loads=lambda app: backend(app).loads(),
        )
        _keep_out_of_collections()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.core, peers_known=not RAY_SERVE_ENABLE_HA_PROXY)

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
    """One engine, alone with its weights, and who gets in."""

    def __init__(self, make_engine: Callable[[], Engine], objective: Objective, routing: str = "power_of_two") -> None:
        self._engine = make_engine()
        self._routing = routing
        self._channel = ChannelServer(self.answer)
        self._admission = Admission(objective, clock=time.monotonic)
        self._first_tokens = FirstTokens()
        self._traces = traces_to_collector("llmray-model")
        _keep_out_of_collections()

    async def door(self) -> Door:
        """Where requests are taken."""
        host = ray.util.get_node_ip_address()
        return Door(
            replica=serve.get_replica_context().replica_id.unique_id,
            host=host,
            port=await self._channel.listen(host),
            secret=self._channel.secret,
            routing=self._routing,
            under_way=len(self._channel.answering),
        )

    async def answer(self, request: EngineRequest, send: Send) -> None:
        """Give the events of one answer to `send`.

        Raises:
            OverloadedError: the first one would come too late.
            DeadlineExceededError: the time that the request allows is over.
            RequestRefusedError: the engine cannot do what is asked.
            UnavailableError: the engine is closed.
        """
        place = self._admission.enter(request, self._engine.load())
        deadline = None if request.timeout_s is None else asyncio.get_running_loop().time() + request.timeout_s
        try:
            async with in_time(deadline), aclosing(self._events(request)) as events:
                async for event in events:
                    place.answered(event.prompt_tokens)
                    send(event)
        finally:
            place.leave()

    async def info(self) -> dict[str, Any]:
        """What runs here."""
        return asdict(self._engine.info)

    async def busy(self) -> tuple[str, EngineLoad]:
        """This replica's name, and how busy it is."""
        return serve.get_replica_context().replica_id.unique_id, self._engine.load()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve asks for every second where the number of replicas follows the load."""
        return self._first_tokens.stats(self._engine.load(), self._admission.requests)

    def check_health(self) -> None:
        """Serve replaces a replica whose engine died."""
        if self._engine.closed:
            raise UnavailableError("the engine has stopped")

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Serve awaits this when it ends a replica, and ends its process only then, or after `graceful_shutdown_timeout_s`."""
        channel: ChannelServer | None = getattr(self, "_channel", None)  # None where the engine failed to start
        if channel is not None and channel.listens and not channel.leaving:
            return self._leave(channel)
        self._close()
        return None

    async def _leave(self, channel: ChannelServer) -> None:
        try:
            await channel.leave()
        finally:
            self._close()

    def _close(self) -> None:
        if engine := getattr(self, "_engine", None):
            engine.close()
        if traces := getattr(self, "_traces", None):
            traces.close()

    def _events(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        load, events = self._engine.load(), self._first_tokens.timed(self._engine.submit(request))
        if self._traces is None or request.trace is None:
            return events
        return self._traces.engine(request, self._engine.info, load, events)


@serve.deployment(name=EMBEDDER)
class EmbedderReplica:
    """One embedding engine."""

    def __init__(self, make_engine: Callable[[], Embedder]) -> None:
        self._engine = make_engine()

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """One vector a text."""
        return await self._engine.embed(texts)


class ModelBackend:
    """A model application as an engine: Serve has its replicas, and requests go to them by channels."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._handle = serve.get_deployment_handle(MODEL, app)
        self._replicas = Balancer(self._doors, self._door, clock=time.monotonic)

    async def there(self) -> None:
        """Ask whether a request would be answered, and wake no replica by asking.

        Raises:
            RayServeException: no replica is there, and none would be started for a request.
        """
        try:
            await self.loads()
        except DeploymentUnavailableError:
            apps = (await asyncio.to_thread(serve.status)).applications
            if self._app not in apps or apps[self._app].status != ApplicationStatus.RUNNING:
                raise

    async def loads(self) -> dict[str, EngineLoad]:
        """How busy each of its replicas is.

        Raises:
            RayServeException: it has none now.
        """
        return dict(await self._handle.broadcast("busy").results_async())

    def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        """The events of one answer; leaving early frees its compute."""
        return self._replicas.submit(replace(request, trace=notes().trace))

    async def _doors(self) -> list[Door]:
        try:
            found = await self._handle.broadcast("door").results_async(timeout_s=LOOK_S, return_exceptions=True)
        except (RayError, RayServeException, AioRpcError, TimeoutError) as error:
            raise _ours(error, f"the model application {self._app}") from error
        return [door for door in found if isinstance(door, Door)]

    async def _door(self) -> Door:
        try:
            return cast(Door, await self._handle.door.remote())
        except (RayError, RayServeException, AioRpcError) as error:
            raise _ours(error, f"the model application {self._app}") from error


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
        except (RayError, RayServeException, AioRpcError) as error:
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
    """The registry application as prompt source, prompt store and sinks."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._made: DeploymentHandle | None = None

    @property
    def _handle(self) -> DeploymentHandle:
        if self._made is None:
            self._made = serve.get_deployment_handle(REGISTRY, self._app)
        return self._made

    async def prompt(self, reference: str) -> PromptChoice:
        return await self._call("prompt", reference)

    async def prompt_versions(self, reference: str | None) -> Sequence[PromptVersion]:
        return await self._call("prompt_versions", reference)

    async def prompt_labels(self, name: str | None) -> Sequence[PromptLabel]:
        return await self._call("prompt_labels", name)

    async def put_prompt(self, draft: PromptDraft) -> PromptVersion:
        return await self._call("put_prompt", draft)

    async def change_label(self, change: LabelChange) -> PromptLabel | None:
        return await self._call("change_label", change)

    async def output(self, output_id: str) -> Output:
        return await self._call("output", output_id)

    async def put_packed(self, packed: Sequence[bytes]) -> None:
        await self._call("put_packed", packed)

    async def put_feedback(self, feedback: Feedback) -> None:
        await self._call("put_feedback", feedback)

    async def key(self, token: str) -> Key | None:
        return await self._call("key", token)

    async def any_keys(self) -> bool:
        return await self._call("any_keys")

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await asyncio.wait_for(getattr(self._handle, method).remote(*arguments), 5.0)
        except TimeoutError as error:
            raise UnavailableError("the registry does not answer within 5 s") from error
        except (RayError, RayServeException, AioRpcError) as error:
            ours = _ours(error, "the registry")
            if isinstance(ours, LLMRayError):
                raise ours from error
            logger.exception("the registry failed to %s", method)
            raise UnavailableError(f"the registry failed: {type(error).__name__}") from error


def _ours(error: Exception, what: str) -> Exception:
    """The error of ours that a Ray error carries; or that `what` is gone; or the error itself."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, LLMRayError):
        return cause
    if isinstance(error, RayTaskError) and not isinstance(error, TaskCancelledError | RayServeException):
        return error
    return UnavailableError(f"{what} is not there now: {type(error).__name__}: {error}")


def _keep_out_of_collections() -> None:
    """Have the garbage collector leave alone what is there now: going through all that was imported takes it tens of
    milliseconds, and every stream of the process waits for it."""
    gc.collect()
    gc.freeze()


def _cached(make: Callable[[str], Any]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def get(app: str) -> Any:
        if app not in made:
            made[app] = make(app)
        return made[app]

    return get
