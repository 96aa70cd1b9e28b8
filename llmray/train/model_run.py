"""What any run that trains a model is told: which model, on how many workers, in how many steps.

`TrainSpec` and `AlignSpec` add what is learned from. A spec's fields are its identity, but for those marked as its place.
How a global batch is shared out is place as well; its size is identity.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from llmray.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Method = Literal["full", "lora", "qlora"]
Dtype = Literal["float32", "bfloat16"]
Offload = Literal["none", "optimizer", "all"]

PLACE = {"identity": False, "bound": False}
"""Where and how it runs: changes no weight beyond rounding, so it is in no cache key, and a run may go on elsewhere."""
BATCH = {**PLACE, "counts_as": "global_batch"}
"""A factor of the global batch, which stands for it in the identity."""
GIVEN = {"identity": False, "flag": False}
"""Handed over as artifacts, which have keys and flags of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRun:
    """What the engine and the workers need of a spec, whatever it trains for."""

    option: ClassVar[str]
    """How the user calls the spec: `train`, `align`."""

    model: str = field(default="", metadata=GIVEN)
    """Hugging Face folder or URI of the model to start from."""
    data: str = field(default="", metadata=GIVEN)
    """URI of the dataset snapshot."""
    method: Method = "full"
    """full: all weights; lora: low-rank adapters, merged into the weights at the end; qlora: these on 4-bit weights."""
    zero: int = field(default=2, metadata=PLACE)
    """DeepSpeed ZeRO stage: 0 shards nothing, 1 optimizer state, 2 and gradients, 3 and weights."""
    offload: Offload = field(default="none", metadata=PLACE)
    """What lies in the host's memory: none; optimizer: its state, and its step; all: under ZeRO-3 the weights as well."""
    gradient_checkpointing: bool = field(default=False, metadata=PLACE)
    """Whether only the inputs of the transformer blocks are kept, and the rest is computed again: less memory, slower."""
    num_workers: int = field(default=2, metadata=BATCH)
    """Training processes."""
    cpus_per_worker: float = field(default=1.0, metadata=PLACE)
    """Cores that Ray sets aside for each worker."""
    gpus_per_worker: float = field(default=0.0, metadata=PLACE)
    """GPUs that Ray sets aside for each worker; 0 trains on CPU."""
    max_length: int = 256
    """Tokens that a text is cut to."""
    max_steps: int = 100
    """Optimizer steps."""
    micro_batch: int = field(default=8, metadata=BATCH)
    """Texts in one forward pass of one worker."""
    accumulation: int = field(default=1, metadata=BATCH)
    """Forward passes of each worker in one optimizer step."""
    lr: float = 1e-3
    """Highest learning rate."""
    warmup_fraction: float = 0.05
    """Share of the steps in which the learning rate rises."""
    clip_norm: float = 1.0
    """Gradients of a greater norm are scaled down to it; 0 leaves them."""
    divergence_sigmas: float = field(default=8.0, metadata=PLACE)
    """A loss is too high this many of its spreads above its lowest running mean; 0 stops only what is no number."""
    divergence_steps: int = field(default=20, metadata=PLACE)
    """Steps in a row with too high a loss that end the run; meanwhile no checkpoint is written."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    dtype: Dtype = "float32"
    """Number format of weights and activations; optimizer state stays float32."""
    checkpoint_every: int = field(default=50, metadata=PLACE)
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = field(default=2, metadata=PLACE)
    """Newest checkpoints kept in the run folder; alignment keeps two at least, and `export` best the best and the newest."""
    report_to: tuple[str, ...] = field(default=("tensorboard",), metadata=PLACE)
    """Where figures go beside metrics.jsonl: tensorboard, mlflow, wandb, or a `module:attribute` of your own."""
    seed: int = 0
    """Seed of the order of the data, of adapters and of dropout."""

    def __post_init__(self) -> None:
        self._check_choice("method", Method)
        self._check_choice("dtype", Dtype)
        self._check_choice("offload", Offload)
        self._check_positive(
            "num_workers",
            "cpus_per_worker",
            "max_length",
            "max_steps",
            "micro_batch",
            "accumulation",
            "lora_rank",
            "lora_alpha",
            "checkpoint_every",
            "keep_checkpoints",
            "divergence_steps",
        )
        self._check_not_negative("gpus_per_worker", "clip_norm", "divergence_sigmas")
        if self.zero not in {0, 1, 2, 3}:
            raise ConfigError(f"{self.option}.zero ({self.zero}) must be 0, 1, 2 or 3")
        if self.offload != "none" and self.zero == 0:
            raise ConfigError(
                f"{self.option}.offload {self.offload} needs an optimizer that DeepSpeed shards: use {self.option}.zero 1 "
                f"or higher"
            )
        if self.offload == "all" and self.zero != 3:
            raise ConfigError(
                f"{self.option}.offload all moves weights, which only {self.option}.zero 3 gathers when they are needed: "
                f"use that, or {self.option}.offload optimizer"
            )
        if not 0 < self.lr < 1:
            raise ConfigError(
                f"{self.option}.lr ({self.lr}) must lie between 0 and 1: try 1e-3 for a small model, 1e-5 for a large one"
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(
                f"{self.option}.warmup_fraction ({self.warmup_fraction}) must be at least 0 and below 1: try 0.05"
            )

    @property
    def global_batch(self) -> int:
        """Texts in one optimizer step, over all workers."""
        return self.num_workers * self.micro_batch * self.accumulation

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers that it may run on."""
        return self.num_workers, self.num_workers

    @property
    def keeps_best(self) -> bool:
        """Whether checkpoints are kept by their score as well, and not only the newest."""
        return False

    def identity(self) -> dict[str, object]:
        """What can change the weights beyond rounding: what a cache key or a manifest wants."""
        return identity_of(self)

    def settings(self) -> dict[str, object]:
        """What a run folder and its checkpoints are held to: the identity, the inputs, and places it cannot leave."""
        bound = [field for field in dataclasses.fields(self) if field.metadata.get("bound", True)]
        return {**{field.name: getattr(self, field.name) for field in bound}, **self.identity()}

    def _check_choice(self, name: str, literal: Any) -> None:
        if (value := getattr(self, name)) not in get_args(literal):
            raise ConfigError(f"{self.option}.{name} ({value!r}) must be one of {', '.join(get_args(literal))}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{self.option}.{name} ({getattr(self, name)}) must be above zero")

    def _check_not_negative(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{self.option}.{name} ({getattr(self, name)}) must be zero or more")


def identity_of(spec: "DataclassInstance") -> dict[str, object]:
    """The fields of a spec that are not marked as being no part of its identity, and what the others count as."""
    names = (
        field.name if field.metadata.get("identity", True) else field.metadata.get("counts_as")
        for field in dataclasses.fields(spec)
    )
    return {name: getattr(spec, name) for name in names if name is not None}


def changed(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Names of the settings that differ, in order."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
