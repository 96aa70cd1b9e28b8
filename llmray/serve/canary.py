"""One rollout, step by step: the shell around `rollout.decide`.

Counts come from the gateway, alarms from the registry; each move of the weight is an event. Counts are taken from where
the rollout began, so what happened before never speaks for or against the new model. A rollout that breaks off (the gateway
does not take its configuration, Ctrl-C) gives the traffic back: nobody would watch the canary any more.
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

    def watch_anew(self, digest: str, reason: str) -> None:
        """Have the monitor forget what it knows of a model: of one that has alarmed it would say nothing more."""
        ...

    def alarms(self, digest: str, since: datetime) -> int | None:
        """Alarms of the monitors about a model; None where they cannot be read now."""
        ...

    def event(self, kind: str, subject: str, payload: Mapping[str, Any]) -> None:
        """Keep what was done, if that can be done now."""
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
        self._before: dict[str, Tally] = {}
        self._steps: list[dict[str, Any]] = []

    def run(self, drive: Callable[[float], None] | None) -> tuple[RolloutResult, GatewayConfig]:
        """Take every step; returns what came of it, and the configuration that holds now."""
        try:
            verdict = self._take_steps(drive)
            back = isinstance(verdict, RollBack)
            final = self._all_to(self._stable if back else self._new)
            self._lever.split(final)
        except BaseException as error:  # Ctrl-C too
            self._break_off(error)
            raise
        reason = verdict.reason if isinstance(verdict, RollBack) else "every step passed"
        self._lever.event(
            "rollout.rolled_back" if back else "rollout.done",
            self._new.digest,
            {"reason": reason, "steps": self._steps},
        )
        result = RolloutResult(
            status="rolled_back" if back else "done",
            reason=reason,
            digest=final.variants[0].digest,
            steps=tuple(self._steps),
            judged=not isinstance(verdict, RollBack) or verdict.judged,
        )
        return result, final

    def _take_steps(self, drive: Callable[[float], None] | None) -> Advance | RollBack:
        self._lever.watch_anew(self._new.digest, "it is rolled out")
        self._before = {app: self._lever.tally(app) for app in (self._stable.app, self._new.app)}
        left_at = _weight(self._config, self._new)
        verdict: Advance | RollBack = Advance()
        for weight in (step for step in self._policy.steps if step >= left_at - 1e-9):
            verdict = self._step(weight, drive)
            if isinstance(verdict, RollBack):
                break
        return verdict

    def _all_to(self, variant: Variant) -> GatewayConfig:
        winner = variant.model_copy(update={"name": "stable", "weight": 100.0})
        return self._config.model_copy(update={"variants": [winner]})

    def _break_off(self, error: BaseException) -> None:
        """Give the traffic back to the stable model; where that fails too, the next call will."""
        digest = self._new.digest
        try:
            self._lever.split(self._all_to(self._stable))
        except Exception:
            logger.exception("the rollout of %s broke off, and may have left it with its traffic", digest[:12])
            return
        logger.warning("the rollout of %s broke off: the stable model has all of the traffic", digest[:12])
        self._lever.event("rollout.abandoned", digest, {"reason": f"{type(error).__name__}: {error}"})

    def _step(self, weight: float, drive: Callable[[float], None] | None) -> Advance | RollBack:
        variants = [
            self._stable.model_copy(update={"weight": 100.0 - weight}),
            self._new.model_copy(update={"name": "canary", "weight": weight}),
        ]
        self._lever.split(self._config.model_copy(update={"variants": variants}))
        self._lever.event("rollout.step", self._new.digest, {"weight": weight, "stable": self._stable.digest})
        at_start = self._lever.tally(self._new.app).ended
        if drive is not None:
            drive(weight)
        deadline = time.monotonic() + self._step_timeout_s
        while True:
            state = self._look(at_start)
            verdict = decide(state, self._policy)
            if isinstance(verdict, Advance | RollBack):
                break
            if time.monotonic() > deadline:
                verdict = RollBack(f"no verdict within {self._step_timeout_s:g} s: {verdict.reason}", judged=False)
                break
            time.sleep(self._poll_s)
        requests, errors = state.canary.ended, state.canary.errors
        self._steps.append({"weight": weight, "requests": requests, "errors": errors})
        logger.info("rollout: %g%% to %s: %d requests, %d errors", weight, self._new.digest[:12], requests, errors)
        return verdict

    def _look(self, at_start: int) -> RolloutState:
        canary = self._lever.tally(self._new.app)
        return RolloutState(
            stable=self._lever.tally(self._stable.app) - self._before[self._stable.app],
            canary=canary - self._before[self._new.app],
            at_step=canary.ended - at_start,
            alarms=0 if self._policy.ignore_alarms else self._lever.alarms(self._new.digest, self._began),
        )


def _weight(config: GatewayConfig, new: Variant) -> float:
    """Percent of the traffic that a rollout which was broken off had given to a model."""
    total = sum(variant.weight for variant in config.variants)
    return next((100.0 * one.weight / total for one in config.variants[1:] if one.app == new.app), 0.0)
