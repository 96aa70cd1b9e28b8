"""What a training run is to do, said once: the same spec serves a job, a tuning trial and the SDK.

Everything in it can change the weights except where and how checkpoints are written, so a run folder belongs to one
spec: see `checkpoint.py`. Rejected: a free-form DeepSpeed JSON beside it, which lets two files contradict each other.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from llmray.digest import digest_of
from llmray.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Objective = Literal["sft", "pretrain"]
Method = Literal["full", "lora"]
Schedule = Literal["cosine", "linear", "constant"]
Dtype = Literal["float32", "bfloat16"]

_CHOICES = {"objective": Objective, "method": Method, "schedule": Schedule, "dtype": Dtype}
_POSITIVE = ("num_workers", "cpus_per_worker", "max_length", "max_steps", "micro_batch", "accumulation", "lora_rank")


PLACE = {"identity": False}
"""Where and how it runs: changes no weight beyond rounding, so it is in no cache key."""
GIVEN = {"identity": False, "flag": False}
"""Handed over as artifacts, which have keys and flags of their own."""


class ModelRun(Protocol):
    """What the engine and the workers need of a spec, whatever it trains for."""

    @property
    def model(self) -> str: ...
    @property
    def method(self) -> Method: ...
    @property
    def zero(self) -> int: ...
    @property
    def num_workers(self) -> int: ...
    @property
    def cpus_per_worker(self) -> float: ...
    @property
    def gpus_per_worker(self) -> float: ...
    @property
    def micro_batch(self) -> int: ...
    @property
    def accumulation(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def clip_norm(self) -> float: ...
    @property
    def lora_rank(self) -> int: ...
    @property
    def lora_alpha(self) -> float: ...
    @property
    def dtype(self) -> Dtype: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSpec:
    """A training run."""

    model: str = field(default="", metadata=GIVEN)
    """Hugging Face folder or URI of the model to start from."""
    data: str = field(default="", metadata=GIVEN)
    """URI of the dataset snapshot."""
    objective: Objective = "sft"
    """sft: conversations, loss on assistant tokens; pretrain: plain text, loss on every token."""
    method: Method = "full"
    """full: all weights; lora: low-rank adapters, merged into the weights at the end."""
    zero: int = field(default=2, metadata=PLACE)
    """DeepSpeed ZeRO stage: 0 shards nothing, 1 optimizer state, 2 and gradients, 3 and weights."""
    num_workers: int = 2
    """Training processes."""
    cpus_per_worker: float = field(default=1.0, metadata=PLACE)
    """Cores that Ray sets aside for each worker."""
    gpus_per_worker: float = field(default=0.0, metadata=PLACE)
    """GPUs that Ray sets aside for each worker; 0 trains on CPU."""
    max_length: int = 256
    """Tokens in a packed block; longer texts are split, longer conversations truncated, and counted."""
    max_steps: int = 100
    """Optimizer steps."""
    micro_batch: int = 8
    """Blocks in one forward pass of one worker."""
    accumulation: int = 1
    """Forward passes of each worker in one optimizer step."""
    lr: float = 1e-3
    """Highest learning rate."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warmup."""
    warmup_fraction: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta2: float = 0.95
    """AdamW's second-moment decay."""
    clip_norm: float = 1.0
    """Gradients of a greater norm are scaled down to it; 0 leaves them."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    mix: float = 0.0
    """Share of blocks of the other shape: plain text beside conversations (sft), or the reverse (pretrain)."""
    dtype: Dtype = "float32"
    """Number format of weights and activations; optimizer state stays float32."""
    checkpoint_every: int = field(default=50, metadata=PLACE)
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = field(default=2, metadata=PLACE)
    """Newest checkpoints kept in the run folder."""
    eval_every: int = 0
    """Steps between held-out losses; 0 measures it only at the end."""
    eval_rows: int = 64
    """Held-out rows in that loss; 0 for none."""
    seed: int = 0
    """Seed of the order of blocks, of adapters and of dropout."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"train.{name} ({getattr(self, name)!r}) must be one of {', '.join(get_args(choices))}"
                )
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ConfigError(f"train.{name} ({getattr(self, name)}) must be above zero")
        for name in ("gpus_per_worker", "weight_decay", "clip_norm", "eval_rows", "eval_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} ({getattr(self, name)}) must be zero or more")
        if self.zero not in {0, 1, 2, 3}:
            raise ConfigError(f"train.zero ({self.zero}) must be 0, 1, 2 or 3")
        if self.zero == 3 and self.method == "lora" and self.dtype == "bfloat16" and not self.gpus_per_worker:
            raise ConfigError(
                "train.zero 3 with lora in bfloat16 needs a GPU: use train.zero 2, or train.dtype float32"
            )
        if not 0 < self.lr < 1:
            raise ConfigError(
                f"train.lr ({self.lr}) must lie between 0 and 1: try 1e-3 for a small model, 1e-4 for LoRA"
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(
                f"train.warmup_fraction ({self.warmup_fraction}) must be at least 0 and below 1: try 0.05"
            )
        if not 0 < self.beta2 < 1:
            raise ConfigError(f"train.beta2 ({self.beta2}) must lie between 0 and 1: try 0.95")
        if not 0 <= self.mix < 1:
            raise ConfigError(f"train.mix ({self.mix}) must be at least 0 and below 1: try 0.1")
        if self.checkpoint_every <= 0 or self.keep_checkpoints <= 0:
            raise ConfigError("train.checkpoint_every and train.keep_checkpoints must be above zero")
        if self.objective == "pretrain" and self.method == "lora":
            raise ConfigError("train.objective pretrain learns too much for adapters: use train.method full")

    @property
    def global_batch(self) -> int:
        """Blocks in one optimizer step, over all workers."""
        return self.num_workers * self.micro_batch * self.accumulation

    @property
    def digest(self) -> str:
        """What a run folder is held to: another spec, or another place to run it, has another digest."""
        return digest_of(self)

    def identity(self) -> dict[str, object]:
        """The fields that can change the weights beyond rounding: what a cache key or a manifest wants."""
        return identity_of(self)


def identity_of(spec: "DataclassInstance") -> dict[str, object]:
    """The fields of a spec that are not marked as being no part of its identity."""
    return {
        field.name: getattr(spec, field.name)
        for field in dataclasses.fields(spec)
        if field.metadata.get("identity", True)
    }
