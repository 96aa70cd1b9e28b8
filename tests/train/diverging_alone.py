"""Trainings in which something goes wrong, without Ray: each rank a process of its own that ends with the run.

Reads the URI of a snapshot and a folder, and prints what came of each run as JSON, by name.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import transformers
from alone import odd_token, poisoned
from tiny_training import base
from trouble import Trouble

from llmray import artifact
from llmray.errors import InputError, UnavailableError
from llmray.train import loop
from llmray.train.divergence import DivergedError
from llmray.train.engine import Place
from llmray.train.hooks import Alone
from llmray.train.spec import TrainSpec
from llmray.train.template import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Job:
    spec: TrainSpec
    trouble: Trouble = field(default_factory=Trouble)
    resume_from: Path | None = None
    deadline: float | None = None
    weights_lost: bool = False
    copies: bool = True
    """Whether memory has room for the copy of a checkpoint."""
    hooks: "type[Folder]" = field(default_factory=lambda: Folder)
    stop_after: int | None = None
    """Lines of metrics of rank 0 after which it is told to stop."""


class Folder(Alone):
    """Can be told to stop, and has the checkpoints of the run that goes on."""

    def __init__(self, folder: Path, job: Job) -> None:
        super().__init__(folder)
        self.stop_after = job.stop_after
        if job.resume_from is not None:
            self._bring(job.resume_from)

    def stop_wanted(self) -> bool:
        return len(self.lines) == self.stop_after

    def _bring(self, newest: Path) -> None:
        """The checkpoints of the run that goes on, up to its newest."""
        Path(self.checkpoints).mkdir(exist_ok=True)
        for old in newest.parent.iterdir():
            if int(old.name) <= int(newest.name):
                with suppress(FileExistsError):  # another rank was first
                    self.checkpoint_folder(int(old.name)).symlink_to(old)


def run_rank(job: Job, folder: Path, rank: int, answers: "SimpleQueue[tuple[int, dict[str, Any]]]") -> None:
    torch.set_num_threads(1)
    world_size = job.spec.num_workers
    if world_size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")
        store = torch.distributed.FileStore(str(folder / "store"), world_size)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    loop.load_model = job.trouble.around(loop.load_model)
    if job.weights_lost:
        loop.weights_are_lost = lambda _: rank == world_size - 1
    if not job.copies:
        loop.room_for_copy = lambda *_, **__: 0
    hooks = job.hooks(folder / "checkpoints", job)
    answer: dict[str, Any] = {}
    try:
        outcome = loop.run(
            job.spec,
            Place(rank=rank, world_size=world_size),
            hooks,
            resume_from=job.resume_from,
            export_to=folder / "export",
            keep_data_in=folder if world_size > 1 else None,
            deadline=job.deadline,
        )
        answer = {"outcome": asdict(outcome)}
    except DivergedError as error:
        answer = {"diverged": str(error)}
    except UnavailableError as error:
        answer = {"unavailable": str(error)}
    except InputError as error:
        answer = {"refused": str(error)}
    answers.put((rank, {**answer, "lines": hooks.lines, "saved": hooks.saved}))


def run(job: Job, folder: Path) -> dict[str, Any]:
    """What rank 0 says, and what the others do where it is something else."""
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    answers: SimpleQueue[tuple[int, dict[str, Any]]] = context.SimpleQueue()
    ranks = range(job.spec.num_workers)
    processes = [context.Process(target=run_rank, args=(job, folder, rank, answers)) for rank in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0 for _ in ranks], folder.name
    by_rank = dict(answers.get() for _ in ranks)
    errors = [[by_rank[rank].get(kind) for kind in ("diverged", "unavailable", "refused")] for rank in ranks]
    return {**by_rank[0], "all": [next(filter(None, of_rank), None) for of_rank in errors]}


def changed(folder: Path, model: artifact.Artifact, change: Callable[[Any], Any]) -> str:
    """The model after a change."""
    other = transformers.AutoModelForCausalLM.from_pretrained(model.uri)
    with torch.no_grad():
        change(other)
    other.save_pretrained(folder)
    load_tokenizer(model.uri).save_pretrained(folder)
    return str(folder)


def drop(model: Any, share: float) -> None:
    model.config.attention_dropout = share


def jobs(model: artifact.Artifact, data_uri: str, root: Path) -> Mapping[str, Job]:
    odd = odd_token(load_tokenizer(model.uri))
    plain = TrainSpec(
        model=model.uri, data=data_uri, num_workers=1, max_length=96, micro_batch=4, max_steps=3, lr=1e-2,
        clip_norm=0.5, checkpoint_every=1, eval_rows=0,
    )  # fmt: skip
    # Seven blocks, one a step and rank: the bad one comes late enough for a checkpoint to be there.
    one_by_one = replace(plain, micro_batch=1, max_steps=8, seed=1)
    apart = replace(one_by_one, num_workers=2)
    bad = Trouble(nan_gradient_of=odd)
    watched = replace(plain, max_steps=32, lr=1e-4, checkpoint_every=4, divergence_steps=5)
    rising = {step: 1.0 - (step - 20) for step in range(21, 33)}
    lost = changed(root / "nan", model, lambda model: model.model.norm.weight.fill_(torch.nan))
    dropping = replace(plain, model=changed(root / "dropping", model, lambda model: drop(model, 0.5)))
    made = {
        **{f"zero{zero}": Job(spec=replace(plain, zero=zero)) for zero in range(4)},
        **{f"bf16_zero{zero}": Job(spec=replace(plain, zero=zero, dtype="bfloat16")) for zero in (0, 2)},
        "two_zero3": Job(spec=replace(plain, zero=3, num_workers=2, micro_batch=2)),
        **{f"gradient_zero{zero}": Job(spec=replace(apart, zero=zero), trouble=bad) for zero in range(4)},
        "gradient_bf16": Job(spec=replace(one_by_one, dtype="bfloat16"), trouble=bad),
        "refused": Job(spec=replace(apart, too_long="refuse", max_length=20)),
        "row": Job(spec=replace(apart, zero=3, model=poisoned(root / "poisoned", model), checkpoint_every=8)),
        "weights": Job(spec=replace(plain, model=lost)),
        "spike": Job(spec=watched, trouble=Trouble(scale={20: -30.0})),
        "rise": Job(spec=watched, trouble=Trouble(scale=rising)),
        "dropout": Job(spec=dropping),
        "dropout_again": Job(spec=dropping, resume_from=root / "dropout" / "checkpoints" / "1"),
        "lost": Job(spec=replace(apart, zero=2), weights_lost=True),
    }
    newest = root / "rise" / "checkpoints" / "20"
    return {
        **made,
        "rise_again": Job(spec=watched, trouble=Trouble(scale=rising, passes=20), resume_from=newest),
        "rise_published": Job(spec=watched, resume_from=newest, deadline=0.0),
    }


def main(data_uri: str, root: Path) -> dict[str, Any]:
    model = base(root, artifact.load(data_uri))
    return {name: run(job, root / name) for name, job in jobs(model, data_uri, root).items()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
