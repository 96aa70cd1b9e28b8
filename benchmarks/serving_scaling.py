"""Claim: with `min_replicas: 0` a model goes 1, 2, 0, 1 replicas with the traffic, and no request fails.

An engine that takes 50 ms a word, and says that prompts wait, stands behind the gateway. Eight people ask without pause until a second replica
runs; then nobody asks until there is none; then one request comes, and its time to the first token is the time that a
cold start costs, beside the same request to a warm replica in the same run. What a real model takes to load comes on
top (`load_s` of its engine).

    python benchmarks/serving_scaling.py [--quick]
"""

import argparse
import socket
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from machine import headline, versions, write_result

from llmray import cluster, console
from llmray.serve.control import ServeControl, wait_for
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineLoad

APP = "model-echo"
PEOPLE = 8
WORDS = "one two three four five six seven eight nine ten " * 2
DOWN_AFTER_S = 3.0


class BusyEcho(EchoEngine):
    """50 ms a word, and as many prompt tokens in waiting as if each request under way had 500 to read."""

    def load(self) -> EngineLoad:
        return replace(super().load(), waiting_tokens=500 * self.active, prefill_tokens_per_s=1000.0)


def slow_echo(_: Any) -> EchoEngine:
    """The engine: eight requests are 4 s of waiting tokens for one replica, 2 s for each of two."""
    return BusyEcho(step_s=0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """Scale up and down, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often to go to zero and back")
    parser.add_argument("--quick", action="store_true", help="one round, nothing written")
    args = parser.parse_args(argv)
    control = connect()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    apps = applications()
    control.apply(apps, host="127.0.0.1", port=port)
    control.wait_running(apps, timeout_s=60)
    people = People(f"http://127.0.0.1:{port}/v1/completions")
    ups, downs, cold, warm = [], [], [], []
    for _ in range(1 if args.quick else args.rounds):
        with people.asking(PEOPLE):
            ups.append(until(control, 2))
        downs.append(until(control, 0))
        cold.append(people.ask())
        warm.append(statistics.median(people.ask() for _ in range(5)))
    control.apply(dict.fromkeys(apps), host="127.0.0.1", port=port)
    rows = [
        ["a second replica runs after", f"{statistics.median(ups):.1f} s", f"{max(ups):.1f} s"],
        ["no replica runs after", f"{statistics.median(downs):.1f} s", f"{max(downs):.1f} s"],
        ["first token from zero", f"{statistics.median(cold):.2f} s", f"{max(cold):.2f} s"],
        ["first token, warm", f"{statistics.median(warm):.3f} s", f"{max(warm):.3f} s"],
    ]
    print(f"{headline()}\n{console.table(['', 'median', 'most'], rows)}")
    print(f"{people.answered} requests, {len(people.failures)} failed {people.failures[:3]}")
    if not args.quick:
        body = {
            "versions": versions("ray"),
            "downscale_delay_s": DOWN_AFTER_S,
            "up_s": ups,
            "down_s": downs,
            "first_token_from_zero_s": cold,
            "first_token_warm_s": warm,
            "requests": people.answered,
            "failures": people.failures,
        }
        print(write_result("serving-scaling", str(__doc__).splitlines()[0], body))
    return 1 if people.failures else 0


def connect() -> ServeControl:
    """A local cluster of two cores."""
    import ray

    cluster.connect(num_cpus=2)
    return ServeControl(f"http://{ray.init(ignore_reinit_error=True, log_to_driver=False).dashboard_url}")


def applications() -> dict[str, dict[str, Any]]:
    """A gateway, and a model that scales."""
    here = Path(__file__).parent
    model = {
        "uri": "",
        "digest": "a" * 64,
        "quantization": "none",
        "engine": "serving_scaling:slow_echo",
        "num_cpus": 0.5,
        "min_replicas": 0,
        "max_replicas": 2,
        "requests_per_replica": 100,  # so that only the waiting tokens ask for more
        "ttft_objective_s": 2.0,
        "downscale_delay_s": DOWN_AFTER_S,
    }
    split = {"model": "echo", "variants": [{"name": "stable", "app": APP, "digest": "a" * 64, "engine": "echo"}]}
    return {
        APP: {
            "name": APP,
            "route_prefix": None,
            "import_path": "llmray.deployment:model",
            "args": model,
            "runtime_env": {"env_vars": {"PYTHONPATH": f"{here.parent}:{here}"}},
        },
        "gateway": {
            "name": "gateway",
            "route_prefix": "/",
            "import_path": "llmray.deployment:gateway",
            "args": {"registry_app": None},
            "deployments": [{"name": "Gateway", "user_config": split}],
            "runtime_env": {"env_vars": {"PYTHONPATH": str(here.parent)}},
        },
    }


def until(control: ServeControl, replicas: int) -> float:
    """Seconds until so many replicas of the model run."""
    began = time.monotonic()
    wait_for(lambda: len(control.replica_ids()[APP]) == replicas, timeout_s=90, what=f"{replicas} replicas", poll_s=0.2)
    return time.monotonic() - began


class People:
    """Clients that stream; what fails is kept."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._url = url
        self._lock = threading.Lock()

    def ask(self) -> float:
        """One answer to its end; seconds to its first token."""
        body: Mapping[str, Any] = {"model": "echo", "prompt": WORDS, "stream": True}
        began, first, lines = time.perf_counter(), 0.0, []
        try:
            with httpx.stream("POST", self._url, json=body, timeout=120) as response:
                for line in response.iter_lines():
                    first = first or time.perf_counter() - began
                    lines.append(line)
            said = (
                None
                if response.status_code == 200 and "data: [DONE]" in lines
                else f"{response.status_code} {lines[-1:]}"
            )
        except httpx.HTTPError as error:
            said = f"{type(error).__name__}: {error}"
        with self._lock:
            self.answered += 1
            if said is not None:
                self.failures.append(said)
        return first

    def asking(self, people: int) -> "_Crowd":
        """So many of them, each without pause."""
        return _Crowd(self, people)


class _Crowd:
    def __init__(self, people: People, size: int) -> None:
        self._people, self._size = people, size
        self._stop = threading.Event()

    def __enter__(self) -> None:
        self._pool = ThreadPoolExecutor(self._size)
        for _ in range(self._size):
            self._pool.submit(self._ask_on)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _ask_on(self) -> None:
        while not self._stop.is_set():
            self._people.ask()


if __name__ == "__main__":
    sys.exit(main())
