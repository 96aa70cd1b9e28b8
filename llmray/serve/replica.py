"""The Ray shell: gateway and model as Serve deployments, and deployment handles as ports.

The model replica sends events in lists: the first token leaves at once, and so does each one of a model that takes its time;
what follows within `TOGETHER_S` goes along, since a message costs both sides more than making a word of it into an event. The
gateway itself is `core`.
"""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from ray.serve._private.logging_utils import get_serve_logs_dir
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from llmray.errors import LLMRayError, UnavailableError, UserError
from llmray.outputs import Feedback, Output
from llmray.serve.admission import Admission, Objective
from llmray.serve.core import Gateway
from llmray.serve.embedder import Embedded, Embedder
from llmray.serve.engine import DeadlineExceededError, Engine, EngineLoad, EngineRequest, OverloadedError, TokenEvent
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

TOGETHER_S = 0.05
"""Seconds between two messages of a stream, as in Ray Serve LLM; its first and last wait for nothing."""
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

    def __init__(self, make_engine: Callable[[], Engine], objective: Objective) -> None:
        self._engine = make_engine()
        self._admission = Admission(objective, clock=time.monotonic)
        self._first_tokens = FirstTokens()
        self._traces = traces_to_collector("llmray-model")
        _keep_out_of_collections()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[list[TokenEvent] | UserError, None]:
        """Events of one answer, in lists; an error of the user's comes last, as a value.

        Serve would write the stack of an error that is raised into its log, which a flood of refusals would fill.
        """
        try:
            place = self._admission.enter(request, self._engine.load())
        except UserError as error:
            yield error
            return
        ready: list[TokenEvent] = []
        wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        task = loop.create_task(_pump(self._events(request), ready, wake))
        task.add_done_callback(lambda _: wake.set())
        limit = None if request.timeout_s is None else loop.call_later(request.timeout_s, task.cancel)
        try:
            while True:
                await wake.wait()
                wake.clear()
                batch, ready[:] = list(ready), []
                if batch:
                    place.answered(batch[0].prompt_tokens)
                    yield batch
                if task.done() and not ready:
                    if task.cancelled():
                        raise DeadlineExceededError(f"the {request.timeout_s:g} s that the request allows are over")
                    await task
                    return
                await asyncio.wait([task], timeout=TOGETHER_S)
        except UserError as error:
            yield error
        finally:
            place.leave()
            if limit is not None:
                limit.cancel()
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def info(self) -> dict[str, Any]:
        """What runs here."""
        return asdict(self._engine.info)

    async def busy(self) -> tuple[str, EngineLoad]:
        """This replica's name, and how busy it is."""
        return serve.get_replica_context().replica_id.unique_id, self._engine.load()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve asks for every second where the number of replicas follows the load."""
        return self._first_tokens.stats(self._engine.load())

    def check_health(self) -> None:
        """Serve replaces a replica whose engine died."""
        if self._engine.closed:
            raise UnavailableError("the engine has stopped")

    def __del__(self) -> None:
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


async def _pump(events: AsyncGenerator[TokenEvent, None], ready: list[TokenEvent], wake: asyncio.Event) -> None:
    try:
        async for event in events:
            ready.append(event)
            wake.set()
    finally:
        await events.aclose()


class ModelBackend:
    """A model application as an engine."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._model = serve.get_deployment_handle(MODEL, app)
        self._handle = self._model.options(
            stream=True,
            request_serialization="pickle",  # plain values, once a token: Serve's default is for closures, and slower
            response_serialization="pickle",
        )

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
        return dict(await self._model.broadcast("busy").results_async())

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        response = self._handle.generate.remote(replace(request, trace=notes().trace))
        finished = False
        try:
            async for batch in response:
                if isinstance(batch, UserError):
                    finished = True
                    raise batch
                for event in batch:
                    yield event
            finished = True
        except BackPressureError as error:  # admission refuses earlier; this holds while its replica does not answer
            finished = True
            raise OverloadedError("too many requests wait already: try again later", 1.0) from error
        except (RayError, RayServeException, AioRpcError) as error:
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
