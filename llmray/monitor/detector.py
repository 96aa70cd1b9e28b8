"""Quiet or alarm, one score at a time, with a stated rate of false alarms.

Each score is ranked among the calibration scores and the earlier stream, which gives a p-value; as long as stream and
calibration are exchangeable these are independent and uniform, whatever the scores' distribution (Vovk, Gammerman and
Shafer 2022, theorem 11.1). Bets against uniformity that each multiply to 1 on average make Shiryaev-Roberts statistics
R_n = (1 + R_{n-1}) f(p_n), and a fixed mixture of them is one too: R_n - n is a martingale. Hence E[R_n] = n, so by
optional stopping the mean number of scores until R first reaches c is at least c, and the chance of an alarm among the
first n is at most n / c (Vovk et al. 2021, "Retrain or not retrain", section 4; Shin, Ramdas and Rinaldo 2024,
"E-detectors"). The threshold *is* the wanted average run length (ARL).

That promise needs exchangeability, and nothing else. What breaks it: calibration messages that are not usual traffic;
bursts (one client repeating itself, sessions, a nightly batch); seasons. An alarm then is true in its way: the order of
the traffic carries information. Text that is unusual in a way the score does not see raises none.

Memory is bounded without breaking the promise: a full pool takes the newcomer in and then evicts one of all at random,
which leaves its content independent of who came last. (Classical reservoir sampling favours old members, and a window
new ones; both make successive ranks dependent.) Rejected: thresholds on a sliding window's p-value, which are wrong as
often as somebody looks; a reference that is drawn from again and again (a nominal run length of 1,000 becomes 318 with
500 reference points).
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmray.errors import ConfigError, InputError

_SMALLEST_P = 1e-9
_BETS: tuple[tuple[float, float, float, bool], ...] = (
    # share of the mixture, exponent, stake, on high scores
    (0.30, 0.2, 0.9, True),
    (0.30, 0.4, 0.5, True),
    (0.20, 0.5, 0.2, True),
    (0.10, 0.4, 0.5, False),
    (0.10, 0.5, 0.2, False),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    state: Literal["quiet", "alarm"]
    """Latched: after an alarm it stays `alarm` until `reset`."""
    statistic: float
    """The Shiryaev-Roberts statistic now, or at the alarm."""
    n: int
    """Scores seen since the start or the last reset, up to the alarm."""


class Detector:
    """A change detector over nonconformity scores. Uniforms come from outside; there is no clock."""

    def __init__(self, calibration: Sequence[float], *, average_run_length: float, max_scores: int = 4096) -> None:
        """Start quiet.

        Args:
            calibration: scores of usual messages that the score was not made from.
            average_run_length: mean number of usual scores between false alarms, at least.
            max_scores: scores kept to rank against.

        Raises:
            ConfigError: an impossible run length, or a pool that cannot hold the calibration.
            InputError: too few calibration scores.
        """
        if not average_run_length > 1:
            raise ConfigError(f"monitor.average_run_length ({average_run_length}) must be above 1: try 10000")
        if len(calibration) < 20:
            raise InputError(f"a detector needs at least 20 calibration scores, got {len(calibration)}")
        if max_scores < len(calibration):
            raise ConfigError(f"monitor.max_scores ({max_scores}) must hold the {len(calibration)} calibration scores")
        self.average_run_length = float(average_run_length)
        self._max_scores = max_scores
        self._pool = sorted(float(score) for score in calibration)
        self._bets = [0.0] * len(_BETS)
        self._n = 0
        self._alarmed = False

    def update(self, scores: Sequence[float], uniforms: Sequence[tuple[float, float]]) -> Verdict:
        """Take scores in the order in which they came.

        Args:
            scores: higher is stranger.
            uniforms: two per score, independent and uniform in [0, 1): the first breaks ties, the second evicts.
        """
        for score, (tie, evict) in zip(scores, uniforms, strict=True):
            if self._alarmed:
                break
            self._step(float(score), tie, evict)
        return self.verdict()

    def verdict(self) -> Verdict:
        """The state now."""
        return Verdict(state="alarm" if self._alarmed else "quiet", statistic=self._statistic(), n=self._n)

    def reset(self, reason: str) -> None:
        """Leave the alarm behind and start over with the scores seen so far as what is usual.

        Args:
            reason: why; a person or a retrained model answers for it.

        Raises:
            InputError: no reason.
        """
        if not reason.strip():
            raise InputError("a detector is reset for a reason: say which")
        self._bets = [0.0] * len(_BETS)
        self._n = 0
        self._alarmed = False

    def to_dict(self) -> dict[str, Any]:
        """The whole state as plain values."""
        return {
            "average_run_length": self.average_run_length,
            "max_scores": self._max_scores,
            "pool": list(self._pool),
            "bets": list(self._bets),
            "n": self._n,
            "alarmed": self._alarmed,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Detector":
        """The detector that `to_dict` described; it goes on as if nothing had happened."""
        detector = cls(state["pool"], average_run_length=state["average_run_length"], max_scores=state["max_scores"])
        detector._bets = [float(bet) for bet in state["bets"]]
        detector._n = state["n"]
        detector._alarmed = state["alarmed"]
        return detector

    def _step(self, score: float, tie: float, evict: float) -> None:
        left, right = bisect.bisect_left(self._pool, score), bisect.bisect_right(self._pool, score)
        higher, equal = len(self._pool) - right, right - left
        p_value = (higher + (1.0 - tie) * (equal + 1)) / (len(self._pool) + 1)
        self._bets = [
            (1.0 + bet) * _payoff(p_value if high else 1.0 - p_value, exponent, stake)
            for bet, (_, exponent, stake, high) in zip(self._bets, _BETS, strict=True)
        ]
        self._n += 1
        self._alarmed = self._statistic() >= self.average_run_length
        self._pool.insert(right, score)
        if len(self._pool) > self._max_scores:
            self._pool.pop(int(evict * len(self._pool)))

    def _statistic(self) -> float:
        return sum(share * bet for bet, (share, _, _, _) in zip(self._bets, _BETS, strict=True))


def _payoff(p_value: float, exponent: float, stake: float) -> float:
    """Keep part of the capital, and put the stake on small p-values: integrates to 1 over [0, 1]."""
    return 1.0 - stake + stake * exponent * float(max(p_value, _SMALLEST_P) ** (exponent - 1.0))
