"""Whether a candidate may take over from a baseline: a decision with its evidence, never a comparison of two averages.

Two questions, each with its own rule for many tasks:

- Not worse: on *every* task the candidate must be shown to be within a margin of the baseline. Requiring all of several
  tests at level alpha keeps the chance of a wrong "not worse" at alpha with no correction (intersection-union test,
  Berger 1982).
- Better: on *some* task it must be shown to be better. Looking for any of several invites luck, so these p-values are
  Holm-adjusted.

A wrong promotion (worse by the margin somewhere, or better nowhere) thus has a chance of at most alpha. What was not
shown is held: too few items, other items, other tokens. The evidence names the smallest difference that the test could
have seen, so that "no difference" is not mistaken for "the same". Rejected: promoting whatever has the higher mean,
which between equal models is a coin toss, and two-sided tests, which answer a question that no gate asks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmray.errors import ConfigError
from llmray.evaluate.scores import Scores, TaskScores
from llmray.evaluate.stats import BootstrapMean, PairedProportions, holm, mcnemar, minimum_detectable_effect


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPolicy:
    direction: Literal["higher", "lower"]
    """Which way is better."""
    margin: float
    """How much worse, in the metric's unit, still counts as not worse."""

    def __post_init__(self) -> None:
        if not self.margin > 0:
            raise ConfigError(
                f"gate margin ({self.margin}) must be above zero: no finite sample shows 'not worse by 0'"
            )


RULES: Mapping[str, TaskPolicy] = {
    "heldout": TaskPolicy(direction="lower", margin=0.05),
    "heldout_bytes": TaskPolicy(direction="lower", margin=0.02),
    "choice": TaskPolicy(direction="higher", margin=0.05),
    "preference": TaskPolicy(direction="higher", margin=0.05),
    "preference_margin": TaskPolicy(direction="higher", margin=0.02),
}
"""What counts as not worse, for the built-in tasks."""


def _default_tasks() -> dict[str, TaskPolicy]:
    return {task: RULES[task] for task in ("heldout", "choice")}


@dataclass(frozen=True, kw_only=True, slots=True)
class GatePolicy:
    """What a model must show to be promoted."""

    tasks: Mapping[str, TaskPolicy] = field(default_factory=_default_tasks)
    """Tasks that count; a candidate must be shown not to be worse on each."""
    superiority: Literal["any", "none"] = "any"
    """Whether it must also be shown to be better on at least one."""
    alpha: float = 0.05
    """Chance of a wrong promotion that is accepted."""
    min_n: int = 50
    """Independent items (clusters) that a task needs before it is judged at all."""
    power: float = 0.8
    """Chance with which the minimum detectable effect would be found."""
    resamples: int = 4000
    """Bootstrap resamples."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("gate.tasks is empty: name at least one task, or every candidate would pass")
        if not 0 < self.alpha < 0.5:
            raise ConfigError(f"gate.alpha ({self.alpha}) must lie between 0 and 0.5: try 0.05")
        if self.resamples < 20 / self.alpha:
            raise ConfigError(
                f"gate.resamples ({self.resamples}) is too few for alpha {self.alpha}: try {20 / self.alpha:.0f}"
            )
        if self.min_n < 2:
            raise ConfigError(f"gate.min_n ({self.min_n}) must be 2 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Promote:
    evidence: Mapping[str, Any]
    """Plain values: the policy, both digests, per task the difference, its interval, p-values and what was visible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    reasons: tuple[str, ...]
    """Everything that stands against the promotion, each a sentence."""
    evidence: Mapping[str, Any]
    """As in `Promote`, for the tasks that could be judged."""


def policy_for(tasks: Iterable[str]) -> GatePolicy:
    """The default policy over the tasks that were evaluated.

    Raises:
        ConfigError: none of them has a default rule.
    """
    known = {task: RULES[task] for task in tasks if task in RULES}
    if not known:
        raise ConfigError(f"gate.tasks: no default rule for {', '.join(tasks)}: say direction and margin of each")
    return GatePolicy(tasks=known)


def decide(candidate: Scores, baseline: Scores, policy: GatePolicy) -> Promote | Hold:
    """Compare two evaluations of the same items."""
    if candidate.data != baseline.data:
        reason = f"evaluated on different data ({candidate.data[:12]} and {baseline.data[:12]}): evaluate both on one"
        return _hold(candidate, baseline, policy, [reason], {})
    reasons: list[str] = []
    judged: dict[str, dict[str, Any]] = {}
    for task, rule in sorted(policy.tasks.items()):
        obstacle = _obstacle(task, candidate.tasks.get(task), baseline.tasks.get(task), policy)
        if obstacle is not None:
            reasons.append(obstacle)
            continue
        judged[task] = _judge(candidate.tasks[task], baseline.tasks[task], rule, policy)
        if judged[task]["p_not_worse"] > policy.alpha:
            reasons.append(_not_shown(task, judged[task], policy))
    for entry, p_value in zip(judged.values(), holm([e["p_better"] for e in judged.values()]), strict=True):
        entry["p_better_adjusted"] = p_value
    better = [task for task, entry in judged.items() if entry["p_better_adjusted"] <= policy.alpha]
    if policy.superiority == "any" and not better:
        seen = ", ".join(
            f"{task} {entry['improvement']:+.4g} (needs about {entry['mde']:.3g})" for task, entry in judged.items()
        )
        reasons.append(f"no task is shown to be better at alpha {policy.alpha}: {seen or 'no task could be judged'}")
    if reasons:
        return _hold(candidate, baseline, policy, reasons, judged)
    return Promote(evidence=_evidence(candidate, baseline, policy, [], judged))


def _obstacle(task: str, candidate: TaskScores | None, baseline: TaskScores | None, policy: GatePolicy) -> str | None:
    """Why a task cannot be judged, or None."""
    if candidate is None or baseline is None:
        return f"{task}: the {'candidate' if candidate is None else 'baseline'} was not evaluated on it"
    if candidate.metric != baseline.metric:
        return f"{task}: measured as {candidate.metric} and as {baseline.metric}"
    if candidate.ids != baseline.ids:
        shared = len(set(candidate.ids) & set(baseline.ids))
        sizes = f"{len(candidate.ids)} and {len(baseline.ids)}, {shared} shared"
        return f"{task}: different items ({sizes}): evaluate both on the same"
    if not np.array_equal(candidate.weights, baseline.weights):
        return (
            f"{task}: the items weigh differently in the two evaluations: the models cut text into different tokens; "
            f"use the task heldout_bytes, whose unit does not depend on the tokenizer"
        )
    clusters = len(set(candidate.clusters))
    if clusters < policy.min_n:
        return f"{task}: {clusters} independent items, and gate.min_n asks for {policy.min_n}"
    if not (np.isfinite(candidate.values).all() and np.isfinite(baseline.values).all()):
        return f"{task}: a value is not finite"
    return None


def _judge(candidate: TaskScores, baseline: TaskScores, rule: TaskPolicy, policy: GatePolicy) -> dict[str, Any]:
    sign = 1.0 if rule.direction == "higher" else -1.0
    improvement_N = sign * (candidate.values - baseline.values)
    binary = candidate.independent and _is_binary(candidate.values) and _is_binary(baseline.values)
    test: PairedProportions | BootstrapMean
    if binary:
        gained, lost = int((improvement_N > 0).sum()), int((improvement_N < 0).sum())
        test = PairedProportions(gained=gained, lost=lost, n=len(improvement_N))
        p_better = mcnemar(gained, lost)
    else:
        test = BootstrapMean(
            improvement_N,
            weights=candidate.weights,
            clusters=candidate.clusters,
            seed=policy.seed,
            resamples=policy.resamples,
        )
        p_better = test.p_above(0.0)
    interval = test.interval(1 - 2 * policy.alpha)
    return {
        "metric": candidate.metric,
        "direction": rule.direction,
        "method": "McNemar exact, Tango score interval" if binary else "studentised cluster bootstrap",
        "n": len(candidate.ids),
        "clusters": len(set(candidate.clusters)),
        "candidate": candidate.mean,
        "baseline": baseline.mean,
        "improvement": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "level": 1 - 2 * policy.alpha,
        "margin": rule.margin,
        "p_not_worse": test.p_above(-rule.margin),
        "p_better": p_better,
        "mde": minimum_detectable_effect(test.standard_error, alpha=policy.alpha, power=policy.power),
    }


def _is_binary(values: NDArray[np.float64]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _not_shown(task: str, entry: Mapping[str, Any], policy: GatePolicy) -> str:
    span = f"{entry['improvement']:+.4g} ({entry['level']:.0%} interval {entry['low']:+.4g} to {entry['high']:+.4g})"
    if entry["high"] < 0:
        return f"{task}: worse than the baseline: {span}"
    return f"{task}: not shown to be within {entry['margin']:g} of the baseline at alpha {policy.alpha}: {span}"


def _hold(
    candidate: Scores, baseline: Scores, policy: GatePolicy, reasons: list[str], judged: Mapping[str, Mapping[str, Any]]
) -> Hold:
    return Hold(reasons=tuple(reasons), evidence=_evidence(candidate, baseline, policy, reasons, judged))


def _evidence(
    candidate: Scores,
    baseline: Scores,
    policy: GatePolicy,
    reasons: list[str],
    judged: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    return {
        "decision": "hold" if reasons else "promote",
        "reasons": reasons,
        "candidate": candidate.model,
        "baseline": baseline.model,
        "data": candidate.data,
        "alpha": policy.alpha,
        "superiority": policy.superiority,
        "min_n": policy.min_n,
        "seed": policy.seed,
        "tasks": {task: dict(entry) for task, entry in judged.items()},
    }
