"""Claim: a bad release (errors, garbage) is rolled back within 30 s with at most 5% of the traffic exposed, and at most 1 good
release in 100 is rolled back.

First the policy alone, on simulated traffic: good releases (the same model again, and one that is somewhat slower and
longer) at several sizes of step, then bad ones: how long until they are found, and how many people met them. Then the whole on
Ray: a good echo engine serves 20 requests a second, and a planted bad one is rolled out beside it.

Peer: Fisher's exact test of the errors at p < 0.01 at each look, as the policy was before; it sees errors alone, and
looks as often. It is run on the same good releases.

    python benchmarks/serving_rollback.py [--quick]
"""

import argparse
import os
import socket
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import headline, versions, write_result

from llmray import console
from llmray.serve.rollout import Advance, RollBack, RolloutPolicy, RolloutState, decide
from llmray.serve.tally import Shape, Tally

MOST_FALSE, MOST_S, MOST_EXPOSED = 0.01, 30.0, 0.05
PER_S, POLL_S = 20.0, 0.5
STEPS = (2.5, 25.0, 100.0)
"""The first step is what a bad release is exposed at, give or take chance: half of what is allowed."""
USUAL = {
    "refused": 0.02,
    "left": 0.02,
    "errors": 0.01,
    "slower": 1.0,
    "longer": 1.0,
    "empty": 0.0,
    "compressed": 0.55,
    "entropy": 4.2,
}
GOOD: Mapping[str, Mapping[str, float]] = {"the same": {}, "slower, longer": {"slower": 1.3, "longer": 1.3}}
BAD: Mapping[str, Mapping[str, float]] = {
    "all are refused": {"refused": 1.0},
    "nobody waits so long": {"left": 1.0},
    "all fail": {"errors": 1.0},
    "a third fail": {"errors": 0.33},
    "noise": {"compressed": 0.8, "entropy": 5.6},
    "loops": {"compressed": 0.2, "entropy": 2.8},
    "empty": {"empty": 1.0},
    "four times slower": {"slower": 4.0},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, roll out on Ray, print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", type=int, default=1000, help="good releases; a tenth as many of each bad kind")
    parser.add_argument("--quick", action="store_true", help="60 good releases")
    parser.add_argument("--only", choices=["simulated", "live"])
    args = parser.parse_args(argv)
    print(headline())
    body: dict[str, Any] = {"versions": versions("ray", "scipy"), "requests_per_s": PER_S, "steps": STEPS}
    if args.only != "live":
        body |= simulated(60 if args.quick else args.releases)
    if args.only != "simulated":
        body["live"] = live()
    if not args.quick:
        print(write_result("serving-rollback", " ".join((__doc__ or "").split("\n\n")[0].split()), body).name)
    return 0


def simulated(releases: int) -> dict[str, Any]:
    """False rollbacks of good releases; delay and exposure of bad ones."""
    from scipy.stats import beta

    good, fisher = 0, 0
    for number in range(releases):
        policy = RolloutPolicy(steps=STEPS, min_requests=(20, 100, 300)[number % 3])
        kind = list(GOOD.values())[number % 2]
        outcome = simulate(USUAL | kind, policy, seed=number)
        good += outcome.rolled_back
        fisher += outcome.fisher
    bounds = {
        name: [float(beta.ppf(0.025, k, releases - k + 1)) if k else 0.0, float(beta.ppf(0.975, k + 1, releases - k))]
        for name, k in (("llmray", good), ("fisher", fisher))
    }
    rows = [
        [name, k, releases, f"{k / releases:.2%}", f"{bounds[key][0]:.2%} to {bounds[key][1]:.2%}"]
        for name, key, k in (("llmray", "llmray", good), ("Fisher at each look", "fisher", fisher))
    ]
    print(console.table(["good releases", "rolled back", "of", "share", "95%"], rows))
    found: dict[str, Any] = {}
    for name, kind in BAD.items():
        runs = [
            simulate(USUAL | kind, RolloutPolicy(steps=STEPS), seed=10**6 + n) for n in range(max(10, releases // 10))
        ]
        back = [run for run in runs if run.rolled_back]
        found[name] = {
            "runs": len(runs),
            "rolled_back": len(back),
            "seconds_median": round(statistics.median(run.seconds for run in back), 1),
            "seconds_p95": round(float(np.quantile([run.seconds for run in back], 0.95)), 1),
            "exposed_mean": round(statistics.fmean(run.exposed for run in back), 4),
            "exposed_p95": round(float(np.quantile([run.exposed for run in back], 0.95)), 4),
        }
    print(
        console.table(
            ["bad releases", *next(iter(found.values()))], [[name, *one.values()] for name, one in found.items()]
        )
    )
    return {
        "good": {"releases": releases, "rolled_back": good, "interval_95": bounds["llmray"]},
        "fisher_at_each_look": {"rolled_back": fisher, "interval_95": bounds["fisher"]},
        "bad": found,
        "met": good <= MOST_FALSE * releases,
    }


class Outcome:
    """What became of one simulated release."""

    def __init__(self) -> None:
        self.rolled_back = False
        self.fisher = False
        """Whether the peer would have gone back at one of the looks."""
        self.seconds = 0.0
        self.exposed = 0.0


def simulate(kind: Mapping[str, float], policy: RolloutPolicy, *, seed: int) -> Outcome:
    """One release on traffic that comes at random, looked at every half second until it is in or out."""
    draw = np.random.default_rng(seed)
    outcome, now, step, at_start = Outcome(), 0.0, 0, 0
    tallies = {"stable": Tally(), "canary": Tally()}
    open_: list[tuple[float, str, dict[str, Any]]] = []
    while True:
        weight = policy.steps[step]
        for _ in range(draw.poisson(PER_S * POLL_S)):
            app = "canary" if draw.random() * 100 < weight else "stable"
            tallies[app].begin()
            end = _answer(draw, kind if app == "canary" else USUAL)
            open_.append((now + end["latency_s"], app, end))
        now += POLL_S
        for _, app, end in (one for one in open_ if one[0] <= now):
            tallies[app].end(**end)
        open_ = [one for one in open_ if one[0] > now]
        canary, stable = tallies["canary"], tallies["stable"]
        outcome.fisher |= _fisher(canary, stable) < policy.significance
        verdict = decide(RolloutState(stable=stable, canary=canary, at_step=canary.ended - at_start), policy)
        if isinstance(verdict, Advance):
            step, at_start = step + 1, canary.ended
        if isinstance(verdict, RollBack) or step == len(policy.steps):
            outcome.rolled_back = isinstance(verdict, RollBack)
            outcome.seconds = now
            outcome.exposed = canary.requests / (canary.requests + stable.requests)
            return outcome


def _answer(draw: np.random.Generator, kind: Mapping[str, float]) -> dict[str, Any]:
    if draw.random() < kind["refused"]:
        return {"outcome": "refused", "latency_s": 0.01}
    if draw.random() < kind["left"]:
        return {"outcome": "cancelled", "latency_s": 5.0}
    if draw.random() < kind["errors"]:
        return {"outcome": "error", "latency_s": 0.05}
    if draw.random() < kind["empty"]:
        return {"outcome": "stop", "latency_s": 0.2}
    tokens = max(1, round(kind["longer"] * draw.lognormal(3.5, 0.7)))
    ttft_s = kind["slower"] * draw.lognormal(-1.5, 0.5)
    shape = Shape(
        max(0.01, kind["compressed"] + draw.normal(0, 0.05)), max(0.0, kind["entropy"] + draw.normal(0, 0.15))
    )
    return {
        "outcome": "length" if tokens > 150 else "stop",
        "latency_s": ttft_s + kind["slower"] * draw.lognormal(-3.5, 0.2) * tokens,
        "ttft_s": ttft_s,
        "tokens": tokens,
        "shape": shape,
    }


def _fisher(canary: Tally, stable: Tally) -> float:
    from scipy.stats import hypergeom

    if not canary.errors:
        return 1.0
    requests, errors = canary.requests + stable.requests, canary.errors + stable.errors
    return float(hypergeom.sf(canary.errors - 1, requests, errors, canary.requests))


def live() -> dict[str, Any]:
    """Roll bad engines out beside a good one on Ray, and a good one at the end."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    from serving_releases import Crowd, Watched, release

    from llmray import cluster, deployment

    cluster.connect(num_cpus=4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = Watched(deployment._control(), port=port)
    service.serve(release("quick", "a"))
    found: dict[str, Any] = {}
    crowd = Crowd(f"{service.url}/v1")
    crowd.ask_at_rate(per_s=PER_S)
    with crowd:
        for engine, letter in (("failing", "b"), ("garbage", "c"), ("looping", "d"), ("quick", "e")):
            service.splits.clear()
            source, before = release(engine, letter), service.tally(release("quick", "a").app).requests
            began = time.monotonic()
            result = service.rollout(
                source,
                RolloutPolicy(steps=STEPS, ignore_alarms=True),
                drive=None,
                timeout_s=120,
                step_timeout_s=300,
                poll_s=POLL_S,
            )
            exposed = service.tally(source.app).requests
            total = exposed + service.tally(release("quick", "a").app).requests - before
            found[engine] = {
                "status": result.status,
                "reason": result.reason,
                "seconds": round(service.splits[-1][0] - service.splits[0][0], 1),
                "seconds_from_the_start": round(service.splits[-1][0] - began, 1),
                "exposed": round(exposed / total, 4),
                "requests": total,
            }
            print(engine, found[engine], flush=True)
    service.shutdown(timeout_s=60)
    return found


if __name__ == "__main__":
    sys.exit(main())
