"""The composition root: what Serve imports, and the calls that put a model into service and change it there.

`gateway`, `model`, `embedder`, `monitor` and `registry` build applications for Serve files (`llmray.deployment:gateway`); `deploy`,
`rollout`, `status` and `shutdown` send the same files to the cluster that this process is connected to. Only here do
serving and monitoring meet the registry, in one replica (`llmray.bridge`). Rejected: applications built by `serve.run`
(they would restart at each change, see `llmray.serve.control`).
"""

import functools
import json
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from llmray import storage
from llmray.bridge import BridgeAlerts, RegistryBridge
from llmray.errors import ConfigError, InputError, UnavailableError
from llmray.prices import price_list
from llmray.serve.access import is_loopback
from llmray.serve.admission import Objective
from llmray.serve.canary import RolloutResult
from llmray.serve.control import ServeControl
from llmray.serve.embedder import open_embedder
from llmray.serve.engines import ModelArgs, checked_folder, open_engine
from llmray.serve.replica import MONITOR, EmbedderReplica, GatewayReplica, ModelReplica
from llmray.serve.rollout import RolloutPolicy
from llmray.serve.scaling import replica_options
from llmray.serve.service import LONGEST_ANSWER_S, Deployed, ModelSource, Service
from llmray.serve.variants import TextLog

logger = logging.getLogger(__name__)

_REQUEST_PATH = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}
"""How gateway and model run: one event loop in each, where Serve has three, since none of ours blocks it and a token pays
for each crossing; gRPC to the registry, since an actor call costs three times as much; access logs in blocks."""

_BEING_REFUSED = 256
"""Requests beyond the gateway's limit that may wait there at one moment."""


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GatewayArgs(_Args):
    registry_app: str | None = "registry"
    """Application of the registry; None for no prompts, output log and feedback."""
    num_cpus: Annotated[float, Field(ge=0)] = 0.2
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 1000


class EmbedderArgs(_Args):
    uri: str
    """Folder of a sentence-transformers model, or `minilm`."""
    num_cpus: Annotated[float, Field(ge=0)] = 0.5
    num_replicas: Annotated[int, Field(ge=1)] = 1
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 16
    """Requests that one replica holds; it embeds one at a time."""
    max_queued_requests: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait at the gateway before others are refused with 429."""


class RegistryArgs(_Args):
    num_cpus: Annotated[float, Field(ge=0)] = 0.1


class MonitorArgs(_Args):
    data_uri: str | None = None
    """Dataset snapshot whose held-out questions are the usual traffic."""
    reference_uri: str | None = None
    """Or a file of usual questions, one JSON string a line."""
    average_run_length: Annotated[float, Field(gt=1)] = 10_000.0
    """Usual requests between two false alarms, at least, in the mean."""
    neighbours: Annotated[int, Field(ge=1)] = 5
    """Usual questions that a question is compared with."""
    seed: int = 0
    state_uri: str | None = None
    """File that keeps the detectors' state over restarts; None keeps none."""
    registry_app: str | None = "registry"
    """Application that takes the alarms; None for none."""
    num_cpus: Annotated[float, Field(ge=0)] = 0.1

    @model_validator(mode="after")
    def _one_reference(self) -> "MonitorArgs":
        if (self.data_uri is None) == (self.reference_uri is None):
            raise ValueError("give data_uri or reference_uri: one of them says what usual traffic is")
        return self


def gateway(args: GatewayArgs) -> Application:
    """HTTP in front of the models."""
    return GatewayReplica.options(  # type: ignore[attr-defined]
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=_BEING_REFUSED,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1.0),
        max_surge_percent=100,  # a new replica runs before the old one drains: somebody always listens
        **_options(args.num_cpus, env=_REQUEST_PATH),
    ).bind(args.registry_app)


def model(args: ModelArgs) -> Application:
    """One model, quantized as it is loaded."""
    objective = Objective(
        ttft_s=args.ttft_limit_s, max_waiting=args.max_waiting, max_requests=args.max_ongoing_requests
    )
    return ModelReplica.options(  # type: ignore[attr-defined]
        **replica_options(args),
        max_ongoing_requests=100,  # questions of gateways: requests pass Serve by
        max_surge_percent=100,  # other limits or replicas make it anew: it runs before the old one drains
        **_options(args.num_cpus, args.num_gpus, env=_REQUEST_PATH),
    ).bind(functools.partial(open_engine, args), objective, args.routing)


def embedder(args: EmbedderArgs) -> Application:
    """One embedding model; `GatewayConfig.embeddings` gives it the name that clients ask for."""
    return EmbedderReplica.options(  # type: ignore[attr-defined]
        num_replicas=args.num_replicas,
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        **_options(args.num_cpus),
    ).bind(functools.partial(open_embedder, args.uri))


def registry(args: RegistryArgs) -> Application:
    """The one place in Serve that opens the registry: `$LLMRAY_DATABASE_URL`, or the local home's."""
    return RegistryBridge.options(**_options(args.num_cpus)).bind()  # type: ignore[attr-defined]


def monitor(args: MonitorArgs) -> Application:
    """The monitor, off the request path."""
    from llmray.monitor.replica import MonitorReplica

    deployment = serve.deployment(name=MONITOR)(MonitorReplica)
    return deployment.options(max_ongoing_requests=100, **_options(args.num_cpus)).bind(
        usual_questions(args),
        alerts=None if args.registry_app is None else BridgeAlerts(args.registry_app),
        average_run_length=args.average_run_length,
        neighbours=args.neighbours,
        seed=args.seed,
        state_uri=args.state_uri,
    )


def usual_questions(args: MonitorArgs) -> list[str]:
    """What the traffic is compared with."""
    from llmray.monitor.reference import usual_messages

    if args.data_uri is not None:
        return usual_messages(args.data_uri)[0]
    lines = storage.read_bytes(str(args.reference_uri)).decode().splitlines()
    return [str(json.loads(line)) for line in lines if line.strip()]


def deploy(
    model_uri: str,
    digest: str,
    *,
    name: str,
    default_prompt: str | None = None,
    monitor: MonitorArgs | None = None,
    embeddings: Mapping[str, EmbedderArgs] = MappingProxyType({}),
    text_log: TextLog | None = None,
    database_url: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    timeout_s: float = 180.0,
    **options: Any,
) -> Deployed:
    """Serve a model with all of the traffic, on the cluster that this process is connected to.

    A model that is served already is drained and taken away after the new one runs; no request fails.

    Args:
        model_uri: folder of the model artifact, which every node must reach.
        digest: the artifact's digest.
        name: what clients ask for as `model`.
        default_prompt: prompt reference for chats that name none.
        monitor: what watches the traffic; None for no monitor.
        embeddings: embedding models by the names that clients ask for.
        text_log: how much text the output log keeps; what is not given is as before, and at first all of it.
        database_url: the registry's; `$LLMRAY_DATABASE_URL` or the local home's by default.
        options: how the model is served: fields of `ModelArgs`, such as `quantization`, `adapters`, `max_replicas`.

    Raises:
        ConfigError: an option that is impossible, or other machines are let in and there is no API key.
        InputError: the folder does not hold that model.
        UnavailableError: the port is taken, the cluster is full or not there.
    """
    from llmray.registry.database import default_url

    url = database_url or default_url()
    _check_open_to(host, url)
    env = {"LLMRAY_DATABASE_URL": url, "LLMRAY_HOME": storage.home()}
    return _service(host, port).deploy(
        _source(model_uri, digest, options),
        name=name,
        default_prompt=default_prompt,
        registry_env=env,
        monitor=None if monitor is None else monitor.model_dump(),
        embeddings={model: args.model_dump() for model, args in embeddings.items()},
        text_log=text_log,
        timeout_s=timeout_s,
    )


def rollout(
    model_uri: str,
    digest: str,
    *,
    policy: RolloutPolicy | None = None,
    drive: Callable[[float], None] | None = None,
    timeout_s: float = 180.0,
    step_timeout_s: float = 600.0,
    poll_s: float = 0.5,
    **options: Any,
) -> RolloutResult:
    """Bring a new model into service step by step, beside the one that serves now, and take the worse one away.

    Args:
        policy: weights, and when to go back.
        drive: called with each weight in percent; may send traffic, and returns when the step may be judged.
        timeout_s: for an application to start.
        step_timeout_s: how long a step waits for `policy.min_requests` before the rollout goes back.
        options: fields of `ModelArgs`; what is not given is as with the model that serves now.

    Raises:
        InputError: nothing is served yet, or the folder does not hold that model.
        DeploymentFailedError: the new model did not start; the old one goes on.
    """
    service = _service(None, None)
    return service.rollout(
        _source(model_uri, digest, _inherited(service.model_options(), options)),
        policy or RolloutPolicy(),
        drive=drive,
        timeout_s=timeout_s,
        step_timeout_s=step_timeout_s,
        poll_s=poll_s,
    )


def shadow(
    model_uri: str,
    digest: str,
    *,
    share: float = 100.0,
    timeout_s: float = 180.0,
    **options: Any,
) -> None:
    """Copy a share of the requests, in percent, to a model whose answers nobody gets; they are kept as outputs.

    Args:
        options: fields of `ModelArgs`; what is not given is as with the model that serves now.

    Raises:
        InputError: nothing is served yet, the model serves already, or the folder does not hold it.
        DeploymentFailedError: the model did not start.
    """
    service = _service(None, None)
    source = _source(model_uri, digest, _inherited(service.model_options(), options))
    service.shadow(source, share=share, timeout_s=timeout_s)


def end_shadow() -> None:
    """Copy no more requests, and take the shadow away."""
    _service(None, None).shadow(None, share=0.0, timeout_s=0.0)


def reset_monitor(digest: str, reason: str) -> None:
    """Have the monitor of the service watch a model as if it were new; one that it has not seen is new already."""
    _service(None, None).watch_anew(digest, reason)


def status() -> dict[str, Any]:
    """What is served: URL, split of the traffic, state of each application; `{"running": False}` for nothing."""
    control = _control()
    if (address := control.http_address()) is None:
        return {"running": False}
    service = Service(control, host=address[0], port=address[1], runtime_env={})
    config = service.config()
    return {
        "running": True,
        "url": f"{service.url}/v1",
        "config": None if config is None else config.model_dump(),
        "applications": {name: app["status"] for name, app in control.details()["applications"].items()},
        "replicas": {name: sorted(ids) for name, ids in control.replica_ids().items()},
    }


def shutdown(*, timeout_s: float = 660.0) -> None:
    """Finish what runs, write what is queued, and take away every application of ours; others stay."""
    control = _control()
    if (address := control.http_address()) is not None:
        Service(control, host=address[0], port=address[1], runtime_env={}).shutdown(timeout_s=timeout_s)


def _check_open_to(host: str, database_url: str) -> None:
    """Other machines are let in only where keys tell who they are.

    Raises:
        ConfigError: there is no key.
    """
    from llmray.registry.registry import Registry

    if is_loopback(host):
        return
    with Registry.open(database_url) as registry:
        if not registry.any_tokens():
            raise ConfigError(
                f"host ({host}) lets other machines in, and there is no API key: make one first with "
                f"`llmray keys create PROJECT`, or keep to 127.0.0.1"
            )


def _control() -> ServeControl:
    import ray

    from llmray import cluster

    cluster.connect()
    # asking again returns what this process is connected to, the dashboard's address included
    url = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR).dashboard_url
    if not url:
        raise UnavailableError(
            "Serve is driven through Ray's dashboard: start the cluster with it (include_dashboard=True)"
        )
    return ServeControl(f"http://{url}")


def _service(host: str | None, port: int | None) -> Service:
    """The service of the connected cluster; without host and port, where it listens already."""
    import ray

    control = _control()
    if host is None or port is None:
        if (address := control.http_address()) is None:
            raise InputError("nothing is served yet: deploy a model first")
        host, port = address
    mine = ray.get_runtime_context().runtime_env
    code = {key: mine[key] for key in ("working_dir", "py_modules") if mine.get(key)}
    return Service(control, host=host, port=port, runtime_env=code)


def _inherited(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """How a model is served beside one that serves already: a number of replicas that is given replaces a range, and back."""
    rivals = {"num_replicas": ("min_replicas", "max_replicas"), "max_replicas": ("num_replicas",)}
    replaced = {rival for name, others in rivals.items() if name in given for rival in others}
    return {name: value for name, value in before.items() if name not in replaced} | dict(given)


def _source(uri: str, digest: str, options: Mapping[str, Any]) -> ModelSource:
    uri = str(storage.local_path(uri).absolute()) if storage.is_local(uri) else uri
    try:
        args = ModelArgs(uri=uri, digest=digest, **options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc'])) or 'model'}: {first['msg']}") from error
    if args.engine == "hf" and storage.exists(uri):  # else the folder is the cluster's, and the replica will look
        checked_folder(uri, digest)
    price_s = price_list().money(core_seconds=args.num_cpus, gpu_seconds=args.num_gpus)
    return ModelSource(args=args, price_s=None if price_s is None else price_s * args.num_replicas)


def _options(num_cpus: float, num_gpus: float = 0.0, env: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    runtime_env = {"runtime_env": _with_env(env)} if env else {}
    return {
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus, **runtime_env},
        "graceful_shutdown_timeout_s": LONGEST_ANSWER_S,
        "graceful_shutdown_wait_loop_s": 0.2,
    }


def _with_env(env: Mapping[str, str]) -> dict[str, Any]:
    """The application's runtime environment, and these variables unless it has its own.

    Serve joins what a file says with what code says only for deployments that the file names; for the others, code would
    take the place of the file's environment, working directory and all.
    """
    import ray

    mine = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return {**mine, "env_vars": {**env, **mine.get("env_vars", {})}}
