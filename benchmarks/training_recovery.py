"""Claim: from a worker's death to the next step at most 20 s on 2 cores.

A worker of a run on Ray is killed (SIGKILL) at a few random steps, each time once the run is under way again. Where the time of the
last death goes comes from the clocks of the workers that went on: until they are there (the death is noticed, Ray Train's
group is torn down and put up again), their imports, the data, the engine with the checkpoint, and the first step.

    python benchmarks/training_recovery.py
"""

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine import headline, versions, write_result
from training_faults import MOST_S, Finished, Training, losing_workers, spec_of

from llmray import cluster, console


def main(argv: Sequence[str] | None = None) -> int:
    """Train, kill, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--kills", type=int, default=5)
    args = parser.parse_args(argv)
    cluster.connect(num_cpus=2)
    with tempfile.TemporaryDirectory(prefix="recovery-") as scratch:
        folder = Path(scratch)
        spec = spec_of(folder, steps=args.steps)
        steps = sorted(random.Random(2).sample(range(2, args.steps - 1), args.kills))
        run, deaths = losing_workers(Training(spec, folder / "run"), steps)
    phases = where_the_time_went(run, deaths[-1])
    took = sorted(death["recovered"] - death["died"] for death in deaths)
    print(headline())
    print(f"next step after {statistics.median(took):.1f} s in the median, {took[0]:.1f} to {took[-1]:.1f}")
    print(console.table(["the last death", "s"], [[name, f"{value:.2f}"] for name, value in phases.items()]))
    body = {
        "versions": versions("ray", "torch", "deepspeed"),
        "killed_at": steps,
        "seconds_from_death_to_next_step": [round(each, 2) for each in took],
        "where_the_last_went_s": phases,
        "met": took[-1] <= MOST_S,
    }
    print(write_result("training-recovery", __doc__.split("\n\n")[0], body).name)
    return 0


def where_the_time_went(run: Finished, death: Mapping[str, float]) -> dict[str, float]:
    """Phases between the last death and the next step, in seconds."""
    started = run.began + run.seconds["startup"]
    names = ("imports", "process_group", "data", "engine")
    phases = {"noticed, and workers replaced": started - death["died"], **{name: run.seconds[name] for name in names}}
    phases["first step"] = death["recovered"] - death["died"] - sum(phases.values())
    return {name: round(value, 2) for name, value in phases.items()}


if __name__ == "__main__":
    sys.exit(main())
