"""Claim: a training on two nodes that loses one in mid-run ends with the loss of an undisturbed run, bit for bit.

Nodes of one core each on this machine (`ray.cluster_utils.Cluster`, whose head has no core), a worker on each of two.
Killed: SIGKILL to all processes of a node, with a third one to go to. Drained: its end is announced, as a cloud
announces that it takes a machine back, and then it is killed; the checkpoint rhythm is so long that only the
announcement can have caused a checkpoint. Not replaced: killed, with `min_workers=1` and no third node; one worker
takes the same batches to losses that are equal to rounding. Told beside the losses is the time to the next new step.

    python benchmarks/training_node_death.py
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from machine import headline, versions, write_result

from llmray import console
from llmray.cluster import WORKER_ENV
from llmray.data.snapshot import write_snapshot
from llmray.train.base_model import BaseModelSpec, make_base
from llmray.train.run_folder import GROUP
from llmray.train.spec import TrainSpec
from llmray.train.trainer import train

BEGIN_AT = 8
"""Step after which the trouble begins."""
GRACE_S = 5.0
"""From the announcement to the kill."""


@dataclass(kw_only=True)
class Trouble:
    """What happens to a node while a run goes on; called with every line of metrics."""

    cluster: Any
    announced: bool = False
    begun: bool = False
    at: float | None = None
    """When the node died."""
    steps: list[tuple[int, float]] = field(default_factory=list)
    """New steps, and when they were told."""

    def __call__(self, line: dict[str, Any]) -> None:
        self.steps.append((line["step"], time.monotonic()))
        if self.begun or line["step"] < BEGIN_AT:
            return
        self.begun = True
        victim = next(node for node in self.cluster.worker_nodes if trains(node))
        if self.announced:
            announce(self.cluster.address, victim.node_id, GRACE_S)
            threading.Timer(GRACE_S, self._kill, [victim]).start()
        else:
            self._kill(victim)

    def _kill(self, victim: Any) -> None:
        self.cluster.remove_node(victim, allow_graceful=False)
        self.at = time.monotonic()

    @property
    def recovery_s(self) -> float | None:
        """From the death to the first step that nobody had taken before; what is told in its second was taken before."""
        at = self.at
        return None if at is None else next((told - at for _, told in self.steps if told > at + 1), None)


def trains(node: Any) -> bool:
    """Whether a training worker runs there."""
    [raylet] = node.all_processes["raylet"]
    return any("RayTrainWorker" in "".join(child.cmdline()) for child in psutil.Process(raylet.process.pid).children())


def announce(address: str, node_id: str, grace_s: float) -> None:
    """Tell the cluster that a node will be taken away, as `ray drain-node` does."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    accepted, why = GcsClient(address=address).drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the machine is taken back",
        int((time.time() + grace_s) * 1000),
    )
    assert accepted, why


def main(argv: Sequence[str] | None = None) -> int:
    """Train four times, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args(argv)
    for name, value in {**WORKER_ENV, "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="nodes-") as root:
        spec = _spec(root, args.steps)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        ray.init(address=cluster.address, log_to_driver=False)
        troubles = {
            "killed": (spec, Trouble(cluster=cluster)),
            "drained": (replace(spec, checkpoint_every=10**6), Trouble(cluster=cluster, announced=True)),
            "not replaced": (replace(spec, min_workers=1), Trouble(cluster=cluster)),
        }
        try:
            _fill(cluster, spec.num_workers)
            straight, found = _losses(spec, root, "undisturbed", lambda _: None), {}
            for name, (one, trouble) in troubles.items():
                _fill(cluster, 2 if one.min_workers else 3)
                found[name] = _losses(one, root, name, trouble)
        finally:
            ray.shutdown()
            cluster.shutdown()
    off = {
        name: max(abs(one - other) / other for one, other in zip(losses, straight, strict=True))
        for name, losses in found.items()
    }
    recovery = {name: trouble.recovery_s and round(trouble.recovery_s, 1) for name, (_, trouble) in troubles.items()}
    print(headline())
    print(
        console.table(
            ["node", "steps", "largest difference of a loss", "to the next new step, s"],
            [[name, str(len(found[name])), f"{off[name]:.1e}", f"{recovery[name] or 'none'}"] for name in found],
        )
    )
    body = {
        "versions": versions("ray", "deepspeed", "torch"),
        "steps": args.steps,
        "largest_relative_difference": off,
        "to_next_new_step_s": recovery,
        "announced_before_s": GRACE_S,
        "met": off["killed"] == off["drained"] == 0.0 and all(recovery.values()),
    }
    print(write_result("training-node-death", __doc__.split("\n\n")[0], body).name)
    return 0


def _fill(cluster: Any, count: int) -> None:
    while len(cluster.worker_nodes) < count:
        cluster.add_node(num_cpus=1)


def _spec(root: str, steps: int) -> TrainSpec:
    texts = [{"text": " ".join(str(number * step) for step in range(1, 80))} for number in range(1, 200)]
    data = write_snapshot(texts, source="numbers", root_uri=root)
    return TrainSpec(
        model=make_base(data.uri, BaseModelSpec(), root_uri=root).uri, data=data.uri, objective="pretrain",
        max_length=256, micro_batch=4, max_steps=steps, checkpoint_every=5, eval_rows=0,
    )  # fmt: skip


def _losses(spec: TrainSpec, root: str, name: str, on_report: Callable[[dict[str, Any]], None]) -> list[float]:
    run_dir = Path(root) / name
    done = train(spec, run_dir=str(run_dir), root_uri=root, on_report=on_report)
    print(name, sorted(found.name for found in (run_dir / GROUP).glob("step_*")), done.seconds)
    return [json.loads(line)["loss"] for line in Path(done.metrics_path).read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
