"""The monitor over the output log: the same detector as behind the gateway, fed with what was answered, in order.

For a service that had no monitor, for another reference, and for checking tonight what happened today. A stretch of the
log in which a drift was found before gives no second alarm, so a job that runs every hour reports one drift once.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from llmray.artifact import Artifact
from llmray.errors import ConfigError, NotFoundError
from llmray.registry.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchConfig:
    """How a stretch of the output log is looked at."""

    average_run_length: float = 10_000.0
    """Usual requests between two false alarms, at least, in the mean."""
    neighbours: int = 5
    """Usual questions that a question is compared with."""
    hours: float | None = None
    """How far back the log is read; null for all of it."""
    seed: int = 0
    """Seed of the tie-breaking."""

    def __post_init__(self) -> None:
        if self.hours is not None and self.hours <= 0:
            raise ConfigError(f"watch.hours ({self.hours}) must be above zero, or null")
        if not self.average_run_length > 1:
            raise ConfigError(f"watch.average_run_length ({self.average_run_length}) must be above 1: try 10000")
        if self.neighbours < 1:
            raise ConfigError(f"watch.neighbours ({self.neighbours}) must be 1 or more: try 5")


def watch(registry: Registry, model: Artifact, data: Artifact, config: WatchConfig) -> dict[str, Any]:
    """Feed a model's logged questions to a fresh detector.

    Returns:
        `requests`, `alarm`, `statistic`, `threshold`, `after` (requests up to the alarm), `event` (id of the alarm in
        the registry, also if it was reported before; None without one).

    Raises:
        NotFoundError: nothing was asked.
        InputError: the snapshot has too few usual questions.
    """
    from llmray.monitor.reference import usual_messages
    from llmray.monitor.replica import MonitorReplica, Observation

    since = None if config.hours is None else datetime.now(UTC) - timedelta(hours=config.hours)
    outputs = registry.outputs(registry.output_count(model_digest=model.digest), model.digest, since)[::-1]
    if not outputs:
        raise NotFoundError(f"the log has no answer of model {model.digest[:12]} in that time: see llmray outputs")
    alerts = _RegistryAlerts(registry, since)
    monitor = MonitorReplica(
        usual_messages(data.uri)[0],
        alerts=alerts,
        average_run_length=config.average_run_length,
        neighbours=config.neighbours,
        seed=config.seed,
    )
    seen = [
        Observation(
            output_id=one.id,
            at=one.at.timestamp(),
            model_digest=one.model_digest,
            variant=one.variant,
            text=str(one.messages[-1]["content"]),
            completion=one.completion,
        )
        for one in outputs
    ]

    async def feed() -> dict[str, Any]:
        await monitor.observe(seen)
        return await monitor.status()

    status = asyncio.run(feed())
    verdict = status["models"][model.digest]
    return {
        "requests": len(seen),
        "alarm": status["alarm"],
        "statistic": verdict["statistic"],
        "threshold": config.average_run_length,
        "after": verdict["n"],
        "event": alerts.event,
    }


class _RegistryAlerts:
    """Keeps an alarm, unless the same detector found drift in the same stretch of the log before."""

    def __init__(self, registry: Registry, since: datetime | None) -> None:
        self._registry = registry
        self._since = 0.0 if since is None else since.timestamp()
        self.event: str | None = None

    async def alarm(self, payload: Mapping[str, Any]) -> None:
        known = [
            event.id
            for event in self._registry.events("drift.alarm", limit=10_000)
            if event.subject == payload["model_digest"]
            and event.payload.get("detector") == payload["detector"]
            and event.payload["asked_at"] >= self._since
        ]
        self.event = known[0] if known else self._registry.add_alarm(payload)
