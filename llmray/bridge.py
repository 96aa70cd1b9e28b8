"""The registry as serving and monitoring reach it: one Serve replica, the only one that opens the database.

SQLite takes one writer, so gateways and monitors call this one, off the request path. Rejected: a registry connection in
each replica.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ray import serve

from llmray.errors import NotFoundError
from llmray.outputs import Feedback, Output
from llmray.prompt_store import RegistryPrompts
from llmray.serve.packing import unpack
from llmray.serve.ports import Key
from llmray.serve.replica import REGISTRY

_ALARM_S = 3.0
"""How long the monitor waits for the registry: less than the gateway waits for the monitor."""


@serve.deployment(name=REGISTRY, max_ongoing_requests=100)
class RegistryBridge(RegistryPrompts):
    """The registry as replicas reach it. Every call is one short transaction in a thread."""

    def __init__(self, url: str | None = None, *, busy_timeout_s: float = 4.0) -> None:
        """Open the registry.

        Args:
            busy_timeout_s: how long SQLite waits for its turn; less than those who ask wait for an answer.
        """
        # imported here: building the other applications, in processes of their own, needs no database library
        from llmray.registry.registry import Registry

        let_others_first()
        super().__init__(Registry.open(url, busy_timeout_s=busy_timeout_s))

    async def put_packed(self, packed: Sequence[bytes]) -> None:
        """Keep answers that come from another process."""
        await asyncio.to_thread(lambda: self._registry.put_outputs(unpack(packed)))

    async def put_feedback(self, feedback: Feedback) -> None:
        """Keep feedback on answers that are there."""
        await asyncio.to_thread(self._registry.put_feedback, feedback)

    async def output(self, output_id: str) -> Output:
        """One answer.

        Raises:
            NotFoundError: there is none of that id.
        """
        found = await asyncio.to_thread(self._registry.output, output_id)
        if found is None:
            raise NotFoundError(f"there is no output {output_id}")
        return found

    async def key(self, token: str) -> Key | None:
        """Whom a token stands for."""
        found = await asyncio.to_thread(self._registry.authenticate, token)
        if found is None:
            return None
        quota = await asyncio.to_thread(self._registry.quota, found.project)
        return Key(
            id=found.token_id,
            project=found.project,
            user=found.user,
            scopes=found.scopes,
            requests_per_minute=quota.requests_per_minute,
            tokens_per_minute=quota.tokens_per_minute,
        )

    async def any_keys(self) -> bool:
        """Whether a key was ever made."""
        return await asyncio.to_thread(self._registry.any_tokens)

    async def add_event(self, kind: str, subject: str, payload: Mapping[str, Any]) -> None:
        """Keep an event: an alarm, a step of a rollout."""
        await asyncio.to_thread(self._registry.add_event, kind, subject, payload)

    async def alarm(self, payload: Mapping[str, Any]) -> None:
        """Keep a monitor's alarm, once by its `alarm_id`."""
        await asyncio.to_thread(self._registry.add_alarm, payload)

    async def count_alarms(self, subject: str, since: datetime) -> int:
        """Alarms about a model since a moment."""
        events = await asyncio.to_thread(self._registry.events, "drift.alarm", since)
        return sum(event.subject == subject for event in events)

    def __del__(self) -> None:
        if opened := getattr(self, "_registry", None):
            opened.close()


class BridgeAlerts:
    """Where the monitor's alarms go: events of kind `drift.alarm` in the registry."""

    def __init__(self, app: str) -> None:
        self._app = app

    async def alarm(self, payload: Mapping[str, Any]) -> None:
        """Keep an alarm."""
        async with asyncio.timeout(_ALARM_S):
            await serve.get_deployment_handle(REGISTRY, self._app).alarm.remote(dict(payload))


def let_others_first() -> None:
    """Have this process never take a core from one that serves: woken for a batch, it would hold a gateway on the same core
    up for milliseconds. Where the system has no such class of processes, nothing changes."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
