"""Claim: SIGKILL of a worker, and of the driver, at 20 random steps each: the float32 losses are bit-identical to an undisturbed run, no row is repeated or lost, and the next step comes within 20 s of a worker's death; 2, then 1, then 2 workers: within 1e-5.

One run trains undisturbed. A second loses a worker (SIGKILL, either rank) whenever it reaches one of 20 steps drawn at random;
a third loses its driver so, and the same call is made again. What is compared at every step: loss, gradient norm, learning
rate, place in the epoch and tokens so far; and at the end the digest of the model's files. A fourth run is told
to end (SIGTERM) twice in mid-run, and goes on with half the workers, then with all of them, under ZeRO 0, 2 and 3.
All of them share a cluster of two cores that outlives the drivers.

    python benchmarks/training_faults.py
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from machine import headline, tree, versions, write_result
from training_drive import MARK
from training_runs import llama, python_docs

from llmray import cluster, console
from llmray.train.base_model import BaseModelSpec
from llmray.train.run_folder import METRICS, read_metrics
from llmray.train.spec import TrainSpec

EXACT = ("step", "loss", "grad_norm", "lr", "epoch", "tokens")
MOST_S, CLOSE = 20.0, 1e-5
SHAPE = BaseModelSpec(vocab_size=1024, hidden_size=192, intermediate_size=512, num_layers=2, num_heads=3)
POLL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What a run left."""

    digest: str
    lines: list[dict[str, Any]]
    began: float
    seconds: Mapping[str, float]
    """Of the last group of workers, by phase; its `startup` counts from `began`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, kill, compare, print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args(argv)
    cluster.connect(num_cpus=2)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = Path(scratch)
        spec = spec_of(folder, steps=args.steps)
        undisturbed = Training(spec, folder / "undisturbed").finish()
        steps = sorted(random.Random(0).sample(range(2, args.steps - 1), args.kills))
        workers, deaths = losing_workers(Training(spec, folder / "workers"), steps)
        driver = losing_drivers(spec, folder / "driver", steps)
        resized = {f"zero{zero}": resizing(replace(spec, zero=zero), folder) for zero in (0, 2, 3)}
    same = {name: differing(undisturbed, run) for name, run in (("worker", workers), ("driver", driver))}
    show(deaths, same, resized)
    body = {
        "versions": versions("ray", "torch", "deepspeed"),
        "steps": args.steps,
        "killed_at": steps,
        "differing_from_undisturbed": same,
        "seconds_from_death_to_next_step": [round(death["recovered"] - death["died"], 2) for death in deaths],
        "resized_2_1_2": resized,
        "met": not any(same.values())
        and all(death["recovered"] - death["died"] <= MOST_S for death in deaths)
        and all(found["largest_difference"] <= CLOSE and not found["rows_differ_at"] for found in resized.values()),
    }
    print(write_result("training-faults", " ".join(__doc__.split("\n\n")[0].split()), body).name)
    return 0


def spec_of(folder: Path, *, steps: int) -> TrainSpec:
    """A training of a small Llama on two workers with a checkpoint every ten steps."""
    data = python_docs(folder, every=4)
    return TrainSpec(
        model=llama(folder, data, SHAPE).uri, data=data.uri, max_length=128, micro_batch=4, max_steps=steps, lr=1e-3,
        checkpoint_every=10, eval_rows=32,
    )  # fmt: skip


class Training:
    """A run in a process of its own."""

    def __init__(self, spec: TrainSpec, run_dir: Path) -> None:
        run_dir.parent.mkdir(exist_ok=True)
        settings = run_dir.with_suffix(".json")
        settings.write_text(json.dumps(asdict(spec)))
        self.spec, self.run_dir, self.metrics = spec, run_dir, run_dir / METRICS
        self._log = run_dir.with_suffix(".log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(  # noqa: S603
                [
                    *(sys.executable, str(Path(__file__).with_name("training_drive.py")), str(settings)),
                    *("--run-dir", str(run_dir), "--root", str(run_dir.parent / "artifacts")),
                    *("--max-failures", "1000"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RAY_ADDRESS": address(), "OMP_NUM_THREADS": "1"},
            )

    def reach(self, step: int) -> None:
        """Wait until a group of workers has written this step."""
        while self.steps() < step:
            self.must_run()
            time.sleep(POLL_S)

    def steps(self) -> int:
        """Lines of metrics."""
        return self.metrics.read_bytes().count(b"\n") if self.metrics.exists() else 0

    def end(self, number: signal.Signals) -> int:
        """Send the driver a signal and wait for its end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait()

    def finish(self) -> Finished:
        """Wait for the end."""
        code = self.process.wait()
        said = self._log.read_text()
        if code:
            raise RuntimeError(f"{self.run_dir.name} ended with {code}: {said[-4000:]}")
        line = next(line for line in said.splitlines() if line.startswith(MARK))
        found = json.loads(line.removeprefix(MARK))
        return Finished(
            digest=found["digest"],
            lines=read_metrics(self.metrics),
            began=found["began"],
            seconds=found["seconds"],
        )

    def must_run(self) -> None:
        """Raise where the driver ended too early."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.run_dir.name} ended at step {self.steps()}: {self._log.read_text()[-4000:]}")


def losing_workers(training: Training, steps: Sequence[int]) -> tuple[Finished, list[dict[str, float]]]:
    """The run, and for each death the step, when it `died` and when the next step was there (`recovered`)."""
    dice, deaths = random.Random(1), []
    for step in steps:
        training.reach(step)
        file = training.metrics.stat().st_ino
        victim = dice.choice(train_workers())
        died = time.time()
        victim.kill()
        # The file is written anew with the steps of the checkpoint, whose number is a multiple, before it grows.
        while training.metrics.stat().st_ino == file or training.steps() % training.spec.checkpoint_every == 0:
            training.must_run()
            time.sleep(POLL_S)
        deaths.append({"step": step, "died": died, "recovered": time.time()})
        print(f"worker killed at step {step}: next step after {time.time() - died:.1f} s", file=sys.stderr)
    return training.finish(), deaths


def losing_drivers(spec: TrainSpec, run_dir: Path, steps: Sequence[int]) -> Finished:
    """The run whose driver is killed at each of the steps, and which is then called again."""
    for step in steps:
        training = Training(spec, run_dir)
        training.reach(step)
        code = training.end(signal.SIGKILL)
        print(f"driver killed at step {step}: {code}", file=sys.stderr)
    return Training(spec, run_dir).finish()


def resizing(spec: TrainSpec, folder: Path) -> dict[str, Any]:
    """A run on 2, then 1, then 2 workers against one on 2."""
    straight = Training(spec, folder / f"straight{spec.zero}").finish()
    run_dir, third = folder / f"resized{spec.zero}", spec.max_steps // 3
    half = replace(spec, num_workers=1, accumulation=2)
    told_at = []
    for number, part in enumerate((spec, half), 1):
        training = Training(part, run_dir)
        training.reach(number * third)
        code = training.end(signal.SIGTERM)
        if code != 75:
            raise RuntimeError(f"told to end, {run_dir.name} ended with {code}")
        told_at.append(training.steps())
    lines = Training(spec, run_dir).finish().lines
    pairs = list(zip(straight.lines, lines, strict=True))
    return {
        "ended_at": told_at,
        "largest_difference": max(abs(one["loss"] - two["loss"]) / abs(one["loss"]) for one, two in pairs),
        "rows_differ_at": [one["step"] for one, two in pairs if any(one[k] != two[k] for k in ("epoch", "tokens"))],
    }


def differing(undisturbed: Finished, run: Finished) -> list[str]:
    """Steps and figures that are not the same to the last bit."""
    found = [
        f"step {one['step']}: {name}"
        for one, two in zip(undisturbed.lines, run.lines, strict=True)
        for name in EXACT
        if one[name] != two[name]
    ]
    return found + ([] if undisturbed.digest == run.digest else ["digest of the model"])


def train_workers() -> list[psutil.Process]:
    """The workers of Ray Train below this process."""
    found = []
    for pid in tree(os.getpid()):
        try:
            process = psutil.Process(pid)
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def address() -> str:
    """Of the cluster of this process."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def show(
    deaths: Sequence[Mapping[str, float]],
    same: Mapping[str, Sequence[str]],
    resized: Mapping[str, Mapping[str, Any]],
) -> None:
    """Print what was found."""
    took = sorted(death["recovered"] - death["died"] for death in deaths)
    print(headline())
    for name, differences in same.items():
        print(f"{name} killed at {len(deaths)} steps: {', '.join(differences[:3]) or 'every step the same to the bit'}")
    print(
        f"from a worker's death to the next step: median {median(took):.1f} s, least {took[0]:.1f}, most {took[-1]:.1f}"
    )
    rows = [
        [name, f"{found['ended_at']}", f"{found['largest_difference']:.1e}", str(len(found["rows_differ_at"]))]
        for name, found in resized.items()
    ]
    print(console.table(["2, 1, 2 workers", "ended at steps", "largest difference", "steps with other rows"], rows))


if __name__ == "__main__":
    sys.exit(main())
