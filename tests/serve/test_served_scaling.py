"""A model that goes from one replica to two, to none, and to one again, while nobody's request fails."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from llmray import deployment
from llmray.serve.control import ServeControl, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.serve, pytest.mark.slow]

HERE = Path(__file__).parent
WORDS = "one two three four five six seven eight nine ten"


class Scaled:
    def __init__(self, control: ServeControl, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._control = control

    def wait_for_replicas(self, number: int) -> None:
        wait_for(
            lambda: len(self._control.replica_ids()["model-busy"]) == number,
            timeout_s=60,
            what=f"{number} replicas",
        )

    async def ask(self, client: httpx.AsyncClient, user: str) -> str:
        """Which process answered; the answer must be whole."""
        body = {"model": "busy", "prompt": WORDS, "user": user}
        answer = await client.post(f"{self.url}/v1/completions", json=body, timeout=90)
        assert answer.status_code == 200, answer.text
        process, _, text = answer.json()["choices"][0]["text"].partition(" ")
        assert text == WORDS
        return str(process)


@pytest.fixture(scope="module")
def scaled(ray_cluster: None) -> Iterator[Scaled]:
    """The gateway before a model that may have none to two replicas."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = {
        "uri": "", "digest": "a" * 64, "quantization": "none", "engine": "busy_echo:busy_echo", "num_cpus": 0.5,
        "min_replicas": 0, "max_replicas": 2, "ttft_objective_s": 2.0, "downscale_delay_s": 2.0, "routing": "session",
    }  # fmt: skip
    split = {"model": "busy", "variants": [{"name": "stable", "app": "model-busy", "digest": "a" * 64}]}
    code = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", str(HERE.parents[1]))))
    apps: dict[str, dict[str, Any]] = {
        "model-busy": {"import_path": "llmray.deployment:model", "args": model, "route_prefix": None},
        "gateway": {
            "import_path": "llmray.deployment:gateway", "args": {"registry_app": None}, "route_prefix": "/",
            "deployments": [{"name": "Gateway", "user_config": split}],
        },
    }  # fmt: skip
    for name, app in apps.items():
        app |= {"name": name, "runtime_env": {"env_vars": {"PYTHONPATH": code}}}
    control = ServeControl(f"http://{ray.init(ignore_reinit_error=True).dashboard_url}")
    control.apply(apps, host="127.0.0.1", port=port)
    control.wait_running(apps, timeout_s=90)
    yield Scaled(control, port)
    deployment.shutdown()


def test_replicas_follow_waiting_tokens_down_to_none_and_back(scaled: Scaled) -> None:
    enough = asyncio.Event()

    async def person(client: httpx.AsyncClient, user: str) -> None:
        while not enough.is_set():
            await scaled.ask(client, user)

    async def together(client: httpx.AsyncClient) -> list[str]:
        return await asyncio.gather(*(scaled.ask(client, user) for user in ("eve", "bob", "ada", "tom")))

    async def crowd() -> None:
        async with httpx.AsyncClient() as client:
            async with asyncio.TaskGroup() as people:
                for number in range(8):
                    people.create_task(person(client, f"user{number}"))
                await asyncio.to_thread(scaled.wait_for_replicas, 2)
                metrics = (await client.get(f"{scaled.url}/metrics")).text
                assert metrics.count("\nllmray_engine_waiting_tokens{") == 2
                enough.set()
            first, second = [await together(client) for _ in range(2)]
            assert first == second

    asyncio.run(crowd())
    scaled.wait_for_replicas(0)
    assert [httpx.get(f"{scaled.url}/readyz").status_code for _ in range(3)] == [200] * 3
    scaled.wait_for_replicas(0)  # being asked whether there is a model wakes none

    async def first_again() -> None:
        async with httpx.AsyncClient() as client:
            await asyncio.gather(*(scaled.ask(client, f"user{number}") for number in range(3)))

    asyncio.run(first_again())
