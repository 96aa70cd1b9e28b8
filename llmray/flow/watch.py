"""The monitor over the output log: the same detector as behind the gateway, fed with what was answered, in order.

For a service that had no monitor, for another reference, and for checking tonight what happened today. Its alarm has an
id made from the log, so a job that runs every hour reports one drift once.
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


def watch(registry: Registry, model: Artifact, data: Artifact, config: WatchConfig) -> dict[str, Any]:
    """Feed a model's logged questions to a fresh detector.

    Returns:
        `requests`, `alarm`, `statistic`, `threshold`, `after` (requests up to the alarm), `event` (of the alarm).

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
    monitor = MonitorReplica(
        usual_messages(data.uri)[0],
        alerts=_RegistryAlerts(registry),
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
    }


class _RegistryAlerts:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def alarm(self, payload: Mapping[str, Any]) -> None:
        """Keep an alarm, once by its id."""
        self._registry.add_alarm(payload)
