"""A new model under traffic: nobody notices a good one, and a bad one goes back."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from served_model import Served

from llmray import deployment
from llmray.errors import InputError
from llmray.serve.control import DeploymentFailedError
from llmray.serve.rollout import RolloutPolicy
from llmray.serve.service import Service

pytestmark = [pytest.mark.ray, pytest.mark.serve, pytest.mark.slow]

ASK: Any = [{"role": "user", "content": "What does os.path.join do?"}]
TOKENS = 24


class Crowd:
    """People who ask without pause, every other one by stream, the same greedy question."""

    def __init__(self, served: Served, size: int = 3) -> None:
        self.texts: set[str] = set()
        self.failures: list[str] = []
        self.answered = 0
        self._served = served
        self._size = size
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "Crowd":
        self._pool = ThreadPoolExecutor(self._size)
        for number in range(self._size):
            self._pool.submit(self._ask_on, number)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _ask_on(self, number: int) -> None:
        client = self._served.client()
        turn = 0
        while not self._stop.is_set():
            turn += 1
            try:
                text = ask(client, user=f"{number}-{turn}", stream=turn % 2 == 0)
            except (openai.OpenAIError, ValueError) as error:
                with self._lock:
                    self.failures.append(f"{type(error).__name__}: {error}")
                continue
            with self._lock:
                self.texts.add(text)
                self.answered += 1


def ask(client: openai.OpenAI, *, user: str, stream: bool) -> str:
    """One whole answer; ValueError for one that was cut short."""
    if not stream:
        whole = client.chat.completions.create(model="docs", messages=ASK, max_tokens=TOKENS, temperature=0, user=user)
        if whole.choices[0].finish_reason is None:
            raise ValueError("cut short")
        return whole.choices[0].message.content or ""
    chunks = list(
        client.chat.completions.create(
            model="docs", messages=ASK, max_tokens=TOKENS, temperature=0, user=user, stream=True
        )
    )
    if not chunks or chunks[-1].choices[0].finish_reason is None:
        raise ValueError("cut short")
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_rollout_under_traffic_fails_nobody(served: Served, other_model: Path, tiny_model: Path) -> None:
    client = served.client()
    old = ask(client, user="before", stream=False)
    before = deployment.status()["replicas"]
    policy = RolloutPolicy(steps=(10, 50, 100), min_requests=3)
    with Crowd(served) as crowd:
        result = deployment.rollout(str(other_model), "b" * 64, quantization="none", policy=policy, poll_s=0.2)
    new = ask(client, user="after", stream=False)
    assert crowd.failures == []
    assert crowd.answered > 9
    assert new != old
    assert crowd.texts <= {old, new}  # whole answers only: what is cut short is neither
    assert (result.status, result.digest) == ("done", "b" * 64)
    after = deployment.status()
    assert {name: after["replicas"][name] for name in ("gateway", "registry")} == {
        name: before[name] for name in ("gateway", "registry")
    }
    [stable] = after["config"]["variants"]
    assert (stable["name"], stable["digest"], stable["weight"]) == ("stable", "b" * 64, 100.0)
    assert [name for name in after["applications"] if name.startswith("model-")] == [stable["app"]]
    moves = [event.payload["weight"] for event in served.registry.events("rollout.step", limit=10)]
    assert sorted(moves) == [10, 50, 100]
    recorded = {output.model_digest for output in served.registry.outputs(2000)}
    assert recorded >= {"a" * 64, "b" * 64}


def test_broken_release_goes_back(served: Served, broken_model: Path) -> None:
    before = deployment.status()
    client = served.client()

    def drive(weight: float) -> None:
        for number in range(30):
            try:
                ask(client, user=f"{weight}-{number}", stream=False)
            except openai.InternalServerError:
                continue

    policy = RolloutPolicy(steps=(50, 100), min_requests=5)
    result = deployment.rollout(
        str(broken_model), "c" * 64, quantization="none", policy=policy, drive=drive, step_timeout_s=30
    )
    assert result.status == "rolled_back"
    assert "failed" in result.reason
    after = deployment.status()
    assert after["config"]["variants"] == before["config"]["variants"]
    assert after["replicas"] == before["replicas"]
    assert served.registry.events("rollout.rolled_back", limit=1)[0].subject == "c" * 64
    assert ask(client, user="after", stream=True)


def test_model_that_does_not_load_leaves_the_old_one(served: Served, tiny_model: Path, tmp_path: Path) -> None:
    before = deployment.status()["replicas"]
    with pytest.raises(InputError, match="has no config"):
        deployment.rollout(str(tmp_path), "e" * 64)
    with pytest.raises(DeploymentFailedError, match=r"did not start.*nowhere:engine"):
        deployment.rollout(str(tiny_model), "e" * 64, engine="nowhere:engine", timeout_s=120)
    assert deployment.status()["replicas"] == before
    assert ask(served.client(), user="still", stream=False)


def test_rollout_goes_on_where_a_dead_driver_left_it(served: Served, tiny_model: Path) -> None:
    before = deployment.status()

    class DriverDiedError(Exception):
        pass

    def dead(*_: object) -> None:
        raise DriverDiedError

    policy = RolloutPolicy(steps=(20, 100), min_requests=0)
    for digest in ("d" * 64, "f" * 64):  # the second finds the canary of the first
        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(DriverDiedError):

            def die(weight: float, monkeypatch: pytest.MonkeyPatch = monkeypatch) -> None:
                monkeypatch.setattr(Service, "split", dead)  # what is dead moves nothing any more
                raise DriverDiedError

            deployment.rollout(str(tiny_model), digest, engine="echo", policy=policy, drive=die)
    left = deployment.status()
    assert [(variant["digest"], variant["weight"]) for variant in left["config"]["variants"]] == [
        (before["config"]["variants"][0]["digest"], 80.0),
        ("f" * 64, 20.0),
    ]
    canary = left["config"]["variants"][1]["app"]
    result = deployment.rollout(str(tiny_model), "f" * 64, engine="echo", policy=policy)
    after = deployment.status()
    assert result.status == "done"
    assert after["replicas"][canary] == left["replicas"][canary]
    assert {name for name in after["applications"] if name.startswith("model-")} == {canary}
    text = ask(served.client(), user="after", stream=True)
    assert text == ASK[0]["content"]


def test_other_limits_take_a_new_replica_and_fail_nobody(served: Served, tiny_model: Path) -> None:
    [before] = deployment.status()["config"]["variants"]
    replicas = deployment.status()["replicas"][before["app"]]
    with Crowd(served) as crowd:
        deployment.deploy(
            str(tiny_model),
            before["digest"],
            name="docs",
            engine="echo",
            quantization="none",
            ttft_limit_s=5.0,
            port=served.port,
            database_url=served.database_url,
        )
    [after] = deployment.status()["config"]["variants"]
    assert after["app"] == before["app"]
    assert deployment.status()["replicas"][after["app"]] != replicas
    assert crowd.failures == []
    assert crowd.answered > 9
    assert crowd.texts == {ASK[0]["content"]}
