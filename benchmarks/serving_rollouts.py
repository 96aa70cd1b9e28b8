"""Claim: no request fails or is cut short across 20 rollouts; where replicas are killed, at most 1% fail, each told so, none hanging.

An echo engine that takes half a second a word; a tenth of the requests are streams of 42 words, longer than 20 s; the rest is short.
The model is rolled out back and forth while people ask, and the client holds every answer's whole text against what it asked. With
`--kill` there are two replicas, and now and then one that serves is killed with `kill -9`. There is no peer: Serve alone splits no
traffic, and its own rolling update cuts streams at `graceful_shutdown_timeout_s` (20 s by default).

    python benchmarks/serving_rollouts.py [--kill] [--quick]
"""

import argparse
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import headline, versions, write_result

from llmray import console
from llmray.serve.rollout import RolloutPolicy
from llmray.serve.service import GATEWAY_APP

LONG, SHORT = 42, 2
"""Words of an answer; each takes half a second."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, roll out, kill, count; print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--requests", type=int, default=10_000, help="at least so many, a tenth of them long streams")
    parser.add_argument("--people", type=int, default=60, help="two thirds of whom read long streams")
    parser.add_argument("--kill", action="store_true", help="kill a replica every --kill-every seconds")
    parser.add_argument("--kill-every", type=float, default=120.0)
    parser.add_argument("--renew-gateway", action="store_true", help="replace the gateway's own replica under way too")
    parser.add_argument("--quick", action="store_true", help="two rollouts, 500 requests, a kill every 40 s")
    args = parser.parse_args(argv)
    if args.quick:
        args.rollouts, args.requests, args.people, args.kill_every = 2, 500, 30, 40.0
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    from serving_releases import Crowd, Watched, release

    from llmray import cluster, deployment

    print(headline())
    cluster.connect(num_cpus=4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = Watched(deployment._control(), port=port)
    sources = [release("slow", letter, num_replicas=2 if args.kill else 1) for letter in "ab"]
    service.serve(sources[0])
    crowd = Crowd(f"{service.url}/v1")
    crowd.ask_one_after_another(people=2 * args.people // 3, words=LONG, stream=True)
    crowd.ask_one_after_another(people=args.people // 6, words=SHORT, stream=False)
    crowd.ask_one_after_another(people=args.people // 6, words=SHORT, stream=True)
    policy = RolloutPolicy(steps=(50.0, 100.0), min_requests=5, ignore_alarms=True, max_error_rate=1.0)
    seconds: list[float] = []
    began = time.monotonic()
    with crowd, Killer(service, args.kill_every if args.kill else None) as killer:
        for number in range(args.rollouts):
            started = time.monotonic()
            result = service.rollout(
                sources[(number + 1) % 2], policy, drive=None, timeout_s=180, step_timeout_s=120, poll_s=0.5
            )
            assert result.status == "done", result.reason
            seconds.append(time.monotonic() - started)
        if args.renew_gateway:
            renew_gateway(service, port)
        while len(crowd.replies) < args.requests:
            time.sleep(1)
    took = time.monotonic() - began
    service.shutdown(timeout_s=60)
    return report(crowd, args, seconds, killer.killed, took)


def renew_gateway(service: Any, port: int) -> None:
    """Have Serve replace the gateway's replica, as other code or options do."""
    app = dict(service.control.applications()[GATEWAY_APP])
    before = service.control.replica_ids()[GATEWAY_APP]
    app["args"] = {**app["args"], "num_cpus": 0.25}
    service.control.apply({GATEWAY_APP: app}, host="127.0.0.1", port=port)
    began = time.monotonic()
    while not (now := service.control.replica_ids().get(GATEWAY_APP)) or now & before:
        time.sleep(0.5)
    print(f"the gateway's replica was replaced within {time.monotonic() - began:.1f} s")


def report(crowd: Any, args: argparse.Namespace, seconds: Sequence[float], killed: int, took: float) -> int:
    """The table and the result."""
    outcomes, long = crowd.outcomes(), [reply for reply in crowd.replies if reply.words == LONG]
    failed = len(crowd.replies) - outcomes["whole"]
    figures = {
        "requests": len(crowd.replies),
        "long_streams": len(long),
        "long_streams_over_20_s": sum(reply.seconds > 20 for reply in long),
        "rollouts": len(seconds),
        "replicas_killed": killed,
        "seconds": round(took, 1),
        "seconds_a_rollout": round(sum(seconds) / len(seconds), 1),
        **{name: outcomes[name] for name in ("whole", "told", "cut", "wrong", "hanging")},
        "failed_share": round(failed / len(crowd.replies), 5),
    }
    print(console.table(["", "figure"], [[name, value] for name, value in figures.items()]))
    errors = Counter(reply.error for reply in crowd.replies if reply.error).most_common(8)
    for error, count in errors:
        print(f"{count:5} x {error}")
    met = failed <= 0.01 * len(crowd.replies) and failed == outcomes["told"] if args.kill else failed == 0
    body = {"versions": versions("ray", "aiohttp"), **figures, "errors": errors, "met": met}
    if not args.quick:
        name = "serving-rollouts-killed" if args.kill else "serving-rollouts"
        print(write_result(name, " ".join((__doc__ or "").split("\n\n")[0].split()), body).name)
    return 0


class Killer:
    """Kills a replica of a model that serves, every so often."""

    def __init__(self, service: Any, every_s: float | None) -> None:
        self.killed = 0
        self._service = service
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        choice = random.Random(0)
        while self._every_s is not None and not self._stop.wait(self._every_s):
            apps = self._service.control.details()["applications"]
            pids = [
                replica["pid"]
                for name, app in apps.items()
                if name != GATEWAY_APP
                for deployment in app["deployments"].values()
                for replica in deployment["replicas"]
                if replica["state"] == "RUNNING" and replica["pid"]
            ]
            if pids:
                os.kill(choice.choice(sorted(pids)), signal.SIGKILL)
                self.killed += 1


if __name__ == "__main__":
    sys.exit(main())
