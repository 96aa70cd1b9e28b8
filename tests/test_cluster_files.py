"""`cluster.yaml` and the Serve files hold against Ray's own schemas and ours."""

import copy
import importlib
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray Serve's own, from pydantic, as it is imported
    from ray.serve.schema import ServeDeploySchema

from llmray import deployment
from llmray.serve.variants import GatewayConfig

ROOT = Path(__file__).parents[1]
SERVE_FILES = sorted((ROOT / "serve_configs").glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def builder_args(import_path: str) -> type[BaseModel]:
    """The type that a builder declares for its arguments, as Serve finds it."""
    module, attribute = import_path.split(":")
    [parameter] = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.values()
    assert issubclass(parameter.annotation, BaseModel)
    return parameter.annotation


def check(config: dict[str, Any]) -> None:
    ServeDeploySchema.model_validate(config)
    apps = {app["name"]: app for app in config["applications"]}
    for app in apps.values():
        builder_args(app["import_path"]).model_validate(app["args"])
    split = GatewayConfig.model_validate(apps["gateway"]["deployments"][0]["user_config"])
    assert split.monitor_app is None or split.monitor_app in apps
    for variant in split.variants:
        model = apps[variant.app]["args"]
        assert (model["digest"], model["quantization"]) == (variant.digest, variant.quantization)


def test_there_are_serve_files() -> None:
    assert {path.name for path in SERVE_FILES} >= {"autoscaled.yaml", "cpu.yaml", "gpu.yaml", "haproxy.yaml"}


@pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.name)
def test_serve_file_is_valid(path: Path) -> None:
    check(read(path))


@pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.name)
def test_serve_file_builds_its_applications(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "usual_questions", lambda _: ["What is a list?"])  # the file's data is to fill in
    for app in read(path)["applications"]:
        builder = getattr(deployment, app["import_path"].split(":")[1])
        built = builder(builder_args(app["import_path"]).model_validate(app["args"]))
        overridden = {one["name"] for one in app.get("deployments", ())}
        assert overridden <= {built._bound_deployment.name}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda apps: apps["gateway"]["deployments"][0]["user_config"].update(variants=[]),
        lambda apps: apps["gateway"]["deployments"][0].update(max_ongoing_requests=0),
        lambda apps: apps["model-stable"]["args"].update(quantisation="nf4"),
        lambda apps: apps["monitor"]["args"].update(reference_uri="both"),
    ],
)
def test_a_wrong_serve_file_is_found(spoil: Any) -> None:
    config = copy.deepcopy(read(ROOT / "serve_configs/cpu.yaml"))
    spoil({app["name"]: app for app in config["applications"]})
    with pytest.raises((ValidationError, ValueError)):
        check(config)


def test_cluster_file_is_what_ray_up_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(ROOT / "cluster.yaml")
    validate_config(prepare_config(copy.deepcopy(config)))
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert "GPU" not in types["head"]["resources"]
    assert any(kind["resources"].get("GPU") for kind in types.values())
    config["available_node_types"]["gpu_worker"]["max_wokers"] = 1
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(prepare_config(config))


def test_cluster_file_has_the_pinned_ray_and_python() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert read(ROOT / "cluster.yaml")["docker"]["image"] == f"rayproject/ray:{pinned['ray']}-py311-gpu"
