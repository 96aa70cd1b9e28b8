"""One local Ray cluster for every test that needs one, and a home of its own for every test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from llmray import cluster

os.environ["HF_HUB_OFFLINE"] = "1"
settings.register_profile("llmray", deadline=None)  # a busy machine is no bug
settings.load_profile("llmray")


@pytest.fixture(autouse=True)
def llmray_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LLMRAY_HOME."""
    home = tmp_path / "llmray-home"
    monkeypatch.setenv("LLMRAY_HOME", str(home))
    monkeypatch.delenv("LLMRAY_DATABASE_URL", raising=False)
    return home


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The shared local cluster: two cores, dashboard on."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    cluster.connect(num_cpus=2)
    yield
    ray.shutdown()
