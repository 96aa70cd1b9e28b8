"""Runs that go on with other workers or another ZeRO stage, without Ray: each rank a process that ends with the run.

Reads the URI of a snapshot and a folder, and prints what came of each run as JSON, by name.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from diverging_alone import Folder, Job, run
from tiny_training import base
from trouble import Trouble

from llmray import artifact
from llmray.train.checkpoint import TAG, Progress
from llmray.train.engine import load_shape
from llmray.train.memory import checkpoint_bytes
from llmray.train.saver import Saver
from llmray.train.spec import TrainSpec


class Slow(Folder):
    """What rank 0 writes of the checkpoint of step 2 is held up until step 4 was taken."""

    def __init__(self, folder: Path, job: Job) -> None:
        super().__init__(folder, job)
        self._go, write = Event(), Saver._write

        def held(saver: Saver, folder: Path, progress: Progress, parts: list[Callable[[], None]]) -> None:
            if progress.step == 2 and saver._place.rank == 0:
                self._go.wait()
            write(saver, folder, progress, parts)

        Saver._write = held

    def metrics(self, line: dict[str, Any]) -> None:
        super().metrics({**line, "saved": list(self.saved)})
        if line["step"] == 4:
            self._go.set()


class Full(Folder):
    """The disk of rank 1 is full when the checkpoint of step 4 is written."""

    def checkpoint_folder(self, step: int) -> Path:
        here = super().checkpoint_folder(step)
        if step == 4:
            (here / TAG).mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                (here / TAG / "zero_pp_rank_1_mp_rank_00_optim_states.pt").symlink_to("/dev/full")
        return here


class Leaving(Folder):
    """After four steps rank 0 hears that its machine will be taken away."""

    def leave_wanted(self) -> bool:
        return len(self.lines) == 4


def chain(name: str, spec: TrainSpec, root: Path) -> dict[str, Job]:
    """Two workers undisturbed; from their checkpoint one alone, told to stop; from its checkpoint two again."""
    rarely = replace(spec, checkpoint_every=100)
    alone = replace(rarely, num_workers=1, accumulation=2)
    return {
        name: Job(spec=spec),
        f"{name}_alone": Job(spec=alone, resume_from=root / name / "checkpoints" / "2", stop_after=2),
        f"{name}_again": Job(spec=rarely, resume_from=root / f"{name}_alone" / "checkpoints" / "4"),
    }


def best(spec: TrainSpec, root: Path) -> dict[str, Job]:
    """From the fifth step on it learns the reverse; again from its second step, and from its end on one worker."""
    watched = replace(
        spec, max_steps=20, checkpoint_every=100, eval_rows=64, eval_every=2, patience=2, export="best", divergence_sigmas=0
    )  # fmt: skip
    reverse = dict.fromkeys(range(5, 21), -1.0)
    begun = root / "best" / "checkpoints"
    return {
        "best": Job(spec=watched, trouble=Trouble(scale=reverse)),
        "best_again": Job(spec=watched, trouble=Trouble(scale=reverse, passes=2), resume_from=begun / "2"),
        "best_alone": Job(spec=replace(watched, num_workers=1, accumulation=2), resume_from=begun / "8"),
    }


def jobs(model: artifact.Artifact, data_uri: str, root: Path) -> Mapping[str, Job]:
    spec = TrainSpec(
        model=model.uri, data=data_uri, num_workers=2, max_length=96, micro_batch=3, max_steps=6, lr=1e-2,
        weight_decay=0.3, lora_rank=4, checkpoint_every=2, eval_rows=0,
    )  # fmt: skip
    made: dict[str, Job] = {}
    for zero in (0, 2, 3):
        made |= chain(f"full{zero}", replace(spec, zero=zero), root)
    made |= chain("lora3", replace(spec, method="lora", zero=3), root)
    three = replace(spec, num_workers=3, micro_batch=2)
    for before, now in ((2, 3), (3, 2)):
        begun = root / f"full{before}" / "checkpoints" / "2"
        made[f"from{before}_three{now}"] = Job(spec=replace(three, zero=now), resume_from=begun)
    made["slow"] = Job(spec=replace(spec, zero=2), hooks=Slow)
    made["full"] = Job(spec=replace(spec, zero=2), hooks=Full)
    made["leaving"] = Job(spec=replace(spec, zero=2, checkpoint_every=100), hooks=Leaving, copies=False)
    made |= best(spec, root)
    made["same"] = Job(spec=replace(spec, zero=3), resume_from=root / "full3" / "checkpoints" / "4")
    return made


def main(data_uri: str, root: Path) -> dict[str, Any]:
    model = base(root, artifact.load(data_uri))
    wanted, shape = jobs(model, data_uri, root), load_shape(model.uri)
    made = {name: run(job, root / name) for name, job in wanted.items()}
    return {**made, "foreseen": {name: checkpoint_bytes(shape, job.spec, 2) for name, job in wanted.items()}}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
