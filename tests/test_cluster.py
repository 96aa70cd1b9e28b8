"""Which cluster `RAY_ADDRESS` names, decided before Ray is asked."""

import pytest

from llmray import cluster
from llmray.errors import ConfigError, UnavailableError


@pytest.mark.parametrize(
    ("address", "told"),
    [("ray://127.0.0.1:10001", "is a Ray client server"), ("http://127.0.0.1:8265", "is a dashboard")],
)
def test_what_takes_no_drivers_is_refused_with_what_to_do(
    address: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the tests' own cluster may be connected
    with pytest.raises(ConfigError, match=told):
        cluster.connect()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1"])
def test_nothing_that_listens_is_said_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        cluster.connect()


@pytest.mark.parametrize(("address", "ours"), [("", True), ("local", True), ("127.0.0.1:6379", False)])
def test_whose_cluster_it_is(address: str, ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster.is_ours() is ours
