"""A Serve file becomes a RayService that KubeRay takes, or an error that names the fix."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmray.cli import main
from llmray.errors import ConfigError
from llmray.integrations.kuberay import KubeRayOptions, ray_service

CONFIGS = Path(__file__).parents[2] / "serve_configs"
OPTIONS = KubeRayOptions(image="registry.example/llmray:1", secret="llmray")
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        "serveConfigV2", "rayClusterConfig", "upgradeStrategy", "rayClusterDeletionDelaySeconds",
        "excludeHeadPodFromServeSvc",
    },
    "spec.upgradeStrategy": {"type", "clusterUpgradeOptions"},
    "spec.upgradeStrategy.clusterUpgradeOptions": {
        "gatewayClassName", "stepSizePercent", "intervalSeconds", "maxSurgePercent"
    },
    "spec.rayClusterConfig": {
        "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"
    },
    "spec.rayClusterConfig.autoscalerOptions": {"version", "upscalingMode", "idleTimeoutSeconds"},
    "spec.rayClusterConfig.headGroupSpec": {"rayStartParams", "template"},
    "spec.rayClusterConfig.workerGroupSpecs": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"
    },
}  # fmt: skip
"""Names of `ray.io/v1` that we write, read once in KubeRay's own types (August 2026); every one is there, none else."""


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONFIGS / name).read_text()))


def app(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in config["applications"] if one["name"] == name)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_serve_file_of_ours_becomes_one_with_kuberays_fields(name: str) -> None:
    claim = KubeRayOptions(image="x", secret="llmray", claim="models:/srv/llmray")
    manifest = ray_service(read(name), claim)
    for path, fields in FIELDS.items():
        part: Any = manifest
        for step in path.split(".") if path else ():
            part = part[step]
        for one in part if isinstance(part, list) else [part]:
            assert set(one) == fields, path
    served = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    assert served["applications"] == read(name)["applications"]
    assert (served["proxy_location"], served["http_options"]["host"]) == ("EveryNode", "0.0.0.0")
    cluster = manifest["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > 600
        [container] = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "llmray"}}]
        assert container["volumeMounts"][0]["mountPath"] == "/srv/llmray"
        assert {"name": "serve", "containerPort": 8000} in container["ports"]


def test_worker_groups_hold_the_replicas_of_the_file() -> None:
    config = read("gpu.yaml")
    groups = ray_service(config, OPTIONS)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    cpu, gpu = groups
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (2, 2)
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (cpu["groupName"], cpu["minReplicas"]) == ("cpu", 1)
    args = app(config, "model-stable")["args"]
    del args["num_replicas"]
    args |= {"min_replicas": 0, "max_replicas": 8, "num_gpus": 0.5, "num_cpus": 12}
    _, gpu = ray_service(config, OPTIONS)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (0, 8)  # a pod has the 12 cores of one replica
    app(config, "model-stable")["deployments"] = [
        {"name": "Model", "ray_actor_options": {"num_cpus": 1, "num_gpus": 2}, "num_replicas": 3}
    ]
    del args["max_replicas"], args["min_replicas"]
    _, gpu = ray_service(config, OPTIONS)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (3, 3)
    assert gpu["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "4"


REACHED = {"secret": "llmray", "claim": "models:/srv/llmray"}


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda config: None, {"secret": "llmray"}, "monitor: data_uri .*one machine's disk.*--claim"),
        (lambda config: None, {"claim": "models:/srv/llmray"}, "registry would be a file.*--secret"),
        (lambda config: app(config, "model-stable")["args"].update(quantisation="int8"), REACHED, "args.quantisation"),
        (
            lambda config: app(config, "gateway").update(import_path="llmray.deployment:gate"),
            REACHED,
            "gate of gateway",
        ),
        (lambda config: config.clear(), REACHED, "no applications"),
    ],
)
def test_what_cannot_work_in_pods_is_refused(spoil: Any, options: dict[str, str], message: str) -> None:
    config = read("cpu.yaml")
    spoil(config)
    with pytest.raises(ConfigError, match=message):
        ray_service(config, KubeRayOptions(image="x", **options))


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="step_percent"):
        KubeRayOptions(image="x", step_percent=60)
    with pytest.raises(ConfigError, match="models:/srv/llmray"):
        KubeRayOptions(image="x", claim="models")


def test_command_prints_yaml_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["render", "kuberay", str(CONFIGS / "gpu.yaml"), "--image", "x", "--secret", "s", "--env", "A=b=c"]
    assert main(command) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == manifest
    head = manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["env"] == [{"name": "A", "value": "b=c"}]
    assert main([*command[:-1], "A"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
    assert main(["render", "kuberay", "nowhere.yaml", "--image", "x"]) == 2
