"""One rollout, step by step: the shell around `rollout.decide`.

Counts come from the gateway, alarms from the registry; each move of the weight is an event. Counts are taken from where
the rollout began, so what happened before never speaks for or against the new model.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from llmray.serve.rollout import Advance, RollBack, RolloutPolicy, RolloutState, decide
from llmray.serve.tally import Tally
from llmray.serve.variants import GatewayConfig, Variant

logger = logging.getLogger(__name__)


class Lever(Protocol):
    """What a rollout moves and reads."""

    def split(self, config: GatewayConfig) -> None:
        """Have the gateway use a configuration."""
        ...

    def tally(self, app: str) -> Tally:
        """What was counted of an application since the gateway started."""
        ...

    def alarms(self, digest: str, since: datetime) -> int:
        """Alarms of the monitors about a model."""
        ...

    def event(self, kind: str, subject: str, payload: Mapping[str, Any]) -> None:
        """Keep what was done."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutResult:
    status: Literal["done", "rolled_back"]
    reason: str
    digest: str
    """The model that has all the traffic now."""
    steps: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)
    """For each weight: what was counted."""
    judged: bool = True
    """False where too few requests came to say anything about the new model."""


class Canary:
    """A new model on its way to all of the traffic."""

    def __init__(
        self,
        lever: Lever,
        config: GatewayConfig,
        new: Variant,
        policy: RolloutPolicy,
        *,
        step_timeout_s: float,
        poll_s: float,
    ) -> None:
        """Roll `new` out beside the first variant of `config`, from the weight on that it has there."""
        self._lever = lever
        self._config = config
        self._stable = config.variants[0]
        self._new = new
        self._policy = policy
        self._step_timeout_s = step_timeout_s
        self._poll_s = poll_s
        self._began = datetime.now(UTC)
        self._before = {app: lever.tally(app) for app in (self._stable.app, new.app)}
        self._steps: list[dict[str, Any]] = []

    def run(self, drive: Callable[[float], None] | None) -> tuple[RolloutResult, GatewayConfig]:
        """Take every step; returns what came of it, and the configuration that holds now."""
        verdict: Advance | RollBack = Advance()
        left_at = _weight(self._config, self._new)
        for weight in (step for step in self._policy.steps if step >= left_at - 1e-9):
            verdict = self._step(weight, drive)
            if isinstance(verdict, RollBack):
                break
        back = isinstance(verdict, RollBack)
        winner = (self._stable if back else self._new).model_copy(update={"name": "stable", "weight": 100.0})
        final = self._config.model_copy(update={"variants": [winner]})
        self._lever.split(final)
        reason = verdict.reason if isinstance(verdict, RollBack) else "every step passed"
        self._lever.event(
            "rollout.rolled_back" if back else "rollout.done",
            self._new.digest,
            {"reason": reason, "steps": self._steps},
        )
        result = RolloutResult(
            status="rolled_back" if back else "done",
            reason=reason,
            digest=winner.digest,
            steps=tuple(self._steps),
            judged=not isinstance(verdict, RollBack) or verdict.judged,
        )
        return result, final

    def _step(self, weight: float, drive: Callable[[float], None] | None) -> Advance | RollBack:
        variants = [
            self._stable.model_copy(update={"weight": 100.0 - weight}),
            self._new.model_copy(update={"name": "canary", "weight": weight}),
        ]
        self._lever.split(self._config.model_copy(update={"variants": variants}))
        self._lever.event("rollout.step", self._new.digest, {"weight": weight, "stable": self._stable.digest})
        at_start = _ended(self._lever.tally(self._new.app))
        if drive is not None:
            drive(weight)
        deadline = time.monotonic() + self._step_timeout_s
        while True:
            state = self._look(at_start)
            verdict = decide(state, self._policy)
            if isinstance(verdict, Advance | RollBack):
                break
            if time.monotonic() > deadline:
                verdict = RollBack(f"after {self._step_timeout_s:g} s there were only {verdict.reason}", judged=False)
                break
            time.sleep(self._poll_s)
        requests, errors = _ended(state.canary), state.canary.errors
        self._steps.append({"weight": weight, "requests": requests, "errors": errors})
        logger.info("rollout: %g%% to %s: %d requests, %d errors", weight, self._new.digest[:12], requests, errors)
        return verdict

    def _look(self, at_start: int) -> RolloutState:
        canary = self._lever.tally(self._new.app)
        return RolloutState(
            stable=self._lever.tally(self._stable.app) - self._before[self._stable.app],
            canary=canary - self._before[self._new.app],
            at_step=_ended(canary) - at_start,
            alarms=0 if self._policy.ignore_alarms else self._lever.alarms(self._new.digest, self._began),
        )


def _weight(config: GatewayConfig, new: Variant) -> float:
    """Percent of the traffic that a rollout which was broken off had given to a model."""
    total = sum(variant.weight for variant in config.variants)
    return next((100.0 * one.weight / total for one in config.variants[1:] if one.app == new.app), 0.0)


def _ended(tally: Tally) -> int:
    return tally.requests - tally.running
