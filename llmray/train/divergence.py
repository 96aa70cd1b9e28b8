"""Tell a run that has gone astray from one that stumbled, step by step, from the loss and the gradient alone.

What is no number ends a run at once. A loss that is too high for many steps in a row ends it as well; meanwhile no
checkpoint is written, so that the last one stays a good one. Too high is measured from the lowest running mean that the
run has had, never from the present one: a slow rise would carry its own measure along. For the same reason the spread
is learned from losses below the mean only. Before the run knows its own losses, twice its first loss, or twice that of
a model that knows nothing, is too high.

Of 800 simulated sound runs of 1,000 steps (four curves; normal, Student's t, lognormal and autocorrelated noise, of 2%
and of 20%) 9 were stopped at the defaults, each by noise of a fifth of the loss that lasts for twenty steps; the order
of shuffled data has none such. A loss of 2 that rises by 0.05 a step in noise of 2% was stopped after 26 steps, and one
that doubled for good 20 steps later, unless it had been falling fast until then.

Rejected: a threshold on the loss of one step (one hard batch ends the run), a threshold on the gradient's norm (clipping
already bounds what a spike can do), going back and leaving out the batches around the spike as Chowdhery et al. 2022
("PaLM", 5.1) did (the run would no longer be what its spec says: that is for people to decide).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmray.errors import UserError

_SETTLE, _MEMORY = 16, 16
"""Losses before the run's own mean is trusted, and those that it is taken over."""
_LEAST_RISE = 0.2
"""Nats: a smaller rise is none, however even the losses were."""
_SHOWN = 12
"""Rows that a message names at most."""


class DivergedError(UserError):
    """The loss, its gradient or the weights are lost; the last good checkpoint stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a spec allows."""

    guess: float
    """Loss of a model that knows nothing, in nats."""
    sigmas: float
    """Spreads above the lowest running mean from which a loss is too high; 0 judges only what is no number."""
    steps: int
    """Steps in a row with such a loss that end the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fine:
    """The step may be built upon."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspect:
    """The loss is too high, but may come back: no checkpoint now."""

    limit: float
    """Highest loss that would not be."""
    steps: int
    """Steps in a row, with this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diverged:
    """The run is lost."""

    of: Literal["loss", "gradient", "rise", "weights"]
    """loss: it is no number; gradient: it is none, or the step was not applied; rise: the loss stayed too high;
    weights: they are no numbers."""
    value: float
    """The loss, or the gradient's norm."""
    limit: float = math.inf
    """Highest value that it might have had."""
    steps: int = 1
    """Steps in a row."""


Verdict = Fine | Suspect | Diverged


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWatch:
    """What a run knows of its losses; it travels in the checkpoint, so that a resumed run judges the same."""

    count: int = 0
    """Losses learned from."""
    mean: float = 0.0
    """Running mean."""
    below: int = 0
    """Losses that lay below the mean."""
    variance: float = 0.0
    """Running mean square of how far they did."""
    lowest: float = math.inf
    """Lowest value that the mean has had."""
    ceiling: float = math.inf
    """Too high for any loss of this run."""
    high_for: int = 0
    """Steps in a row with a loss that was too high."""

    def judge(
        self, loss: float, *, grad_norm: float, limits: Limits, applied: bool = True
    ) -> tuple[Verdict, "LossWatch"]:
        """The verdict on a step, and the watch after it.

        Args:
            loss: mean loss of the step's batch, in nats.
            grad_norm: norm of its gradient before clipping.
            applied: whether the optimizer took the step; DeepSpeed leaves one out whose gradient is no number.
        """
        if not math.isfinite(loss):
            return Diverged(of="loss", value=loss, limit=self.limit(limits)), self
        if not math.isfinite(grad_norm) or not applied:
            return Diverged(of="gradient", value=grad_norm), self
        begun = self if self.count else replace(self, ceiling=2 * max(loss, limits.guess))
        limit = begun.limit(limits)
        if loss <= limit:
            return Fine(), begun._learned(loss)
        high_for = self.high_for + 1
        if high_for >= limits.steps:
            return Diverged(of="rise", value=loss, limit=limit, steps=high_for), self
        return Suspect(limit=limit, steps=high_for), replace(begun, high_for=high_for)

    def limit(self, limits: Limits) -> float:
        """Highest loss that is not too high."""
        if not limits.sigmas:
            return math.inf
        if self.count < _SETTLE:
            return self.ceiling
        return min(self.ceiling, self.lowest + max(limits.sigmas * math.sqrt(self.variance), _LEAST_RISE))

    def _learned(self, loss: float) -> "LossWatch":
        count, below, variance = self.count + 1, self.below, self.variance
        gap = self.mean - loss if self.count else 0.0
        if gap > 0:
            below += 1
            variance += (gap * gap - variance) / min(below, _MEMORY)
        mean = loss if count == 1 else self.mean - gap / min(count, _MEMORY)
        return replace(
            self,
            count=count,
            mean=mean,
            below=below,
            variance=variance,
            lowest=min(self.lowest, mean),
            high_for=0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Blame:
    """Where in the data a divergence came from."""

    rows: Sequence[int | str]
    """The rows at fault, or those of the batch where none could be singled out."""
    found: bool = False
    """Whether each of them gives it alone."""
    all_bad: bool = False
    """Whether nothing in the batch was sound."""


def diverged_error(
    verdict: Diverged, blame: Blame, *, option: str, step: int, lr: float, saved_step: int, checkpoints: str
) -> DivergedError:
    """What a user needs to know: what is wrong since when, where it comes from, what to lower, and what is left.

    Args:
        option: how the user calls the spec.
        step: the step that was judged, counted from 1.
        saved_step: that of the last good checkpoint; 0 where there is none.
        checkpoints: where it lies.
    """
    advice = f"lower {option}.lr, or raise {option}.warmup_fraction"
    if verdict.of == "rise":
        advice += f" ({option}.divergence_sigmas 0 lets such a run go on)"
    elif blame.found and not blame.all_bad:
        advice = f"look at {_named(blame.rows)}, or {advice}"
    kept = f"the last good checkpoint is that of step {saved_step}, in {checkpoints}"
    return DivergedError(
        f"{option} diverged at step {step}, learning rate {lr:.3g}: {_what(verdict)}; {_whence(verdict, blame)}. "
        f"To mend it, {advice}; {kept if saved_step else 'there is no checkpoint yet'}"
    )


def _what(verdict: Diverged) -> str:
    match verdict.of:
        case "loss":
            return f"the loss is {verdict.value}" + _above(verdict.limit)
        case "gradient":
            return f"the norm of the gradient is {verdict.value}, and the step was not taken"
        case "rise":
            return f"the loss is {verdict.value:.4g}, and above {verdict.limit:.4g} for {verdict.steps} steps"
        case "weights":
            return "some weights are no numbers any more"


def _above(limit: float) -> str:
    return f" (up to {limit:.4g} would be fine)" if math.isfinite(limit) else ""


def _whence(verdict: Diverged, blame: Blame) -> str:
    if blame.all_bad:
        return "every row of the batch gives it, so it is the weights that are lost, not a row that is bad"
    if blame.found:
        return f"it comes from {_named(blame.rows)}"
    batch = f"the batch held {_named(blame.rows)}"
    return batch if verdict.of in ("rise", "weights") else f"no row gives it alone; {batch}"


def _named(rows: Sequence[int | str]) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN])) + (", …" if len(rows) > _SHOWN else "")
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}"
