"""The statistics behind an evaluation: intervals, paired tests, and what a test of this size could have seen at all.

Two models answer the same items, so everything is paired: the variance of the difference is what counts, and it is much
smaller than the two variances added (Miller 2024, arXiv 2411.00640, section 4). Right-or-wrong items have exact and
score methods (McNemar; Tango 1998). Everything else, and items that come in clusters, goes through one studentised
cluster bootstrap (Efron and Tibshirani 1993, chapter 12.5; Cameron, Gelbach and Miller 2008): its one-sided errors
shrink as 1/n, where the percentile bootstrap's and the t-test's shrink as 1/sqrt(n) on skewed losses (Hall 1988).

Rejected: unpaired comparisons (as in lm-eval's comparator); the percentile bootstrap, for that reason; SciPy, of which
this would use a normal quantile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from llmray.errors import InputError

_RESOLUTION = 1e-12
_NORMAL = NormalDist()
_BLOCK = 4_000_000
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    mean: float
    """Point estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Score interval for a proportion of independent items (Wilson 1927).

    Preferred to the normal interval, whose coverage collapses near 0 and 1 (Brown, Cai and DasGupta 2001).
    """
    if not 0 <= successes <= n or n == 0:
        raise InputError(f"a proportion needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = _NORMAL.inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(mean=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def mcnemar(gained: int, lost: int, *, two_sided: bool = False) -> float:
    """Exact p-value of McNemar's test from the discordant pairs.

    Args:
        gained: items that the candidate has right and the baseline wrong.
        lost: the other way round.
        two_sided: whether a worse candidate counts as evidence too; otherwise small p means "better".
    """
    discordant = gained + lost
    upper = _binomial_upper_tail(gained, discordant)
    if not two_sided:
        return upper
    return min(1.0, 2 * min(upper, _binomial_upper_tail(lost, discordant)))


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedProportions:
    """Difference between two accuracies on the same n items: Tango's score method (Statistics in Medicine 17, 1998).

    Keeps its level at the few discordant pairs that two similar models leave, where Wald's interval has width zero.
    """

    gained: int
    """Items that the candidate alone has right."""
    lost: int
    """Items that the baseline alone has right."""
    n: int
    """All items."""

    @property
    def estimate(self) -> float:
        """Accuracy of the candidate less accuracy of the baseline."""
        return (self.gained - self.lost) / self.n

    @property
    def standard_error(self) -> float:
        """Standard error of the estimate, with half a pair added to each discordant cell so that it is never zero."""
        gained, lost = self.gained + 0.5, self.lost + 0.5
        return math.sqrt(gained + lost - (gained - lost) ** 2 / self.n) / self.n

    def p_above(self, bound: float) -> float:
        """p-value against "the difference is `bound` or less"."""
        return 1.0 - _NORMAL.cdf(self._score(bound))

    def interval(self, level: float) -> Interval:
        """The differences that a two-sided test at 1 - level does not reject."""
        z = _NORMAL.inv_cdf(0.5 + level / 2)
        return Interval(mean=self.estimate, low=self._solve(z), high=self._solve(-z))

    def _score(self, difference: float) -> float:
        if abs(difference) < _RESOLUTION:
            difference = 0.0  # nearer to zero than the variance below can tell
        a = 2 * self.n
        b = -self.gained - self.lost + (2 * self.n - self.gained + self.lost) * difference
        c = -self.lost * difference * (1 - difference)
        root = math.sqrt(max(0.0, b * b - 4 * a * c))
        lost_share = -2 * c / (b + root) if b > 0 else (root - b) / (2 * a)
        variance = self.n * (2 * lost_share + difference * (1 - difference))
        distance = self.gained - self.lost - self.n * difference
        if variance > 0:
            return distance / math.sqrt(variance)
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)

    def _solve(self, score: float) -> float:
        low, high = -1.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if self._score(middle) > score:
                low = middle
            else:
                high = middle
        return (low + high) / 2


class BootstrapMean:
    """A weighted mean over items that may come in clusters, and its studentised bootstrap distribution.

    The mean is the ratio of sums, so a loss per token weighs items by their tokens. Whole clusters are drawn again:
    items about one thing stand or fall together, and counting them as independent overstates what is known.
    """

    def __init__(
        self,
        values: Sequence[float] | Floats,
        *,
        seed: int,
        weights: Sequence[float] | Floats | None = None,
        clusters: Sequence[str] | None = None,
        resamples: int = 4000,
    ) -> None:
        """Draw the resamples.

        Args:
            values: one per item.
            seed: of the resampling.
            weights: one per item, not negative; equal by default.
            clusters: the cluster of each item; every item is its own by default.

        Raises:
            InputError: fewer than two clusters, weights that sum to zero, or values that are not finite.
        """
        weighted_C, weight_C = _cluster_sums(values, weights, clusters)
        self.clusters = len(weight_C)
        if self.clusters < 2:
            raise InputError(f"an interval needs at least 2 independent items or clusters, got {self.clusters}")
        if not weight_C.sum() > 0 or not np.isfinite(weighted_C).all():
            raise InputError("an interval needs finite values and weights with a positive sum")
        moments_5C = np.stack([weighted_C, weight_C, weighted_C**2, weighted_C * weight_C, weight_C**2])
        means, errors = _ratio(moments_5C.sum(axis=1, keepdims=True), self.clusters)
        self.estimate, self.standard_error = float(means[0]), float(errors[0])
        self._t_sorted = np.sort(self._draw(moments_5C, np.random.default_rng(seed), resamples))

    def p_above(self, bound: float) -> float:
        """p-value against "the mean is `bound` or less"; at least 1 / (resamples + 1)."""
        distance = self.estimate - bound
        t = distance / self.standard_error if self.standard_error > 0 else math.copysign(math.inf, distance)
        if distance == 0 and self.standard_error == 0:
            return 1.0
        as_extreme = len(self._t_sorted) - int(np.searchsorted(self._t_sorted, t, side="left"))
        return (1 + as_extreme) / (len(self._t_sorted) + 1)

    def interval(self, level: float) -> Interval:
        """Two-sided interval, equal tails."""
        low_t, high_t = np.quantile(self._t_sorted, [0.5 - level / 2, 0.5 + level / 2])
        return Interval(
            mean=self.estimate,
            low=float(self.estimate - high_t * self.standard_error),
            high=float(self.estimate - low_t * self.standard_error),
        )

    def _draw(self, moments_5C: Floats, generator: np.random.Generator, resamples: int) -> Floats:
        equal = np.full(self.clusters, 1.0 / self.clusters)
        block = max(1, _BLOCK // self.clusters)
        t_blocks = []
        for start in range(0, resamples, block):
            counts_BC = generator.multinomial(self.clusters, equal, size=min(block, resamples - start))
            means_B, errors_B = _ratio(moments_5C @ counts_BC.T, self.clusters)
            t_blocks.append(
                np.divide(means_B - self.estimate, errors_B, out=np.zeros_like(means_B), where=errors_B > 0)
            )
        return np.concatenate(t_blocks)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those at most alpha keeps the chance of any false rejection at alpha (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def minimum_detectable_effect(standard_error: float, *, alpha: float, power: float) -> float:
    """Smallest true difference that a one-sided test at `alpha` finds with chance `power` (Miller 2024, section 5)."""
    return (_NORMAL.inv_cdf(1 - alpha) + _NORMAL.inv_cdf(power)) * standard_error


def _binomial_upper_tail(at_least: int, n: int) -> float:
    if at_least <= 0:
        return 1.0
    if n <= 1000:
        return sum(math.comb(n, k) for k in range(at_least, n + 1)) / 2**n
    log_half = n * math.log(0.5)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + log_half for k in range(at_least, n + 1)]
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def _cluster_sums(
    values: Sequence[float] | Floats, weights: Sequence[float] | Floats | None, clusters: Sequence[str] | None
) -> tuple[Floats, Floats]:
    value_N = np.asarray(values, dtype=np.float64)
    weight_N = np.ones_like(value_N) if weights is None else np.asarray(weights, dtype=np.float64)
    if clusters is None:
        return value_N * weight_N, weight_N
    _, cluster_N = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    count = int(cluster_N.max(initial=-1)) + 1
    sums_2C = np.zeros((2, count), dtype=np.float64)
    np.add.at(sums_2C[0], cluster_N, value_N * weight_N)
    np.add.at(sums_2C[1], cluster_N, weight_N)
    return sums_2C[0], sums_2C[1]


def _ratio(sums_5B: Floats, clusters: int) -> tuple[Floats, Floats]:
    """Ratio of means and its linearised standard error from sums of (a, b, a^2, ab, b^2) over C clusters."""
    a_B, b_B, aa_B, ab_B, bb_B = sums_5B
    safe_B = np.where(b_B > 0, b_B, 1.0)
    mean_B = a_B / safe_B
    squares_B = np.maximum(aa_B - 2 * mean_B * ab_B + mean_B**2 * bb_B, 0.0)
    squares_B = np.where(squares_B > 1e-12 * np.maximum(aa_B, 1e-300), squares_B, 0.0)
    return mean_B, np.sqrt(squares_B * clusters / (clusters - 1)) / safe_B
