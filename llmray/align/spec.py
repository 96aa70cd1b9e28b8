"""What an alignment run is to do, said once: the loss, the steps, and where it runs.

The loss is that of DPO (Rafailov et al. 2023, equation 7) plus `sft_weight` times the negative log-likelihood of the
chosen answer per token (as in Pang et al. 2024, "Iterative Reasoning Preference Optimization"): DPO alone is content to
make both answers unlikely as long as the rejected one falls faster. Rejected: a reward model and PPO, which is two
more models to train, keep and explain.
"""

from dataclasses import dataclass, field

from llmray.digest import digest_of
from llmray.errors import ConfigError
from llmray.train.spec import GIVEN, PLACE, Dtype, Method, identity_of

_POSITIVE = (
    "num_workers",
    "cpus_per_worker",
    "beta",
    "max_length",
    "max_steps",
    "micro_batch",
    "accumulation",
    "lora_rank",
    "lora_alpha",
    "checkpoint_every",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignSpec:
    """An alignment run."""

    model: str = field(default="", metadata=GIVEN)
    """Hugging Face folder or URI of the model to start from, which is also the reference."""
    data: str = field(default="", metadata=GIVEN)
    """URI of the dataset snapshot; its train rows of shape preference are used."""
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
    beta: float = 0.1
    """How dear it is to leave the reference: the reward is beta times the log-ratio of the two models."""
    sft_weight: float = 1.0
    """Weight of the chosen answer's negative log-likelihood per token beside DPO's loss; 0 leaves it out."""
    max_length: int = 256
    """Tokens of a prompt with one of its answers; longer ones lose their end, and are counted."""
    max_steps: int = 60
    """Optimizer steps."""
    micro_batch: int = 4
    """Pairs in one forward pass of one worker."""
    accumulation: int = 1
    """Forward passes of each worker in one optimizer step."""
    lr: float = 4e-5
    """Highest learning rate; it falls to zero in a line."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises."""
    clip_norm: float = 1.0
    """Gradients of a greater norm are scaled down to it; 0 leaves them."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    dtype: Dtype = "float32"
    """Number format of weights and activations; optimizer state stays float32."""
    checkpoint_every: int = field(default=50, metadata=PLACE)
    """Steps between checkpoints; the last step always writes one."""
    seed: int = 0
    """Seed of the order of pairs and of adapters."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"align.{name} ({getattr(self, name)}) must be above zero")
        for name in ("gpus_per_worker", "sft_weight", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"align.{name} ({getattr(self, name)}) must be zero or more")
        if self.method not in {"full", "lora"}:
            raise ConfigError(f"align.method ({self.method}) must be full or lora")
        if self.dtype not in {"float32", "bfloat16"}:
            raise ConfigError(f"align.dtype ({self.dtype}) must be float32 or bfloat16")
        if self.zero not in {0, 1, 2, 3}:
            raise ConfigError(f"align.zero ({self.zero}) must be 0, 1, 2 or 3")
        if self.zero == 3 and self.method == "lora" and self.dtype == "bfloat16" and not self.gpus_per_worker:
            raise ConfigError(
                "align.zero 3 with lora in bfloat16 needs a GPU: use align.zero 2, or align.dtype float32"
            )
        if not 0 < self.lr < 1:
            raise ConfigError(
                f"align.lr ({self.lr}) must lie between 0 and 1: try 4e-5 for a small model, 1e-6 for a large one"
            )
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"align.warmup_fraction ({self.warmup_fraction}) must be at least 0 and below 1: try 0.1")

    @property
    def global_batch(self) -> int:
        """Pairs in one optimizer step, over all workers."""
        return self.num_workers * self.micro_batch * self.accumulation

    @property
    def digest(self) -> str:
        """What a run folder is held to: another spec, or another place to run it, has another digest."""
        return digest_of(self)

    def identity(self) -> dict[str, object]:
        """The fields that can change the weights beyond rounding: what a cache key or a manifest wants."""
        return identity_of(self)
