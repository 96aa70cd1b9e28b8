"""Claim: what Ray costs a step (report, metrics, progress) is at most 1% of a step of 0.2 s.

One run on two workers through the same path as `llmray.train`, with clocks around each call that the loop makes to Ray and to
its metrics file: what rank 0 waits for in a step. Progress is followed by the driver, in a process of its own, which takes cores
from the workers where there are no spare ones; so its processor time while steps are taken is added, divided by the
cores. The rest of Ray's processes (store, dashboard and so on), which run whether or not anybody trains, stand beside it.

    python benchmarks/training_overhead.py
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from machine import headline, tree, versions, write_result
from training_runs import llama, python_docs

from llmray import cluster, console
from llmray.errors import LLMRayError
from llmray.train import frame, trainer
from llmray.train.base_model import BaseModelSpec
from llmray.train.spec import TrainSpec

MOST = 0.01
SHAPE = BaseModelSpec(vocab_size=2048, hidden_size=256, intermediate_size=704, num_layers=4, num_heads=4)
CLOCKS = "clocks.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args(argv)
    cluster.connect(num_cpus=2)
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        folder = Path(scratch)
        data = python_docs(folder, every=4)
        spec = TrainSpec(
            model=llama(folder, data, SHAPE).uri, data=data.uri, max_length=128, micro_batch=4, max_steps=args.steps,
            lr=1e-3, checkpoint_every=args.steps, eval_rows=0,
        )  # fmt: skip
        watch = ProcessorTime(from_step=5, to_step=args.steps - 5)
        work = replace(trainer.WORK, worker=timed_worker)
        frame.run(work, spec, run_dir=str(folder / "run"), root_uri=str(folder / "artifacts"), on_report=watch.step)
        clocks = json.loads((folder / "run" / CLOCKS).read_text())
    steps = clocks["ended"]
    step_s = statistics.median(after - before for before, after in pairwise(steps[5:]))
    waits = {name: sum(each[5:]) / len(each[5:]) for name, each in clocks["calls"].items()}
    taken = {name: seconds / watch.steps / (os.cpu_count() or 1) for name, seconds in watch.seconds.items()}
    costs = {
        "rank 0 writes its metrics": waits["metrics"],
        "rank 0 asks whether to stop or to leave": waits["stop_wanted"] + waits["leave_wanted"],
        "the driver follows": taken["driver"],
        "Ray Train's controller looks after its workers": taken["controller"],
    }
    share = sum(costs.values()) / step_s
    rows = [[name, f"{1e3 * cost:.3f}", f"{cost / step_s:.2%}"] for name, cost in costs.items()]
    rest = taken["the rest of Ray"]
    rows += [
        ["together", f"{1e3 * sum(costs.values()):.3f}", f"{share:.2%}"],
        ["(Ray's other processes, idle or not)", f"{1e3 * rest:.3f}", f"{rest / step_s:.2%}"],
    ]
    print(headline())
    print(console.table([f"of a step of {step_s:.3f} s", "ms", "share"], rows))
    body = {
        "versions": versions("ray", "torch", "deepspeed"),
        "step_s": round(step_s, 4),
        "costs_s": {name: round(cost, 6) for name, cost in costs.items()},
        "share": round(share, 5),
        "other_processes_of_ray_s": round(rest, 6),
        "met": share <= MOST,
    }
    print(write_result("training-overhead", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


def timed_worker(config: dict[str, Any]) -> dict[str, Any] | LLMRayError:
    """As `trainer` has it, with clocks around the hooks of rank 0."""
    calls: dict[str, list[float]] = {"metrics": [], "stop_wanted": [], "leave_wanted": []}
    ended: list[float] = []

    @contextmanager
    def clock(name: str) -> Any:
        began = time.perf_counter()
        yield
        now = time.perf_counter()
        calls[name].append(now - began)
        if name == "metrics":
            ended.append(now)

    class Timed(trainer._RayHooks):
        def metrics(self, line: dict[str, Any]) -> None:
            with clock("metrics"):
                super().metrics(line)

        def stop_wanted(self) -> bool:
            with clock("stop_wanted"):
                return super().stop_wanted()

        def leave_wanted(self) -> bool:
            with clock("leave_wanted"):
                return super().leave_wanted()

    trainer._RayHooks = Timed  # type: ignore[misc]
    outcome = trainer._worker(config)
    if ended:
        (Path(config["folder"]) / CLOCKS).write_text(json.dumps({"calls": calls, "ended": ended}))
    return outcome


class ProcessorTime:
    """Seconds of processor that the processes of this tree but the workers take between two steps."""

    def __init__(self, *, from_step: int, to_step: int) -> None:
        self._from, self._to = from_step, to_step
        self._before: dict[int, tuple[str, float]] = {}
        self.seconds: dict[str, float] = {}
        self.steps = to_step - from_step

    def step(self, line: Mapping[str, Any]) -> None:
        """For `on_report`."""
        if line["step"] == self._from:
            self._before = self._look()
        elif line["step"] == self._to:
            totals = {"driver": 0.0, "controller": 0.0, "the rest of Ray": 0.0}
            for pid, (name, seconds) in self._look().items():
                if name in totals:
                    totals[name] += seconds - self._before.get(pid, (name, 0.0))[1]
            self.seconds = totals

    @staticmethod
    def _look() -> dict[int, tuple[str, float]]:
        found = {}
        for pid in tree(os.getpid()):
            try:
                process = psutil.Process(pid)
                title, times = " ".join(process.cmdline()), process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            name = "the rest of Ray"
            if "RayTrainWorker" in title:
                name = "workers"
            elif pid == os.getpid():
                name = "driver"
            elif "TrainController" in title:
                name = "controller"
            found[pid] = (name, times.user + times.system)
        return found


if __name__ == "__main__":
    sys.exit(main())
