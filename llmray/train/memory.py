"""The memory that a training run will take, before it starts; and where it is too much, what would fit.

Weights, gradients and optimizer state are counted as DeepSpeed's own estimators count them (Rajbhandari et al. 2020,
"ZeRO", section 3; `estimate_zero2_model_states_mem_needs` and `estimate_zero3_…`), and what they leave out is added:
activations (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1), the
logits and their gradients, and DeepSpeed's buffers. Activations and gradients are at their most at different moments, so
the total is the worse moment, not the sum. Not counted: what Python, CUDA and NCCL take for themselves, and holes in
CUDA's allocator. How far off it is stands in docs/design/memory.md. Rejected: a trial step, which costs the start of a
run, and which the kernel ends where it fails.
"""

import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from llmray.errors import ConfigError
from llmray.train.model_run import Method, ModelRun, Offload
from llmray.train.shape import Shape

_FLOAT32 = 4
_CELL = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight: blocks of 64 have a scale of one byte, and 256 scales a float32 one."""
_HEAP = 2**25
"""Bytes from which on glibc returns every tensor to the system when it is freed (DEFAULT_MMAP_THRESHOLD_MAX). Of smaller
ones it kept half to two and a half times what they had taken; once is counted. A lower threshold ends that, and made
steps a fifth slower."""
_NAMED = 4
"""Settings that a refusal names at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """DeepSpeed's buffers, in numbers, not bytes; the defaults are those of deepspeed 0.19 (`zero/config.py`)."""

    reduce: int = 500_000_000
    """Gradients that are reduced at once (`reduce_bucket_size`)."""
    live: int = 500_000_000
    """Weights that stay gathered under ZeRO-3 between forward and backward: half of `stage3_max_reuse_distance`."""
    prefetch: int = 50_000_000
    """Weights that ZeRO-3 gathers ahead (`stage3_prefetch_bucket_size`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one device, each at its own most."""

    weights: int
    """What the model computes with."""
    optimizer: int
    """Adam's two moments, and float32 master weights beside bfloat16 ones or beside ZeRO's shards."""
    gradients: int
    """Gradients, and the copies of them that the optimizer is handed."""
    buffers: int
    """What DeepSpeed needs beside the gradients to reduce and to gather."""
    activations: int
    """What the forward pass keeps for the backward pass, masks of packed documents included."""
    logits: int
    """Log-probabilities, their gradient and the logits' gradient."""
    standing: int
    """Of gradients and buffers, what is there already when the activations are at their most."""
    holes: int = 0
    """On a CPU, what the C library keeps of tensors that were freed."""

    @property
    def total(self) -> int:
        """The most at any one moment: at the top of the backward pass, or when gradients are reduced and applied."""
        return (
            self.weights
            + self.optimizer
            + self.holes
            + max(self.standing + self.activations + self.logits, self.gradients + self.buffers)
        )

    def parts(self) -> str:
        """The parts for a person, largest first."""
        named = {
            "weights": self.weights,
            "optimizer": self.optimizer,
            "gradients": self.gradients,
            "buffers": self.buffers,
            "activations": self.activations,
            "logits": self.logits,
            "holes": self.holes,
        }
        return ", ".join(
            f"{name} {size(part)}" for name, part in sorted(named.items(), key=lambda item: -item[1]) if part
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Settings that fit."""

    changes: Mapping[str, Any]
    """Fields of the spec and their new values."""
    memory: Memory

    def text(self, option: str) -> str:
        """As a user would set it."""
        said = {name: str(value).lower() if value is True else value for name, value in self.changes.items()}
        settings = [f"{option}.{name} {value}" for name, value in said.items()]
        return f"{' and '.join(filter(None, (', '.join(settings[:-1]), *settings[-1:])))} ({size(self.memory.total)})"


def estimate(shape: Shape, spec: ModelRun, world_size: int, *, buckets: Buckets | None = None) -> Memory:
    """Bytes that one of `world_size` processes takes on its device, after its first step.

    What is offloaded is on no GPU; a CPU worker offloads to the memory that it is in.
    """
    buckets = buckets or Buckets()
    cell = _CELL[spec.dtype]
    shards = world_size if spec.zero else 1
    here = 0 if _offloads(spec) else shape.trainable(spec) / shards
    weights = 0 if _offloads(spec, "all") else weight_bytes(shape, spec) / (world_size if spec.zero == 3 else 1)
    master = _FLOAT32 * here if spec.zero or cell < _FLOAT32 else 0
    gradients = cell * here + master  # a float32 copy for the master weights, or ZeRO's flat one
    standing, worst = _moments(shape, spec, world_size, buckets)
    tokens = spec.micro_batch * spec.max_length
    activations = tokens * activation_bytes(shape, spec)
    logits = _FLOAT32 * tokens * shape.vocabulary
    in_heap = activations * (cell * tokens * shape.hidden < _HEAP) + 3 * logits * (logits < _HEAP)
    return Memory(
        weights=int(weights),
        optimizer=int(master + 2 * _FLOAT32 * here),
        gradients=int(gradients),
        buffers=max(0, int(worst - gradients)),
        activations=int(activations),
        logits=3 * logits,
        standing=int(standing),
        holes=0 if spec.gpus_per_worker else int(in_heap),
    )


def _moments(shape: Shape, spec: ModelRun, world_size: int, buckets: Buckets) -> tuple[float, float]:
    """Bytes of gradients and buffers when activations are at their most, and at any other moment.

    Read in deepspeed 0.19.8 (`stage_1_and_2.py`, `stage3.py`, `engine.buffered_allreduce_fallback`) and measured.
    """
    cell = _CELL[spec.dtype]
    trained, everything = shape.trainable(spec), shape.total + shape.adapters(spec)
    # A 4-bit layer multiplies with its weights in 16 bits or more: those of a feed-forward are the widest.
    unpacked = cell * shape.hidden * shape.inner if spec.method == "qlora" else 0
    whole_bucket = cell * min(trained, buckets.reduce)
    # On a GPU the bucket is taken whole; on a CPU only the pages that gradients are written to.
    bucket = cell * buckets.reduce if spec.gpus_per_worker else whole_bucket
    kept = spec.accumulation > 1
    if spec.zero == 0:
        copies = _FLOAT32 * trained if cell < _FLOAT32 else 0
        return cell * trained * kept + unpacked, cell * trained + max(whole_bucket, copies)
    shard = 0 if _offloads(spec) else cell * trained / world_size
    flat = shard if cell < _FLOAT32 else 0  # made contiguous before it becomes float32
    stepping = 0 if _offloads(spec) else shard + flat + _FLOAT32 * trained / world_size
    if spec.zero < 3:
        reduced = cell * max(0, trained - buckets.reduce) / world_size
        accumulated = (shard if spec.zero == 2 else cell * trained) * kept  # ZeRO-1 reduces at the last pass
        standing = accumulated + (bucket if spec.gpus_per_worker else 0) + unpacked
        return standing, max(max(reduced, shard * kept) + bucket + whole_bucket, stepping)
    gathered, gathering = 0.0, 0.0
    if world_size > 1 or _offloads(spec, "all"):
        per_weight = weight_bytes(shape, spec) / everything
        gathered = per_weight * min(everything, max(buckets.live, shape.largest_layer))
        gathering = per_weight * min(everything, max(buckets.prefetch, shape.largest_layer))
    copied = 0 if spec.gpus_per_worker else whole_bucket  # gloo's
    reducing = shard + bucket + whole_bucket + max(gathered, copied)
    return shard + bucket + gathered + gathering + unpacked, max(reducing, bucket + stepping)


def weight_bytes(shape: Shape, spec: ModelRun) -> float:
    """Bytes of all weights as the model holds them: under `qlora` its linear layers in four bits."""
    quantized = shape.linear if spec.method == "qlora" else 0
    others = shape.total + shape.adapters(spec) - quantized
    return _CELL[spec.dtype] * others + _NF4 * quantized


def checkpoint_bytes(shape: Shape, spec: ModelRun, world_size: int) -> int:
    """Bytes that rank 0 writes into a checkpoint, who writes the most: below ZeRO-3 the trained weights as well."""
    trained = shape.trainable(spec)
    weights = 0 if spec.zero == 3 else _CELL[spec.dtype] * trained
    master = _FLOAT32 if spec.zero or spec.dtype == "bfloat16" else 0
    return int(weights + (master + 2 * _FLOAT32) * trained / (world_size if spec.zero else 1))


def activation_bytes(shape: Shape, spec: ModelRun) -> float:
    """Bytes a token that the forward pass keeps for the backward pass, over all blocks, without the logits.

    Korthikanti et al. count 34 h bytes a block in 16 bits, of which 2 are dropout masks, plus 5 a T for the attention
    matrix of a heads (their equation 1). SDPA does not store that matrix, but it does store the mask of packed
    documents, in the format of the activations and in every block, T numbers a token. Widths stand instead of multiples
    of h, so that grouped queries and gated feed-forwards are told apart; transformers' RMSNorm computes in float32.
    """
    cell = _CELL[spec.dtype]
    adapted = spec.method != "full"
    # A norm keeps its input; RMSNorm a float32 one, and what it multiplies with its weight if that is trained.
    norm = _FLOAT32 + (0 if adapted else cell) if shape.float_norms else cell
    block: float = (
        norm * shape.norms
        + cell * 2 * shape.hidden  # inputs of the projections and of the feed-forward
        + cell * (6 if shape.fused else 4) * shape.attention  # queries, keys, values (for each head), and their mix
        + cell * (4 if shape.gated else 2) * shape.inner
        + cell * spec.max_length  # the mask
    )
    if adapted:
        block += cell * spec.lora_rank * shape.linear_layers / shape.layers
    if shape.attention_dropout and not spec.gpus_per_worker:
        # Scores, dropped scores and what was dropped; and these, queries, keys and values are in float32.
        block += 3 * (_FLOAT32 * shape.heads * spec.max_length + (_FLOAT32 - cell) * shape.attention)
    last = (norm + (0 if adapted else cell)) * shape.hidden
    if spec.gradient_checkpointing:
        return cell * shape.hidden * shape.layers + block + last
    return block * shape.layers + last


def fitting(shape: Shape, spec: ModelRun, world_size: int, have_bytes: int) -> list[Fit]:
    """Changes to the spec that fit into `have_bytes` a device, those that change the result least first.

    First another ZeRO stage, which changes nothing but time; then smaller micro-batches at the same global batch; where
    that is not enough, what is slower but changes nothing either (activations computed again, then offload to the host);
    then the number format; then adapters, then these on 4-bit weights. Empty where nothing of that fits, and with one
    empty change where the spec does.
    """
    found: list[Fit] = []
    for basis in _bases(spec):
        for slower in _slower(spec):
            fits = [
                Fit(changes=changes, memory=memory)
                for changes, altered in _alternatives(spec, {**basis, **slower})
                if (memory := estimate(shape, altered, world_size)).total <= have_bytes
            ]
            found += fits[:1]
            if fits and "zero" in fits[0].changes:
                found += [fit for fit in fits if "zero" not in fit.changes][:1]
            if fits:
                break
    return found


def check(shape: Shape, spec: ModelRun, world_size: int, have_bytes: int) -> Memory:
    """The estimate of a run that fits into `have_bytes` a device.

    Raises:
        ConfigError: it does not; the message says what it needs, what there is, and what would fit.
    """
    needed = estimate(shape, spec, world_size)
    if needed.total <= have_bytes:
        return needed
    device = "GPU" if spec.gpus_per_worker else "worker"
    under = f"{size(needed.total)} a {device} under ZeRO-{spec.zero}"
    for changes, altered in _alternatives(spec, {}):
        if changes == {"zero": 3}:
            sharded = estimate(shape, altered, world_size)
            under += f", {size(sharded.total)} under ZeRO-3"
    fits = fitting(shape, spec, world_size, have_bytes)
    raise ConfigError(
        f"{spec.option} needs {under}; you have {size(have_bytes)} ({needed.parts()}). "
        + (
            f"What fits: {'; '.join(fit.text(spec.option) for fit in fits[:_NAMED])}"
            if fits
            else "No ZeRO stage, micro-batch, offload, number format or adapter makes it fit: "
            f"use more workers, a shorter {spec.option}.max_length or a smaller model"
        )
    )


def room_bytes(device: str, *, ranks_on_node: int) -> int:
    """Bytes that this process may still take on its device.

    Args:
        device: `cpu`, or a torch device such as `cuda:0`, whose free memory is asked for.
        ranks_on_node: processes of the training on this machine; they share its memory, or what its cgroup may have.
    """
    if device == "cpu":
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *cgroup_limits()]
        return max(0, min(limits) // ranks_on_node - _resident_bytes())
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def peak_bytes(device: str) -> int:
    """The most that this process has had on its device so far: on a CPU its whole resident memory, libraries and all."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torch

    return int(torch.cuda.max_memory_reserved(device))


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Limits that this process's control groups set, version 2 or 1, in bytes; none outside of a container."""
    limits = []
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, name = line.split(":", 2)
        if "memory" not in controllers.split(",") and controllers:
            continue
        tree, file = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        folder = tree / name.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(tree) and (place / file).is_file():
                text = (place / file).read_text().strip()
                limits += [int(text)] if text != "max" else []
    return limits


def size(count: float) -> str:
    """Bytes for a person, in GiB, or in MiB below one."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _bases(spec: ModelRun) -> Iterator[dict[str, Any]]:
    """Number formats and methods to choose among, as changes to the spec, the spec's own first."""
    methods = get_args(Method)
    for method in methods[methods.index(spec.method) :]:
        for dtype in dict.fromkeys((spec.dtype, "bfloat16")):
            yield {"method": method, "dtype": dtype}


def _slower(spec: ModelRun) -> Iterator[dict[str, Any]]:
    """What makes room for time, as changes to the spec: nothing first, then what it takes anew each."""
    offloads = get_args(Offload)
    for offload in offloads[offloads.index(spec.offload) :] if spec.gpus_per_worker else (spec.offload,):
        for again in dict.fromkeys((spec.gradient_checkpointing, True)):
            yield {"gradient_checkpointing": again, "offload": offload}


def _offloads(spec: ModelRun, *what: str) -> bool:
    """Whether the optimizer, or just `what`, is off the device."""
    return bool(spec.gpus_per_worker) and spec.offload in (what or ("optimizer", "all"))


def _alternatives(spec: ModelRun, basis: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], ModelRun]]:
    """Stages and micro-batches of the same global batch, the largest micro-batch and the spec's own stage first."""
    for micro_batch in (size for size in range(spec.micro_batch, 0, -1) if spec.micro_batch % size == 0):
        accumulation = spec.accumulation * (spec.micro_batch // micro_batch)
        for zero in dict.fromkeys((spec.zero, 0, 1, 2, 3)):
            wanted = {**basis, "zero": zero, "micro_batch": micro_batch, "accumulation": accumulation}
            changes = {name: value for name, value in wanted.items() if value != getattr(spec, name)}
            try:
                yield changes, replace(spec, **changes)
            except ConfigError:  # not every method goes with every stage, format and objective
                continue


def _resident_bytes() -> int:
    """What this process has already, its libraries included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
