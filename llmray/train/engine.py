"""Build what the loop drives: the model, adapters where asked, and DeepSpeed's engine around them; and write models out.

Needs torch; a file of workers, never imported at the top of anything a driver loads.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_
from transformers import AutoConfig, AutoModelForCausalLM

from llmray import storage
from llmray.errors import InputError, LLMRayError
from llmray.train.model_run import ModelRun
from llmray.train.quantized import as_computed_with, keep_packing, quantization
from llmray.train.shape import Shape, shape_of
from llmray.train.spec import TrainSpec

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One process's place among the workers."""

    rank: int = 0
    world_size: int = 1
    ranks_on_node: int = 1
    """Workers on this machine."""
    device: str = "cpu"
    """`cpu` or `cuda:0`."""


def join_process_group(place: Place) -> None:
    """Let DeepSpeed use the process group that is there, or make one of this process alone."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if place.device == "cpu":
        # DeepSpeed would build its shared-memory collectives with g++ here: tens of seconds the first time, and a
        # compiler that a machine may not have. Gloo does the same work; probing no ops also saves compiler calls.
        vars(deepspeed.ops)["__compatible_ops__"] = {}
    if place.world_size == 1 and not torch.distributed.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists
        backend = "gloo" if place.device == "cpu" else "nccl"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(
        dist_backend="gloo" if place.device == "cpu" else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
        rank=place.rank,
        world_size=place.world_size,
    )


def load_shape(uri: str) -> Shape:
    """The shape of a model folder or hub id; no weights are read."""
    return shape_of(AutoConfig.from_pretrained(storage.local_copy_or_name(uri)))


def load_model(spec: TrainSpec, tokenizer: Any) -> Any:
    """The model to be trained, with adapters but under `full`; under ZeRO-3 each rank holds its shard from the start.

    Raises:
        InputError: as in `load_whole`.
    """
    model = load_whole(spec, tokenizer, option="train.max_length")
    return model if spec.method == "full" else with_adapters(model, spec)


def load_whole(spec: ModelRun, tokenizer: Any, *, option: str) -> Any:
    """The starting model without adapters, under `qlora` in four bits.

    Args:
        option: what the user calls `spec.max_length`.

    Raises:
        InputError: the tokenizer makes ids that the model has no embedding for, or texts exceed its positions.
    """
    model = AutoModelForCausalLM.from_pretrained(
        storage.local_copy_or_name(spec.model), dtype=getattr(torch, spec.dtype), quantization_config=quantization(spec)
    )
    if spec.method == "qlora":
        keep_packing(model)
    if spec.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    config = model.config.get_text_config()
    if (needed := max(tokenizer.get_vocab().values()) + 1) > config.vocab_size:
        raise InputError(
            f"the tokenizer of {spec.model} makes ids for {needed} embeddings, its model has only {config.vocab_size}: give "
            f"the folder the tokenizer that the model was trained with, or a model with resized embeddings"
        )
    if spec.max_length > getattr(config, "max_position_embeddings", spec.max_length):
        raise InputError(f"{option} ({spec.max_length}) exceeds the model's {config.max_position_embeddings} positions")
    model.config.use_cache = False
    return model


def with_adapters(model: Any, spec: ModelRun) -> Any:
    """The model with adapters."""
    from peft import get_peft_model

    torch.manual_seed(spec.seed)
    return get_peft_model(model, adapter_config(spec))


def adapter_config(spec: ModelRun) -> Any:
    """LoRA (Hu et al. 2021) on every linear layer but the output head, as peft wants it said."""
    from peft import LoraConfig

    return LoraConfig(r=spec.lora_rank, lora_alpha=spec.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


@contextmanager
def zero3_loading(spec: ModelRun) -> Iterator[None]:
    """Make `from_pretrained` shard as it loads under ZeRO-3; nothing otherwise."""
    from transformers.integrations import HfDeepSpeedConfig

    keeper = HfDeepSpeedConfig(deepspeed_config(spec)) if spec.zero == 3 else None
    try:
        yield
    finally:
        del keeper


def make_engine(model: Any, spec: TrainSpec) -> Any:
    """DeepSpeed's engine with AdamW over the trainable weights; matrices decay, norms and biases do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shapes = [getattr(parameter, "ds_shape", parameter.shape) for parameter in trainable]
    groups: list[dict[str, Any]] = [
        {"params": [p for p, shape in zip(trainable, shapes, strict=True) if len(shape) >= 2]},
        {"params": [p for p, shape in zip(trainable, shapes, strict=True) if len(shape) < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.lr,
        betas=(0.9, spec.beta2),
        weight_decay=spec.weight_decay,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(spec))
    complete_zero0(engine, spec, fresh=True)
    return engine


def complete_zero0(engine: Any, spec: ModelRun, *, fresh: bool) -> None:
    """Make an engine without sharding do what the sharded ones do; nothing for those.

    In float32 it has no gradient norm to tell and takes steps that are no numbers; in bfloat16 its optimizer begins
    with a step by zero gradients, after which AdamW's bias correction is one step ahead.

    Args:
        fresh: whether no step was taken yet, nor a checkpoint loaded.
    """
    if spec.zero:
        return
    if spec.dtype == "bfloat16":
        if fresh:
            engine.optimizer.optimizer.state.clear()
        return

    def clip(optimizer: Any, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # The names under which DeepSpeed's own optimizers keep them, and its engine looks for them.
        optimizer._global_grad_norm = float(clip_grad_norm_(parameters, spec.clip_norm or math.inf))
        optimizer.overflow = not math.isfinite(optimizer._global_grad_norm)
        if optimizer.overflow:
            optimizer.zero_grad(set_to_none=True)

    engine.optimizer.register_step_pre_hook(clip)


def sum_over_ranks(values: torch.Tensor, place: Place) -> None:
    """Add up in place over all ranks; CPU tensors over gloo, and by way of the GPU over nccl."""
    if place.world_size > 1:
        there = values.to(place.device)
        dist.all_reduce(there)
        values.copy_(there)


def from_first_rank(make: Callable[[], T], place: Place) -> T:
    """What rank 0 makes while the others wait; what a user must mend is raised on every rank."""
    made: list[Any] = [None]
    if place.rank == 0:
        try:
            made = [make()]
        except LLMRayError as error:
            made = [error]
    if place.world_size > 1:
        dist.broadcast_object_list(made, src=0, device=torch.device(place.device))
    if isinstance(made[0], LLMRayError):
        raise made[0]
    result: T = made[0]
    return result


def least_of_ranks(value: float, place: Place) -> float:
    """The least of what the ranks say; every rank must ask."""
    if place.world_size == 1:
        return value
    there = torch.tensor([value], dtype=torch.float64, device=place.device)
    dist.all_reduce(there, dist.ReduceOp.MIN)
    return float(there)


def of_ranks(value: int, place: Place) -> list[int]:
    """What each rank says, by rank; every rank must ask."""
    values = torch.zeros(place.world_size, dtype=torch.float64)
    values[place.rank] = value
    sum_over_ranks(values, place)
    return [int(one) for one in values]


def any_rank(flag: bool, place: Place) -> bool:
    """Whether it is so on any rank; every rank must ask."""
    return any_ranks([flag], place)[0]


def any_ranks(flags: Sequence[bool], place: Place) -> list[bool]:
    """For each of the flags, whether it is so on any rank; every rank must ask."""
    counts = torch.tensor([float(flag) for flag in flags])
    sum_over_ranks(counts, place)
    return [count > 0 for count in counts.tolist()]


def weights_are_lost(engine: Any) -> bool:
    """Whether a trained weight that this process holds is no number."""
    held = (getattr(weight, "ds_tensor", weight) for weight in engine.module.parameters() if weight.requires_grad)
    return not all(bool(torch.isfinite(weight).all()) for weight in held)


def deepspeed_config(spec: ModelRun) -> dict[str, Any]:
    """The DeepSpeed settings that a spec stands for."""
    zero: dict[str, Any] = {
        "stage": spec.zero,
        "overlap_comm": False,
        "contiguous_gradients": bool(spec.gpus_per_worker),  # a copy against fragmentation, which a CPU does not know
        "stage3_param_persistence_threshold": 10_000,
    }
    host = {"device": "cpu", "pin_memory": bool(spec.gpus_per_worker)}
    if spec.offload != "none":
        zero["offload_optimizer"] = host
    if spec.offload == "all":
        zero["offload_param"] = host
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": spec.micro_batch,
        "gradient_accumulation_steps": spec.accumulation,
        # Without sharding in float32 we clip ourselves, see `complete_zero0`: DeepSpeed would not tell the norm.
        "gradient_clipping": 0.0 if spec.zero == 0 and spec.dtype == "float32" else spec.clip_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW steps on the host too, and needs no compiler
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if spec.dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return config


def gather_weights(engine: Any, *, rank: int) -> dict[str, torch.Tensor]:
    """Full weights on rank 0, on the CPU and in no less than 16 bits (empty on the others); every rank must call it."""
    weights: dict[str, torch.Tensor] = {}
    named = [*engine.module.named_parameters(), *engine.module.named_buffers()]
    persistent = engine.module.state_dict().keys()
    for name, tensor in named:
        with deepspeed.zero.GatheredParameters([tensor] if hasattr(tensor, "ds_id") else []):
            if rank == 0 and name in persistent:
                weights[name] = as_computed_with(tensor)
    return weights


def export(folder: Path, weights: dict[str, torch.Tensor], spec: ModelRun, tokenizer: Any) -> None:
    """Write a Hugging Face folder from gathered weights; adapters are merged in, and kept in `adapter/` as well."""
    dtype = getattr(torch, spec.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        storage.local_copy_or_name(spec.model), dtype=torch.float32 if spec.method == "qlora" else dtype
    )
    if spec.method != "full":
        model = with_adapters(model, spec)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    lost = [name for name in missing if not any(name.endswith(key) for key in tied)]
    assert not lost, f"weights missing from the export: {lost[:3]}"
    assert not unexpected, f"weights that the model does not have: {unexpected[:3]}"
    if spec.method != "full":
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload().to(dtype)
    model.config.use_cache = True
    model.generation_config.eos_token_id = _ends(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _ends(model: Any, tokenizer: Any) -> Any:
    """What generation stops at: the stop token that was trained, and what it stopped at before."""
    before = model.generation_config.eos_token_id
    known = before if isinstance(before, list) else [before]
    if tokenizer.eos_token_id in {None, *known}:
        return before
    return [tokenizer.eos_token_id, *(token for token in known if token is not None)]
