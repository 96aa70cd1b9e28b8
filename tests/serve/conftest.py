"""A tiny model made on the spot, and the served application that the `serve` tests share."""

import importlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_model import Served
from tiny_llama import make_tiny_model

from llmray import deployment
from llmray.registry.registry import Registry


def pytest_configure(config: pytest.Config) -> None:
    """langchain's suite marks a test for two plugins that pyproject.toml leaves out."""
    config.addinivalue_line("markers", "benchmark: for pytest-benchmark")
    config.addinivalue_line("markers", "vcr: for pytest-recording")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama with a byte-level tokenizer and a chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one."""
    return make_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def broken_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that loads, and fails at most texts."""
    return make_tiny_model(tmp_path_factory.mktemp("broken"), seed=2, missing_tokens=200)


def watching(home: Path) -> deployment.MonitorArgs:
    """A monitor that takes questions about the standard library for usual."""
    modules = ("os", "os.path", "json", "re", "math", "string")
    names = [f"{name}.{part}" for name in modules for part in dir(importlib.import_module(name)) if part[0] != "_"]
    questions = home / "usual.jsonl"
    questions.write_text("\n".join(json.dumps(f"What does {name} do?") for name in names))
    return deployment.MonitorArgs(reference_uri=str(questions), average_run_length=1000.0)


@pytest.fixture(scope="module")
def served(ray_cluster: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The tiny model behind a gateway, with a registry, on a free port, for as long as a file's tests need its cores."""
    home = tmp_path_factory.mktemp("served-home")
    url = f"sqlite:///{home / 'registry.db'}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMRAY_HOME", str(home))
        deployed = deployment.deploy(
            str(tiny_model),
            "a" * 64,
            name="docs",
            quantization="none",  # float32: an answer does not depend on who else asks, to the last letter
            port=port,
            database_url=url,
            monitor=watching(home),
        )
    with Registry.open(url) as registry:
        yield Served(deployed, registry, url, port)
    deployment.shutdown()
