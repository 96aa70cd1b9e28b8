"""A Serve file as a KubeRay `RayService` (`ray.io/v1`): the same applications, and a cluster that is large enough for them.

A pure function from values to values. Worker pods are sized by what one replica needs and counted by how many there may
be; the head runs nothing of ours but Serve's controller. A new manifest is taken over gradually
(`NewClusterWithIncrementalUpgrade`, KubeRay 1.5.1 and its feature gate `RayServiceIncrementalUpgrade`): a second cluster
grows while the traffic moves, and the old one stays until its longest answers have ended. Probes are KubeRay's own: they
know which pods have a proxy. What cannot work in pods (a registry in a file, a model on somebody's disk) is refused here,
where the fix can be named. Rejected: a Helm chart (a second language for the same values), and a manifest to copy and
fill in (it would drift from the Serve file).
"""

import argparse
import importlib
import importlib.metadata
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmray.errors import ConfigError

_KEEP_OLD_S = 660
"""The longest answer, and a minute: how long a pod or an old cluster may take to end."""
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}


@dataclass(frozen=True, kw_only=True, slots=True)
class KubeRayOptions:
    """What a Serve file does not say about its cluster."""

    image: str
    """Container image with Ray and llmray."""
    name: str = "llmray"
    """Name of the RayService."""
    worker_cpus: int = 4
    """Cores of a worker pod; more where one replica needs more."""
    worker_memory_gb: int = 16
    """Memory of a worker pod, in GiB."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of all pods."""
    secret: str | None = None
    """Kubernetes Secret whose keys become environment variables: `LLMRAY_DATABASE_URL`, for one."""
    claim: str | None = None
    """PersistentVolumeClaim with the models, as `NAME:/where/it/is/mounted`."""
    gateway_class: str = "istio"
    """Gateway class of the Kubernetes cluster, through which traffic moves to a new cluster."""
    step_percent: int = 5
    """Share of the traffic that moves at a time."""
    interval_s: int = 30
    """Seconds between two moves."""
    max_surge_percent: int = 50
    """How much of its capacity a new cluster grows by at a time."""

    def __post_init__(self) -> None:
        if not 0 < self.step_percent <= self.max_surge_percent <= 100:
            raise ConfigError(
                f"step_percent ({self.step_percent}) must be above 0 and at most max_surge_percent "
                f"({self.max_surge_percent}), which must be at most 100: try 5 and 50"
            )
        if self.claim is not None and ":/" not in self.claim:
            raise ConfigError(f"claim ({self.claim}) must be NAME:/where/it/is/mounted: try {self.claim}:/srv/llmray")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Need:
    """What the replicas of one application need."""

    cpus: float
    gpus: float
    least: int
    most: int

    def fills(self, cpus: int, gpus: int) -> float:
        """How much of a pod one replica takes, as a share."""
        return max(self.cpus / cpus, self.gpus / gpus if gpus else 0.0, 1e-3)


def ray_service(config: Mapping[str, Any], options: KubeRayOptions) -> dict[str, Any]:
    """The manifest.

    Args:
        config: a Serve file, read.

    Raises:
        ConfigError: it is no Serve file of ours, or holds what cannot work in pods.
    """
    import yaml

    if not isinstance(config, Mapping) or not config.get("applications"):
        raise ConfigError("the file has no applications: give a Serve file, such as serve_configs/gpu.yaml")
    needs = []
    for app in config["applications"]:
        args = _args(app)
        _check_reach(app, args, options)
        needs.append(_need(app, args))
    served = {**config, "proxy_location": "EveryNode"}
    served["http_options"] = {**config.get("http_options", {}), "host": "0.0.0.0"}  # noqa: S104 - a pod's own address
    port = served["http_options"].setdefault("port", 8000)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": options.name},
        "spec": {
            "serveConfigV2": yaml.safe_dump(served, sort_keys=False),
            "upgradeStrategy": {
                "type": "NewClusterWithIncrementalUpgrade",
                "clusterUpgradeOptions": {
                    "gatewayClassName": options.gateway_class,
                    "stepSizePercent": options.step_percent,
                    "intervalSeconds": options.interval_s,
                    "maxSurgePercent": options.max_surge_percent,
                },
            },
            "rayClusterDeletionDelaySeconds": _KEEP_OLD_S,
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": {
                "rayVersion": importlib.metadata.version("ray"),
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {"version": "v2", "upscalingMode": "Default", "idleTimeoutSeconds": 300},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": _pod("ray-head", options, cpus=2, gpus=0, memory_gb=8, ports={**_PORTS, "serve": port}),
                },
                "workerGroupSpecs": list(_groups(needs, options, port)),
            },
        },
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of `llmray render kuberay`."""
    plain = KubeRayOptions(image="")
    parser.add_argument("config", help="Serve file")
    parser.add_argument("--image", required=True, help="container image with Ray and llmray")
    for name, text in {
        "name": "name of the RayService",
        "worker_cpus": "cores of a worker pod",
        "worker_memory_gb": "memory of a worker pod in GiB",
        "secret": "Secret whose keys become environment variables",
        "claim": "PersistentVolumeClaim with the models, NAME:/where/it/is/mounted",
        "gateway_class": "Gateway class through which traffic moves to a new cluster",
        "step_percent": "share of the traffic that moves at a time",
        "interval_s": "seconds between two moves",
        "max_surge_percent": "how much of its capacity a new cluster grows by at a time",
    }.items():
        default = getattr(plain, name)
        kind = int if isinstance(default, int) else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{text} ({default})")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="environment of all pods")


def render(arguments: argparse.Namespace) -> dict[str, Any]:
    """The manifest that the flags ask for.

    Raises:
        ConfigError: the file cannot be read, or a flag is impossible.
    """
    import yaml

    from llmray import storage

    pairs = [pair.partition("=") for pair in arguments.env]
    if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
        raise ConfigError(f"--env {wrong[0]} has no value: write NAME=VALUE")
    names = [name for name in KubeRayOptions.__dataclass_fields__ if name != "env"]
    options = KubeRayOptions(
        env={name: value for name, _, value in pairs}, **{name: getattr(arguments, name) for name in names}
    )
    try:
        config = yaml.safe_load(storage.read_bytes(arguments.config))
    except yaml.YAMLError as error:
        raise ConfigError(f"{arguments.config} is not YAML: {error}") from error
    return ray_service(config, options)


def _args(app: Mapping[str, Any]) -> Any:
    """The application's arguments as its builder takes them; None for a builder that is not ours."""
    from pydantic import ValidationError

    module, _, builder = str(app.get("import_path")).partition(":")
    if not module.startswith("llmray."):
        return None
    try:
        [parameter] = inspect.signature(getattr(importlib.import_module(module), builder)).parameters.values()
        return parameter.annotation.model_validate(app.get("args", {}))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{app['import_path']} of {app['name']} cannot be loaded: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{app['name']}: args{'.' if where else ''}{where}: {first['msg']}") from error


def _check_reach(app: Mapping[str, Any], args: Any, options: KubeRayOptions) -> None:
    env = {**options.env, **app.get("runtime_env", {}).get("env_vars", {})}
    if str(app.get("import_path")).endswith(":registry") and options.secret is None:
        url = env.get("LLMRAY_DATABASE_URL", "sqlite")
        if url.startswith("sqlite"):
            raise ConfigError(
                f"{app['name']}: the registry would be a file in a pod, gone with it: give LLMRAY_DATABASE_URL of a "
                f"PostgreSQL server by --secret or --env"
            )
    for name in ("uri", "data_uri", "reference_uri"):
        uri = getattr(args, name, None)
        if uri and "://" not in uri and options.claim is None:
            raise ConfigError(
                f"{app['name']}: {name} ({uri}) is on one machine's disk: use s3:// or gs://, or --claim NAME:/mounted/at"
            )


def _need(app: Mapping[str, Any], args: Any) -> _Need:
    """What the file says, or else the builder's arguments, or else Serve's own defaults."""
    said: Mapping[str, Any] = next(iter(app.get("deployments", ())), {})
    actor = said.get("ray_actor_options", {})
    scaling = said.get("autoscaling_config") or {}
    fixed: int = said.get("num_replicas", getattr(args, "num_replicas", 1))
    most = scaling.get("max_replicas") or getattr(args, "max_replicas", None)
    least = scaling.get("min_replicas", getattr(args, "min_replicas", 1))
    return _Need(
        cpus=float(actor.get("num_cpus", getattr(args, "num_cpus", 1.0))),
        gpus=float(actor.get("num_gpus", getattr(args, "num_gpus", 0.0))),
        least=fixed if most is None else int(least),
        most=fixed if most is None else int(most),
    )


def _groups(needs: Sequence[_Need], options: KubeRayOptions, port: int) -> Iterator[dict[str, Any]]:
    """A group of pods with GPUs if anything needs them, and one without."""
    for name, group in (("cpu", [need for need in needs if not need.gpus]), ("gpu", [n for n in needs if n.gpus])):
        if not group:
            continue
        gpus = math.ceil(max(need.gpus for need in group))
        cpus = max(options.worker_cpus, *(math.ceil(need.cpus) for need in group))

        least = math.ceil(sum(need.least * need.fills(cpus, gpus) for need in group))
        most = sum(math.ceil(need.most / max(1, math.floor(1 / need.fills(cpus, gpus)))) for need in group)
        yield {
            "groupName": name,
            "replicas": least,
            "minReplicas": least,
            "maxReplicas": most,  # each replica beside its own kind only: never too few
            "rayStartParams": {},
            "template": _pod(
                "ray-worker", options, cpus=cpus, gpus=gpus, memory_gb=options.worker_memory_gb, ports={"serve": port}
            ),
        }


def _pod(
    name: str, options: KubeRayOptions, *, cpus: int, gpus: int, memory_gb: int, ports: Mapping[str, int]
) -> dict[str, Any]:
    amounts = {"cpu": str(cpus), "memory": f"{memory_gb}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    container: dict[str, Any] = {
        "name": name,
        "image": options.image,
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "env": [{"name": key, "value": value} for key, value in options.env.items()],
    }
    if options.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": options.secret}}]
    spec: dict[str, Any] = {"terminationGracePeriodSeconds": _KEEP_OLD_S, "containers": [container]}
    if options.claim is not None:
        claim, _, path = options.claim.partition(":")
        container["volumeMounts"] = [{"name": "models", "mountPath": path}]
        spec["volumes"] = [{"name": "models", "persistentVolumeClaim": {"claimName": claim}}]
    return {"spec": spec}
