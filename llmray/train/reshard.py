"""Load a checkpoint into an engine that is sharded in another way: another number of workers, another ZeRO stage.

DeepSpeed loads its shards only where they were written by as many ranks. Its universal checkpoint holds every weight
and its AdamW moments whole, by name, and any of the stages 1 to 3 reads it; rank 0 writes one into a scratch folder,
which is gone afterwards. Between stages 2 and 3 the two dialects of it are bridged here. What its readers get wrong is
put right: stage 3 gives all groups the options of the first, and all shards one step counter, which AdamW then raises
once a shard. Rejected: gathering whole weights at every save, which costs each checkpoint what only a resize needs.
"""

import contextlib
import io
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal

from llmray.errors import LLMRayError
from llmray.train.engine import Place, any_rank

_WEIGHTS, _STEP = "fp32.pt", "step.pt"
_OPTIONS = "optimizer_state.pt"
_HEAD, _HEAD_3 = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"
"""What else was saved, as stages 1 and 2 call it, and as stage 3 does."""


def restore_resharded(shards: Path, engine: Any, place: Place, *, stages: tuple[int, int], scratch: Path) -> None:
    """Load what other ranks, or another of the stages 1 to 3, have written; every rank must call it.

    Args:
        shards: the folder of DeepSpeed's files.
        stages: that of the shards, and that of the engine.
        scratch: a folder that every rank sees; made, and removed.

    Raises:
        LLMRayError: rank 0 could not convert the shards; the cause is in its log.
    """
    with _converted(shards, place, stages, scratch), _universal(engine), _own_options(engine):
        path, _ = engine.load_checkpoint(str(scratch), tag=shards.name, load_module_strict=False)
        assert path is not None, f"no universal checkpoint in {scratch}"


@contextlib.contextmanager
def _converted(shards: Path, place: Place, stages: tuple[int, int], scratch: Path) -> Iterator[None]:
    failure: Exception | None = None
    if place.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            _convert(shards, scratch / shards.name, stages)
        except Exception as error:  # the others wait: they must hear of it
            failure = error
    try:
        if any_rank(failure is not None, place):
            raise LLMRayError(
                f"the checkpoint in {shards} could not be converted for another number of workers: go on with "
                f"those that wrote it"
            ) from failure
        yield
        dist.barrier()
    finally:
        if place.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)


def _convert(shards: Path, universal: Path, stages: tuple[int, int]) -> None:
    universal.mkdir(parents=True)
    settings = Namespace(
        input_folder=str(shards),
        output_folder=str(universal),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        ds_to_universal.main(settings)
    before, now = stages
    if (before == 3) == (now == 3):
        return
    options = universal / "zero" / _OPTIONS
    state = torch.load(options, weights_only=False)
    if now == 3:
        step = torch.load(next((universal / "zero").rglob(_STEP)), weights_only=False)
        state["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": state["param_groups"]}
        shutil.copy(universal / _HEAD, universal / _HEAD_3)
    else:
        state["ds_version"] = deepspeed.__version__  # not looked at further, but missed
        _wrap(universal / "zero", step=state["optimizer_state_dict"]["state"][0]["step"])
        shutil.copy(universal / _HEAD_3, universal / _HEAD)
    torch.save(state, options)


def _wrap(weights: Path, *, step: torch.Tensor) -> None:
    """Stage 3 writes bare tensors where the others read mappings, and keeps its step elsewhere."""
    for folder in {file.parent for file in weights.glob(f"*/{_WEIGHTS}")}:
        for file in folder.glob("*.pt"):
            torch.save({"param": torch.load(file, weights_only=False)}, file)
        torch.save(step, folder / _STEP)


@contextlib.contextmanager
def _universal(engine: Any) -> Iterator[None]:
    """DeepSpeed looks at this setting when it loads, and nowhere else."""
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False


@contextlib.contextmanager
def _own_options(engine: Any) -> Iterator[None]:
    """Keep the options of the groups as the spec has them, and give every shard a step counter of its own."""
    optimizer = engine.optimizer.optimizer
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    yield
    for group, before in zip(optimizer.param_groups, options, strict=True):
        group.update(before)
    for shard, state in optimizer.state.items():
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(shard.device, copy=True)
