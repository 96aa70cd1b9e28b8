"""What an alignment run is to do, said once: the loss, the steps, and where it runs.

The loss is that of DPO (Rafailov et al. 2023, equation 7) plus `sft_weight` times the negative log-likelihood of the
chosen answer per token (as in Pang et al. 2024, "Iterative Reasoning Preference Optimization"): DPO alone is content to
make both answers unlikely as long as the rejected one falls faster. Rejected: a reward model and PPO, which is two
more models to train, keep and explain.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from llmray.errors import ConfigError
from llmray.train.model_run import ModelRun

_BOUND = {"identity": False}
_BOUND_BATCH = {**_BOUND, "counts_as": "global_batch"}
"""Changes no weight beyond rounding, but TRL's trainer goes on only where it began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignSpec(ModelRun):
    """An alignment run; the model that it starts from is also the reference."""

    option: ClassVar[str] = "align"

    beta: float = 0.1
    """How dear it is to leave the reference: the reward is beta times the log-ratio of the two models."""
    sft_weight: float = 1.0
    """Weight of the chosen answer's negative log-likelihood per token beside DPO's loss; 0 leaves it out."""
    max_length: int = 256
    """Tokens of a prompt with one of its answers; longer ones lose their end, and are counted."""
    max_steps: int = 60
    """Optimizer steps."""
    micro_batch: int = field(default=4, metadata=_BOUND_BATCH)
    """Pairs in one forward pass of one worker."""
    zero: int = field(default=2, metadata=_BOUND)
    """DeepSpeed ZeRO stage: 0 shards nothing, 1 optimizer state, 2 and gradients, 3 and weights."""
    num_workers: int = field(default=2, metadata=_BOUND_BATCH)
    """Training processes."""
    accumulation: int = field(default=1, metadata=_BOUND_BATCH)
    """Forward passes of each worker in one optimizer step."""
    lr: float = 4e-5
    """Highest learning rate; it falls to zero in a line."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises."""

    def __post_init__(self) -> None:
        ModelRun.__post_init__(self)
        self._check_positive("beta")
        self._check_not_negative("sft_weight")
        if self.method == "qlora":
            raise ConfigError("align.method qlora is not there: use align.method lora")
        if self.zero == 3 and self.method == "lora" and self.dtype == "bfloat16" and not self.gpus_per_worker:
            raise ConfigError(
                "align.zero 3 with lora in bfloat16 needs a GPU: use align.zero 2, or align.dtype float32"
            )
