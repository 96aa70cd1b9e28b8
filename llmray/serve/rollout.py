"""When a canary gets more traffic, and when it goes back: a pure policy over what was counted.

Errors are compared with the stable model's in one one-sided exact test (Fisher's, given both totals): with few
requests it cannot be sure of anything, so a canary also needs `min_requests` before each step. An alarm of the
monitors about the canary ends it. Rejected: a fixed error-rate threshold (a fault of the network would roll back a
good model), and the binomial test against the stable rate taken as known (it is itself estimated, from few requests).
"""

from dataclasses import dataclass

from llmray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPolicy:
    """The steps of a rollout, and when it goes back."""

    steps: tuple[float, ...] = (5.0, 25.0, 100.0)
    """Shares of the traffic, in percent, that the new model gets one after the other."""
    min_requests: int = 20
    """Requests that the new model must have answered at a step before the next."""
    significance: float = 0.01
    """Chance of rolling back a model that errs no more often than the stable one, at each look."""
    max_error_rate: float = 0.5
    """Share of errors that ends a rollout whatever the stable model does, once `min_requests` are answered."""
    ignore_alarms: bool = False
    """Whether a rollout goes on although the monitors raised an alarm since it began."""

    def __post_init__(self) -> None:
        if (
            not self.steps
            or list(self.steps) != sorted(set(self.steps))
            or not 0 < self.steps[0] <= self.steps[-1] == 100
        ):
            raise ConfigError(f"rollout.steps {self.steps} must rise from above 0 to 100: try (5, 25, 100)")
        if self.min_requests < 0:
            raise ConfigError(f"rollout.min_requests ({self.min_requests}) must be zero or more")
        if not 0 < self.significance < 1:
            raise ConfigError(f"rollout.significance ({self.significance}) must lie between 0 and 1: try 0.01")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    requests: int
    """Requests that ended."""
    errors: int
    """Those that the model failed, not the client."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutState:
    stable: Counted
    """Since the rollout began."""
    canary: Counted
    """Since the rollout began."""
    at_step: int
    """Requests of the canary that ended at the present weight."""
    alarms: int = 0
    """Alarms of the monitors about the canary since the rollout began."""


@dataclass(frozen=True, slots=True)
class Advance:
    """Take the next weight."""


@dataclass(frozen=True, slots=True)
class Hold:
    reason: str


@dataclass(frozen=True, slots=True)
class RollBack:
    reason: str
    judged: bool = True
    """False where nothing can be said about the new model."""


def decide(state: RolloutState, policy: RolloutPolicy) -> Advance | Hold | RollBack:
    """What to do at the present weight."""
    canary, stable = state.canary, state.stable
    if state.alarms and not policy.ignore_alarms:
        return RollBack(f"the monitors raised {state.alarms} alarms")
    if canary.errors:
        p_value = error_excess(canary, stable)
        if p_value < policy.significance:
            return RollBack(
                f"the new model failed {canary.errors} of {canary.requests} requests, the stable one "
                f"{stable.errors} of {stable.requests} (p = {p_value:.2g})"
            )
        if canary.requests >= max(policy.min_requests, 1) and canary.errors > policy.max_error_rate * canary.requests:
            return RollBack(f"the new model failed {canary.errors} of {canary.requests} requests")
    if state.at_step < policy.min_requests:
        return Hold(f"{state.at_step} of {policy.min_requests} requests at this weight")
    return Advance()


def error_excess(canary: Counted, stable: Counted) -> float:
    """One-sided p-value of the canary failing more often than the stable model (Fisher's exact test)."""
    from scipy.stats import hypergeom

    total = canary.requests + stable.requests
    return float(hypergeom.sf(canary.errors - 1, total, canary.errors + stable.errors, canary.requests))
