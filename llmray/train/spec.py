"""What a training run is to do, said once: the same spec serves a job, a tuning trial and the SDK.

Everything in it can change the weights except where it runs and how checkpoints are written, so a run folder belongs to
one spec, wherever it runs: see `run_folder.py`. Rejected: a free-form DeepSpeed JSON beside it, which lets two files contradict each other.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from llmray.errors import ConfigError
from llmray.train.model_run import BATCH, PLACE, ModelRun
from llmray.train.named_templates import NAMED

Objective = Literal["sft", "pretrain"]
Schedule = Literal["cosine", "linear", "constant", "wsd"]
TooLong = Literal["by_shape", "truncate", "split", "refuse"]
Export = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSpec(ModelRun):
    """A training run."""

    option: ClassVar[str] = "train"

    objective: Objective = "sft"
    """sft: conversations, loss on assistant tokens; pretrain: plain text, loss on every token."""
    max_length: int = 256
    """Tokens in a packed block."""
    too_long: TooLong = "by_shape"
    """What becomes of longer rows, which are counted; by_shape: texts are split, conversations truncated."""
    template: str = ""
    """Chat template by name: plain, chatml, llama3, gemma; empty for the tokenizer's own."""
    micro_batch: int = field(default=8, metadata=BATCH)
    """Blocks in one forward pass of one worker."""
    min_workers: int = field(default=0, metadata=PLACE)
    """Workers that are enough to begin or to go on where the cluster has no room for more; 0 for `num_workers`."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warmup; wsd: only in the last `decay_fraction` of the steps."""
    decay_fraction: float = 0.1
    """Share of the steps in which `schedule` wsd lets the learning rate fall."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta2: float = 0.95
    """AdamW's second-moment decay."""
    mix: float = 0.0
    """Share of blocks of the other shape: plain text beside conversations (sft), or the reverse (pretrain)."""
    eval_every: int = 0
    """Steps between held-out losses; 0 measures it only at the end."""
    eval_rows: int = 64
    """Held-out rows in that loss; 0 for none."""
    patience: int = 0
    """Held-out losses in a row without a new lowest one that end the run; 0 for never."""
    export: Export = "last"
    """Weights that become the model: those of the last step, or the best ones, of the lowest held-out loss."""

    def __post_init__(self) -> None:
        ModelRun.__post_init__(self)
        self._check_choice("objective", Objective)
        self._check_choice("schedule", Schedule)
        self._check_choice("too_long", TooLong)
        if self.template and self.template not in NAMED:
            raise ConfigError(
                f"train.template ({self.template!r}) must be one of {', '.join(NAMED)}, or empty for the tokenizer's own"
            )
        if self.max_length < 2:
            raise ConfigError(
                f"train.max_length ({self.max_length}) must be 2 or more: a token is predicted from another"
            )
        self._check_choice("export", Export)
        self._check_not_negative("min_workers", "weight_decay", "eval_rows", "eval_every", "patience")
        if self.needs_heldout and not (self.eval_every and self.eval_rows):
            raise ConfigError(
                "train.patience and train.export best go by held-out losses during training: set train.eval_every to "
                "the steps between them, and leave train.eval_rows above zero"
            )
        if not 0 < self.beta2 < 1:
            raise ConfigError(f"train.beta2 ({self.beta2}) must lie between 0 and 1: try 0.95")
        if not 0 < self.decay_fraction <= 1:
            raise ConfigError(f"train.decay_fraction ({self.decay_fraction}) must be above 0 and at most 1: try 0.1")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ConfigError(
                f"train.warmup_fraction ({self.warmup_fraction}) and train.decay_fraction ({self.decay_fraction}) are "
                f"more than all steps together: try train.decay_fraction {round(1 - self.warmup_fraction, 4)} or less"
            )
        least, most = self.worker_range
        if least > most:
            raise ConfigError(f"train.min_workers ({least}) must be at most train.num_workers ({most})")
        if uneven := [count for count in range(least, most) if self.global_batch % count]:
            raise ConfigError(
                f"train.min_workers ({least}) allows {uneven[0]} workers, who cannot share the global batch "
                f"({self.global_batch}) evenly: set it to {uneven[-1] + 1} or more, or choose another train.accumulation"
            )
        if not 0 <= self.mix < 1:
            raise ConfigError(f"train.mix ({self.mix}) must be at least 0 and below 1: try 0.1")
        if self.objective == "pretrain" and self.method != "full":
            raise ConfigError("train.objective pretrain learns too much for adapters: use train.method full")

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers that it may run on."""
        return self.min_workers or self.num_workers, self.num_workers

    def on_workers(self, count: int) -> "TrainSpec":
        """The same run on another number of workers: the same global batch, in micro-batches that are no larger."""
        each = self.global_batch // count
        assert each * count == self.global_batch, f"{count} workers cannot share {self.global_batch} texts"
        if count == self.num_workers:
            return self
        micro_batch = next(size for size in range(self.micro_batch, 0, -1) if each % size == 0)
        return replace(self, num_workers=count, micro_batch=micro_batch, accumulation=each // micro_batch)

    @property
    def keeps_best(self) -> bool:
        """See `ModelRun`."""
        return self.export == "best"

    @property
    def needs_heldout(self) -> bool:
        """Whether something is decided by held-out losses."""
        return bool(self.patience) or self.export == "best"
