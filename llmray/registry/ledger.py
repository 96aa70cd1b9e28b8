"""What was spent, and what happened: two logs that only grow."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select

from llmray.errors import NotFoundError
from llmray.registry import schema
from llmray.registry.database import Part, insert_new
from llmray.registry.records import EventRecord, SpendRecord


class Ledger(Part):
    def add_spend(self, run_id: str, step: str, *, core_seconds: float, gpu_seconds: float, money: float = 0.0) -> None:
        """Charge a step of a run.

        Raises:
            NotFoundError: there is no such run.
        """
        with self._db.write() as connection:
            if connection.execute(select(schema.runs.c.id).filter_by(id=run_id)).first() is None:
                raise NotFoundError(f"there is no run {run_id}: see llmray runs")
            connection.execute(
                insert(schema.spend).values(
                    run_id=run_id,
                    step=step,
                    core_seconds=core_seconds,
                    gpu_seconds=gpu_seconds,
                    money=money,
                    at=self._db.now(),
                )
            )

    def spend(self, project: str | None = None) -> list[SpendRecord]:
        """What each step of each run has cost, in the order they were first charged."""
        spend, runs = schema.spend, schema.runs
        query = (
            select(
                runs.c.id.label("run_id"),
                runs.c.name.label("run"),
                runs.c.project,
                spend.c.step,
                func.sum(spend.c.core_seconds).label("core_seconds"),
                func.sum(spend.c.gpu_seconds).label("gpu_seconds"),
                func.sum(spend.c.money).label("money"),
            )
            .join(runs, runs.c.id == spend.c.run_id)
            .group_by(runs.c.id, runs.c.name, runs.c.project, spend.c.step)
            .order_by(func.min(spend.c.seq))
        )
        if project is not None:
            query = query.where(runs.c.project == project)
        with self._db.read() as connection:
            return [SpendRecord(**row._mapping) for row in connection.execute(query)]

    def add_event(self, kind: str, subject: str, payload: Mapping[str, Any]) -> str:
        """Record that something happened; returns the event's id."""
        event_id = self._db.new_id()
        with self._db.write() as connection:
            connection.execute(
                insert(schema.events).values(
                    id=event_id, kind=kind, subject=subject, payload=payload, at=self._db.now()
                )
            )
        return event_id

    def add_alarm(self, payload: Mapping[str, Any]) -> str:
        """Record a monitor's alarm about `payload["model_digest"]`; its `alarm_id` is the event's id, which is returned.

        An alarm that is there already stays as it is, however many record it at once.
        """
        alarm = {"id": payload["alarm_id"], "kind": "drift.alarm", "subject": payload["model_digest"]}
        with self._db.write() as connection:
            insert_new(connection, schema.events, [alarm | {"payload": payload, "at": self._db.now()}])
        return str(payload["alarm_id"])

    def events(self, kind: str | None = None, since: datetime | None = None, limit: int = 100) -> list[EventRecord]:
        """The newest events, newest first."""
        table = schema.events
        query = select(table).order_by(table.c.seq.desc()).limit(limit)
        if kind is not None:
            query = query.filter_by(kind=kind)
        if since is not None:
            query = query.where(table.c.at >= since)
        with self._db.read() as connection:
            return [
                EventRecord(id=row.id, kind=row.kind, subject=row.subject, payload=row.payload, at=row.at)
                for row in connection.execute(query)
            ]
