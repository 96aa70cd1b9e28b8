"""A search, said once, and what came of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmray.digest import digest_of
from llmray.errors import ConfigError
from llmray.prices import PriceList
from llmray.tune.ledger import Amounts
from llmray.tune.space import parse_space

TrialStatus = Literal["done", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneSpec:
    """A search for settings."""

    space: Mapping[str, Any] = field(
        default_factory=lambda: {"lr": "loguniform(3e-4, 3e-3)", "micro_batch": "choice(4, 8)"}
    )
    """Option to what it may be: uniform(a, b), loguniform(a, b), choice(a, b, …), or one value."""
    metric: str = "heldout_loss"
    """Key of a trial's result that ranks it."""
    mode: Literal["min", "max"] = "min"
    """Which end of the metric is best."""
    report_metric: str = "loss"
    """Key of a trial's reports that early stopping compares; ranked as `mode` says."""
    num_trials: int = 4
    """Points that are tried, budget permitting."""
    max_concurrent: int = 2
    """Trials at the same time; no more than there are cores for."""
    cpus_per_trial: float = 1.0
    """Cores that a trial's own workers take: workers times cores each."""
    gpus_per_trial: float = 0.0
    """GPUs that a trial's own workers take."""
    max_trial_s: float = 40.0
    """Wall seconds that a trial may take from its start, start-up included; that much is reserved for it."""
    teardown_s: float = 6.0
    """Seconds before the end of `max_trial_s` at which a trial is to stop by itself; after that it is killed."""
    grace_reports: int = 2
    """Reports before a trial may be stopped early; 0 never stops one."""
    reduction_factor: float = 2.0
    """At each rung the best 1 / reduction_factor go on (asynchronous successive halving)."""
    seed: int = 0
    """Seed of the points."""

    def __post_init__(self) -> None:
        parse_space(self.space)
        for name in ("num_trials", "max_concurrent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tune.{name} ({getattr(self, name)}) must be 1 or more")
        if self.cpus_per_trial < 0 or self.gpus_per_trial < 0 or self.cpus_per_trial + self.gpus_per_trial <= 0:
            raise ConfigError("tune.cpus_per_trial and tune.gpus_per_trial must not be negative, nor both zero")
        if not 0 <= self.teardown_s < self.max_trial_s:
            raise ConfigError(
                f"tune.max_trial_s ({self.max_trial_s}) must be above tune.teardown_s ({self.teardown_s})"
            )
        if self.grace_reports < 0 or self.reduction_factor <= 1:
            raise ConfigError("tune.grace_reports must not be negative, and tune.reduction_factor must be above 1")

    def reservation(self, prices: PriceList) -> Amounts:
        """The most that a trial can spend."""
        return self.cost(self.max_trial_s, prices)

    def cost(self, seconds: float, prices: PriceList) -> Amounts:
        """What a trial of that length spends; money as well where the price list knows it."""
        used = {"core_seconds": self.cpus_per_trial * seconds, "gpu_seconds": self.gpus_per_trial * seconds}
        money = prices.money(**used)
        return used if money is None else {**used, "money": money}

    def identity(self, trial: str) -> str:
        """What a run folder is held to: the same points, measured the same way."""
        return digest_of(
            {
                "trial": trial,
                "space": {name: [d.kind, list(d.values)] for name, d in parse_space(self.space).items()},
                "metric": self.metric,
                "mode": self.mode,
                "seed": self.seed,
                "max_trial_s": self.max_trial_s,
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    index: int
    """Place in the sample of the space."""
    config: Mapping[str, Any]
    """The point that was tried."""
    status: TrialStatus
    """done; stopped early because others did better; failed."""
    metric: float | None
    """What ranks it; for a stopped trial the last report; None for a failed one."""
    core_seconds: float
    """Cores times wall seconds, start-up included."""
    gpu_seconds: float = 0.0
    """GPUs times wall seconds."""
    trial_dir: str = ""
    """Folder that the trial wrote into."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """The plain values that the trial returned."""
    error: str | None = None
    """Why it failed."""

    def __post_init__(self) -> None:
        if self.status == "done" and (self.metric is None or not math.isfinite(self.metric)):
            raise ConfigError(f"trial {self.index} is done without a finite metric")


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneResult:
    best_config: Mapping[str, Any]
    """The point of the best finished trial."""
    best_metric: float
    """Its metric."""
    best_trial: Trial
    """The trial itself."""
    trials: list[Trial]
    """Every trial that started, by index."""
    spent: Mapping[str, float]
    """By currency, of the whole account."""
