"""When a canary gets more traffic, and when it goes back: a pure policy over what was counted.

A rollout is looked at many times, so what speaks against the new model is weighed by e-values (Ville's inequality; Grünwald,
de Heide and Koolen, Safe testing, 2024): bets against "no worse than allowed" whose mean wins a hundredfold in at
most one good release in a hundred, however often one looks. Every bet is about a share of the requests: those that
were refused, were given up, failed, were empty, were cut at the limit, waited longer than the stable model's median allows, or whose answer has a length,
a compressibility or an entropy that the stable model's answers hardly ever have. What still runs counts as good: what
ends early (errors, empty answers) must not speak for the rest. What was refused or given up is charged with just that, and
speaks for nothing else. An alarm of the monitors about the canary ends it.

Rejected: a fixed error-rate threshold (a fault of the network would roll back a good model), Fisher's exact test at each
look (its error adds up over the looks; with the error spent over looks it must wait for the next one), and any test for a
mere difference of answers (a new model is meant to differ).
"""

import math
from collections import Counter
from dataclasses import dataclass

from llmray.errors import ConfigError
from llmray.serve.tally import Tally, octave, quantile

_REFERENCE = 20
"""Answers of the stable model from which its usual times and shapes are known well enough."""
_USUAL = 0.95
"""Share of the stable model's answers that are usual ones."""
_SLACK = {"length": 4, "compressed": 2, "entropy": 2}
"""Buckets on either side that are usual too: twice as long, a tenth more or less compressed, half a bit."""
_NOT_ANSWERED = 0.05
"""Share of requests that may be refused, or given up, more than with the stable model: one client's come together."""
_NAMES = {"compressed": "compressibility"}
_SURE = 0.99
"""Confidence of the bound on the stable model's rates."""
_FIRST_TOKEN_S, _NEXT_TOKEN_S = 0.05, 0.01
"""Slower by less than this is not slower: machines make as much noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPolicy:
    """The steps of a rollout, and when it goes back."""

    steps: tuple[float, ...] = (5.0, 25.0, 100.0)
    """Shares of the traffic, in percent, that the new model gets one after the other."""
    min_requests: int = 20
    """Requests that the new model must have answered, or failed, at a step before the next."""
    significance: float = 0.01
    """Chance, over the whole rollout, of rolling back a model that is no worse than allowed."""
    max_error_rate: float = 0.5
    """Share of errors that ends a rollout whatever the stable model does, once `min_requests` are answered."""
    max_slowdown: float = 2.0
    """How many times the stable model's median time, to the first token and between tokens, the new model's may be."""
    max_empty: float = 0.05
    """Share of empty answers that the new model may have more than the stable one."""
    max_cut: float = 0.3
    """Share of answers cut at the length limit that the new model may have more than the stable one."""
    max_unusual: float = 0.25
    """Share of answers that may have a length, compressibility or entropy that is rare with the stable model; 1 for any."""
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
        if self.max_slowdown < 1:
            raise ConfigError(f"rollout.max_slowdown ({self.max_slowdown}) must be 1 or more: try 2")
        for name in ("max_empty", "max_cut", "max_unusual"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"rollout.{name} ({getattr(self, name)}) must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutState:
    stable: Tally
    """Since the rollout began."""
    canary: Tally
    """Since the rollout began."""
    at_step: int
    """Requests of the canary that were answered or failed at the present weight."""
    alarms: int | None = 0
    """Alarms of the monitors about the canary since the rollout began; None where they cannot be read now."""


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


@dataclass(frozen=True, slots=True)
class Charge:
    """Requests of the canary that something is wrong with, and the share that may be."""

    what: str
    bad: int
    requests: int
    allowed: float

    @property
    def weight(self) -> float:
        """The e-value of the charge."""
        return evidence(self.bad, self.requests, self.allowed)


def decide(state: RolloutState, policy: RolloutPolicy) -> Advance | Hold | RollBack:
    """What to do at the present weight."""
    canary = state.canary
    if state.alarms and not policy.ignore_alarms:
        return RollBack(f"the monitors raised {state.alarms} alarms")
    weights = {charge: charge.weight for charge in charges(canary, state.stable, policy)}
    if sum(weights.values()) >= len(weights) / policy.significance:
        worst = max(weights, key=lambda charge: weights[charge])
        return RollBack(
            f"of {worst.requests} requests to the new model {worst.bad} {worst.what}, where {worst.allowed:.1%} are "
            f"allowed (evidence {weights[worst]:.3g})"
        )
    if canary.ended >= max(policy.min_requests, 1) and canary.errors > policy.max_error_rate * canary.ended:
        return RollBack(f"the new model failed {canary.errors} of {canary.ended} requests")
    if state.at_step < policy.min_requests:
        return Hold(f"{state.at_step} of {policy.min_requests} requests at this weight")
    if state.alarms is None:
        return Hold("no word from the monitors")
    return Advance()


def charges(canary: Tally, stable: Tally, policy: RolloutPolicy) -> list[Charge]:
    """Everything that a canary is charged with; always as many, so that each has its part of the significance."""
    begun, of_stable = _taken(canary), _taken(stable)
    errors, empty, cut = (most(getattr(stable, name), of_stable) for name in ("errors", "empty", "cut"))
    refused, given_up = (most(getattr(stable, name), stable.requests) for name in ("refused", "given_up"))
    found = [
        Charge("were refused", canary.refused, canary.requests, refused + _NOT_ANSWERED),
        Charge("were given up", canary.given_up, canary.requests, given_up + _NOT_ANSWERED),
        Charge("failed", canary.errors, begun, errors),
        Charge("had an empty answer", canary.empty, begun, empty + policy.max_empty),
        Charge("were cut at the length limit", canary.cut, begun, cut + policy.max_cut),
    ]
    for name, noise_s in {"first_token": _FIRST_TOKEN_S, "next_token": _NEXT_TOKEN_S}.items():
        times: Counter[int] = getattr(canary, name)
        late = _late(times, getattr(stable, name), policy.max_slowdown, noise_s)
        # here what still runs need not count: the slow ones end last
        found.append(Charge(f"waited too long for their {name.replace('_', ' ')}", late, times.total(), 0.5))
    for name, slack in _SLACK.items():
        unusual = _unusual(getattr(canary, name), getattr(stable, name), slack)
        found.append(Charge(f"had an answer of unusual {_NAMES.get(name, name)}", unusual, begun, policy.max_unusual))
    return found


def evidence(bad: int, requests: int, allowed: float) -> float:
    """How many times over a bet against "at most `allowed` of the requests are bad" has won its stake.

    The stake is spread evenly over all greater shares; in expectation such a bet wins nothing where the claim is true, at
    whatever moment one stops (Ville 1939; Robbins 1970, Statistical methods related to the law of the iterated logarithm).
    """
    from scipy.special import betaincc, betaln

    if not requests or allowed >= 1:
        return 1.0  # nothing to bet on
    good = requests - bad
    above = float(betaincc(bad + 1, good + 1, allowed))
    if not above:
        return 0.0
    gain = float(betaln(bad + 1, good + 1)) + math.log(above) - math.log1p(-allowed)
    stake = bad * math.log(allowed) + good * math.log1p(-allowed)
    return math.exp(min(gain - stake, 700.0))


def most(events: int, requests: int) -> float:
    """Upper bound of a rate (Clopper and Pearson 1934); 1 where nothing is known."""
    from scipy.special import betaincinv

    return float(betaincinv(events + 1, requests - events, _SURE)) if requests > events else 1.0


def _taken(tally: Tally) -> int:
    """Requests that the model took on, and nobody gave up."""
    return tally.requests - tally.refused - tally.given_up


def _late(canary: Counter[int], stable: Counter[int], slowdown: float, noise_s: float) -> int:
    """Answers slower than the stable model's median allows: at most half of them, if the new median is allowed."""
    if stable.total() < _REFERENCE:
        return 0
    median_s = 2 ** ((quantile(stable, 0.5) + 1) / 4)
    limit = octave(max(slowdown * median_s, median_s + noise_s))
    return sum(count for bucket, count in canary.items() if bucket > limit)


def _unusual(canary: Counter[int], stable: Counter[int], slack: int) -> int:
    """Answers outside of where nearly all of the stable model's are."""
    if stable.total() < _REFERENCE:
        return 0
    tail = (1 - _USUAL) / 2
    low, high = quantile(stable, tail) - slack, quantile(stable, 1 - tail) + slack
    return sum(count for bucket, count in canary.items() if not low <= bucket <= high)
