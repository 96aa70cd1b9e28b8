"""What the benchmarks of training share: real data, models from nothing, and the loop on processes without Ray.

The data is the documentation of the Python that runs (`llmray.data.python_docs`), so they run anywhere. Each rank is a
process of its own, with one thread, that ends with the run: DeepSpeed's state outlives one.
"""

import gzip
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import orjson

from llmray.artifact import Artifact
from llmray.data.python_docs import write_python_docs
from llmray.data.snapshot import write_snapshot
from llmray.train.base_model import BaseModelSpec, make_base
from llmray.train.hooks import Alone
from llmray.train.spec import TrainSpec

VALIDATION = 0.1
PRELOADED = ["bitsandbytes", "deepspeed.runtime.zero.stage3", "llmray.train.loop", "peft", "trl"]
"""Imported once, not in each process."""


def python_docs(folder: Path, *, every: int = 1) -> Artifact:
    """A snapshot of the running Python's documentation below `folder`, a tenth of it held out.

    Args:
        every: keep one row in so many.
    """
    raw = folder / "raw"
    raw.mkdir(parents=True)
    write_python_docs(raw)
    records = [
        row
        for path in sorted(raw.glob("*.jsonl.gz"))
        for row in map(orjson.loads, gzip.decompress(path.read_bytes()).splitlines()[::every])
    ]
    return write_snapshot(
        records, source="python-docs", validation_fraction=VALIDATION, root_uri=str(folder / "artifacts")
    )


def llama(folder: Path, data: Artifact, shape: BaseModelSpec) -> Artifact:
    """A random Llama with a tokenizer learned from the data."""
    return make_base(data.uri, shape, root_uri=str(folder / "artifacts"))


def reshaped(folder: Path, base: Artifact, config: Any) -> str:
    """A random model of another architecture with the tokenizer of `base`; its folder.

    Args:
        config: transformers' config of the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.uri)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Stamped(Alone):
    """Notes when each step `ended`, by this process's clock."""

    def metrics(self, line: dict[str, Any]) -> None:
        super().metrics({**line, "ended": time.perf_counter()})


def pretrained(folder: Path, data: Artifact, shape: BaseModelSpec, *, steps: int, mix: float = 0.0) -> dict[str, Any]:
    """The outcome of pre-training a random Llama on the data; as `model`, the folder that it left."""
    spec = TrainSpec(
        model=llama(folder, data, shape).uri, data=data.uri, objective="pretrain", max_length=256, micro_batch=4,
        max_steps=steps, lr=2e-3, checkpoint_every=steps, mix=mix,
    )  # fmt: skip
    return {**alone(spec, folder / "pretrained"), "model": str(folder / "pretrained" / "export")}


def alone(spec: TrainSpec, folder: Path) -> dict[str, Any]:
    """Train without Ray, a process a rank; the outcome, and the `lines` of metrics.

    Raises:
        RuntimeError: a rank failed; the text is its traceback.
    """
    return next(on_ranks(_loop, spec.num_workers, folder, spec))


def _loop(rank: int, folder: Path, spec: TrainSpec) -> dict[str, Any]:
    from llmray.train import loop
    from llmray.train.engine import Place

    hooks = Alone(folder / "checkpoints")
    place = Place(rank=rank, world_size=spec.num_workers, ranks_on_node=spec.num_workers)
    outcome = loop.run(spec, place, hooks, resume_from=None, export_to=folder / "export")
    return {**asdict(outcome), "lines": hooks.lines}


def on_ranks(work: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> Iterator[Any]:
    """What `work(rank, folder, *arguments)` returns on each rank of a gloo process group, rank 0 first.

    Raises:
        RuntimeError: a rank failed; the text is its traceback.
    """
    folder.mkdir(parents=True)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    answers: SimpleQueue[tuple[int, Any, str]] = context.SimpleQueue()
    ranks = range(world_size)
    processes = [
        context.Process(target=_rank, args=(answers, (rank, world_size), work, folder, arguments)) for rank in ranks
    ]
    for process in processes:
        process.start()
    by_rank: dict[int, Any] = {}
    try:
        while len(by_rank) < world_size:
            rank, answer, error = answers.get()
            if error:
                raise RuntimeError(f"rank {rank} of {folder.name}: {error}")
            by_rank[rank] = answer
    finally:
        for process in processes:
            if len(by_rank) < world_size:
                process.kill()
            process.join()
    return (by_rank[rank] for rank in ranks)


def _rank(
    answers: "SimpleQueue[tuple[int, Any, str]]",
    place: tuple[int, int],
    work: Callable[..., Any],
    folder: Path,
    arguments: tuple[Any, ...],
) -> None:
    rank, world_size = place
    try:
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
        )  # fmt: skip
        import torch

        torch.set_num_threads(1)
        store = torch.distributed.FileStore(str(folder / "store"), world_size)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        answers.put((rank, work(rank, folder, *arguments), ""))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
