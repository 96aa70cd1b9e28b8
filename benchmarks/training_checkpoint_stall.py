"""Claim: a checkpoint of a model of 200M parameters holds training up for at most 2% of the time between checkpoints.

A Llama of 206M random weights is trained whole in float32, under ZeRO-2 on two workers of Ray Train, with a checkpoint
every few steps: once as llmray does it, and once as the documentation of DeepSpeed and Ray Train has it
(`save_checkpoint` into a folder, `ray.train.report` copies it), each with the same steps. Held up means that no step is
taken: the copy into memory, the wait for the checkpoint before, the report. What the writing behind a step takes from
it is told beside that: the steps between checkpoints over the median of those that nothing was written behind. The
share is of 50 steps, the default of `checkpoint_every`; the batch is small (256 tokens a step), so real steps are longer
and the share is smaller. The first checkpoint, which takes new memory, and the last, which is waited for, stand apart.

    python benchmarks/training_checkpoint_stall.py
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import MB, headline, versions, write_result

from llmray import cluster, console
from llmray.data.snapshot import write_snapshot
from llmray.train import frame, trainer
from llmray.train.base_model import BaseModelSpec, make_base
from llmray.train.run_folder import GROUP
from llmray.train.spec import TrainSpec

MOST = 0.02
SHAPE = BaseModelSpec(vocab_size=320, hidden_size=1024, intermediate_size=2816, num_layers=16, num_heads=16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stalls:
    """What the checkpoints of a run took."""

    step_s: float
    """Median of the steps behind which nothing was written."""
    first_s: float
    middle_s: tuple[float, ...]
    last_s: float
    """With the wait for its own writing, since the run is at its end."""
    slowed_s: float
    """What the steps between two checkpoints took longer than the median, together; mean of the intervals."""
    checkpoint_bytes: int
    steps: tuple[float, ...]
    """Seconds of all steps, without checkpoints."""

    @property
    def stall_s(self) -> float:
        """Of a checkpoint in the middle of a run."""
        return statistics.median(self.middle_s)


class Documented:
    """In the place of `llmray.train.saver.Saver`: DeepSpeed writes, Ray Train copies, and training waits for both."""

    def __init__(
        self, engine: Any, spec: TrainSpec, place: Any, _: Any, *, clock: Callable[[], float], **__: Any
    ) -> None:
        self._engine, self._spec, self._place, self._clock = engine, spec, place, clock
        self.seconds = 0.0

    def save(self, folder: Path, progress: Any, line: dict[str, Any]) -> None:
        import ray.train

        from llmray.train.checkpoint import TAG, write_progress

        began = self._clock()
        with tempfile.TemporaryDirectory(dir=folder.parent) as here:
            self._engine.save_checkpoint(here, tag=TAG, exclude_frozen_parameters=True)
            if self._place.rank == 0:
                write_progress(Path(here), progress, self._spec, world_size=self._place.world_size)
            ray.train.report(line, checkpoint=ray.train.Checkpoint.from_directory(here))
        self.seconds += self._clock() - began

    def look(self) -> None:
        """Nothing is under way."""

    finish = close = look


def documented_worker(config: dict[str, Any]) -> Any:
    """The worker of a training run, with checkpoints as they are documented."""
    from llmray.train import loop

    vars(loop)["Saver"] = Documented
    return trainer.WORK.worker(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Train twice, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--checkpoints", type=int, default=5, help="checkpoints in a run, three at least")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="stall-") as scratch:
        cluster.connect(num_cpus=2)
        spec = _spec(scratch, every=args.every, checkpoints=args.checkpoints)
        works = {"llmray": trainer.WORK, "as documented": replace(trainer.WORK, worker=documented_worker)}
        found = {name: _stalls(work, spec, Path(scratch) / name, scratch) for name, work in works.items()}
    default = TrainSpec().checkpoint_every
    shares = {name: one.stall_s / (default * one.step_s) for name, one in found.items()}
    rows = [
        [
            name,
            *(f"{value:.2f}" for value in (one.first_s, one.stall_s, one.last_s, one.slowed_s, one.step_s)),
            f"{one.checkpoint_bytes / MB:,.0f}",
            f"{shares[name]:.2%}",
        ]
        for name, one in found.items()
    ]
    print(headline())
    print(console.table(["checkpoints", "first s", "stall s", "last s", "slowed s", "step s", "MB", "share"], rows))
    ours, theirs = found["llmray"], found["as documented"]
    print(f"held up {theirs.stall_s / ours.stall_s:.1f} times as long as documented; share of {default} steps")
    body = {
        "versions": versions("ray", "deepspeed", "torch"),
        "parameters_in_layers": SHAPE.num_layers
        * SHAPE.hidden_size
        * (4 * SHAPE.hidden_size + 3 * SHAPE.intermediate_size),
        "checkpoint_every": default,
        "tokens_per_step": spec.global_batch * spec.max_length,
        "runs": {name: _brief(one, shares[name]) for name, one in found.items()},
        "met": shares["llmray"] <= MOST,
    }
    print(write_result("training-checkpoint-stall", __doc__.split("\n\n")[0], body).name)
    return 0


def _spec(root: str, *, every: int, checkpoints: int) -> TrainSpec:
    texts = [{"text": " ".join(str(number * step) for step in range(1, 80))} for number in range(1, 60)]
    data = write_snapshot(texts, source="numbers", root_uri=root)
    return TrainSpec(
        model=make_base(data.uri, SHAPE, root_uri=root).uri, data=data.uri, objective="pretrain", max_length=128,
        micro_batch=1, max_steps=every * checkpoints, checkpoint_every=every, eval_rows=0,
    )  # fmt: skip


def _stalls(work: frame.Work[TrainSpec], spec: TrainSpec, run_dir: Path, root: str) -> Stalls:
    done = frame.run(work, spec, run_dir=str(run_dir), root_uri=root)
    lines = [json.loads(text) for text in Path(done.metrics_path).read_text().splitlines()]
    cores = spec.num_workers * spec.cpus_per_worker
    ends = [0.0, *(line["core_seconds"] / cores for line in lines)]
    steps = tuple(round(end - begin, 3) for begin, end in itertools.pairwise(ends))
    # Stood still up to the first step after each checkpoint, and to the end.
    after = [line["checkpoint_s"] for line in lines[spec.checkpoint_every :: spec.checkpoint_every]]
    still = [0.0, *after, done.report["seconds"]["checkpoints"]]
    first, *middle, last = (end - begin for begin, end in itertools.pairwise(still))
    quiet = statistics.median(steps[1 : spec.checkpoint_every])  # the first one makes the optimizer's state
    between = steps[spec.checkpoint_every :]
    [newest, *_] = sorted((run_dir / GROUP).glob("*/llmray.json"), reverse=True)
    return Stalls(
        step_s=quiet,
        first_s=first,
        middle_s=tuple(round(one, 3) for one in middle),
        last_s=last,
        slowed_s=(sum(between) - quiet * len(between)) * spec.checkpoint_every / len(between),
        checkpoint_bytes=sum(file.stat().st_size for file in newest.parent.rglob("*") if file.is_file()),
        steps=steps,
    )


def _brief(one: Stalls, share: float) -> Mapping[str, Any]:
    return {
        "step_s": round(one.step_s, 3),
        "stall_s": {"first": round(one.first_s, 3), "middle": one.middle_s, "last": round(one.last_s, 3)},
        "slowed_s": round(one.slowed_s, 3),
        "checkpoint_bytes": one.checkpoint_bytes,
        "share": round(share, 5),
        "steps_s": one.steps,
    }


if __name__ == "__main__":
    sys.exit(main())
