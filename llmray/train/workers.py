"""A group of training processes on Ray Train: start them, replace the dead, bring back what they return.

What a user must mend comes back from a worker as a value and is raised here: raised there, Ray would try it again.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmray.errors import LLMRayError
from llmray.train.model_run import ModelRun
from llmray.train.run_folder import GROUP, Line

if TYPE_CHECKING:
    from llmray.train.engine import Place


SCORE = "score"
"""Figure of a checkpoint by which Ray Train keeps the highest, beside the newest."""


def run_workers(
    worker: Callable[[dict[str, Any]], Any],
    config: Mapping[str, Any],
    spec: ModelRun,
    *,
    folder: Path,
    max_failures: int,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Run `worker(config)` in every process of the group and return what rank 0 returned; Ray must be connected.

    Args:
        worker: a function of a module; returns a mapping, or the LLMRayError that the user must see.
        folder: the run folder; Ray keeps its state below it, and the same one goes on from its checkpoints.
        max_failures: how often dead workers are replaced.
        callbacks: Ray Train's.

    Raises:
        LLMRayError: the one that the worker returned, or that workers died more often than allowed.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    least, most = spec.worker_range
    resources = {"CPU": spec.cpus_per_worker}
    if spec.gpus_per_worker:
        resources["GPU"] = spec.gpus_per_worker
    trainer = TorchTrainer(
        worker,
        train_loop_config=dict(config),
        torch_config=TorchConfig(backend="nccl" if spec.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=bool(spec.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=GROUP,
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=spec.keep_checkpoints, checkpoint_score_attribute=SCORE if spec.keeps_best else None
            ),
            callbacks=list(callbacks),
        ),
    )
    try:
        value = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise LLMRayError(
            f"training failed after {max_failures} restarts: {error}; "
            f"the last checkpoint is in {folder}, and the same call goes on from it"
        ) from error
    if isinstance(value, LLMRayError):
        raise value
    return dict(value)


def score(line: Line) -> float:
    """The score of a checkpoint with that line of metrics: the lower its held-out loss, the higher, if it was a new lowest.

    So no two have the same, and none outlives the best. Never left out, and never infinite: Ray takes a missing figure
    for the lowest there is (and so for the best, where the lowest are kept), and its file of checkpoints has no infinity
    (2.60).
    """
    return -line["heldout_loss"] if line.get("best_step") == line["step"] else -sys.float_info.max


def begin_worker(spec: ModelRun) -> "Place":
    """In a worker, before anything heavy is imported: its manners, its threads, and its place among the others."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import ray.train
    import torch

    from llmray.train.engine import Place

    torch.set_num_threads(max(1, int(spec.cpus_per_worker)))
    context = ray.train.get_context()
    return Place(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        ranks_on_node=context.get_local_world_size(),
        device=str(ray.train.torch.get_device()) if spec.gpus_per_worker else "cpu",
    )
