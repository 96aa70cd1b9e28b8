"""Runs and the steps in them: what was started, from which cache key, and how it ended."""

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select, update

from llmray.errors import InputError, NotFoundError
from llmray.registry import schema
from llmray.registry.database import Part, affected
from llmray.registry.records import RunRecord, StepRecord


class Runs(Part):
    def start_run(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        run_id: str | None = None,
        project: str = "default",
        actor: str | None = None,
        owner: str | None = None,
    ) -> RunRecord:
        """Begin a run, or go on with the one of that id.

        Args:
            owner: names the process that runs it, so that others can see whether it still lives.

        Raises:
            NotFoundError: there is no such project.
            InputError: the id belongs to a run of another name or project.
        """
        run_id = run_id or self._db.new_id()
        with self._db.write() as connection:
            if connection.execute(select(schema.projects.c.name).filter_by(name=project)).first() is None:
                raise NotFoundError(f"there is no project {project!r}: make it with create_project")
            known = connection.execute(select(schema.runs).filter_by(id=run_id).with_for_update()).first()
            if known is None:
                connection.execute(
                    insert(schema.runs).values(
                        id=run_id,
                        name=name,
                        project=project,
                        actor=actor,
                        owner=owner,
                        status="running",
                        config=config,
                        started_at=self._db.now(),
                    )
                )
            elif (known.name, known.project) != (name, project):
                raise InputError(
                    f"run {run_id} is a {known.name!r} run of project {known.project!r}: choose another run id"
                )
            else:
                connection.execute(
                    update(schema.runs)
                    .filter_by(id=run_id)
                    .values(status="running", config=config, owner=owner, finished_at=None, error=None)
                )
            return _run(connection, run_id)

    def finish_run(
        self, run_id: str, status: Literal["done", "failed", "refused", "stopped"], error: str | None = None
    ) -> None:
        """Record how a run ended.

        Raises:
            NotFoundError: there is no such run.
        """
        with self._db.write() as connection:
            values = {"status": status, "error": error, "finished_at": self._db.now()}
            if not affected(connection, update(schema.runs).filter_by(id=run_id).values(**values)):
                raise NotFoundError(f"there is no run {run_id}: see llmray runs")

    def running(self) -> list[RunRecord]:
        """The runs that have begun and not ended, as far as anybody has said."""
        with self._db.read() as connection:
            return [_run_record(row) for row in connection.execute(select(schema.runs).filter_by(status="running"))]

    def lose_run(self, run_id: str, owner: str) -> None:
        """Record that the process of a run ended without a word; nothing happens if another goes on with it by now."""
        values = {"status": "lost", "error": "its process ended without a word", "finished_at": self._db.now()}
        gone = update(schema.runs).filter_by(id=run_id, owner=owner, status="running").values(**values)
        steps = update(schema.step_runs).filter_by(run_id=run_id, status="running").values(status="failed")
        with self._db.write() as connection:
            if affected(connection, gone):
                affected(connection, steps)

    def run(self, run_id: str) -> RunRecord:
        """Raises NotFoundError where there is no such run."""
        with self._db.read() as connection:
            return _run(connection, run_id)

    def runs(self, limit: int = 20, project: str | None = None) -> list[RunRecord]:
        """The newest runs, newest first."""
        query = select(schema.runs).order_by(schema.runs.c.seq.desc()).limit(limit)
        if project is not None:
            query = query.filter_by(project=project)
        with self._db.read() as connection:
            return [_run_record(row) for row in connection.execute(query)]

    def start_step(self, run_id: str, step: str, *, key: str, fields: Mapping[str, str]) -> str:
        """Record that a step of a run begins; returns the id of this one go at it.

        Raises:
            NotFoundError: there is no such run.
        """
        step_run_id = self._db.new_id()
        with self._db.write() as connection:
            _run(connection, run_id)
            connection.execute(
                insert(schema.step_runs).values(
                    id=step_run_id,
                    run_id=run_id,
                    step=step,
                    key=key,
                    fields=fields,
                    status="running",
                    started_at=self._db.now(),
                )
            )
        return step_run_id

    def finish_step(
        self,
        step_run_id: str,
        status: Literal["done", "failed", "cached"],
        *,
        outputs: Mapping[str, Any] | None,
        seconds: float,
    ) -> None:
        """Record how a step ended.

        Raises:
            NotFoundError: there is no such step run.
        """
        values = {"status": status, "outputs": outputs, "seconds": seconds, "finished_at": self._db.now()}
        with self._db.write() as connection:
            if not affected(connection, update(schema.step_runs).filter_by(id=step_run_id).values(**values)):
                raise NotFoundError(f"there is no step run {step_run_id}")

    def steps(self, run_id: str) -> list[StepRecord]:
        """The steps of a run, in the order they began."""
        query = select(schema.step_runs).filter_by(run_id=run_id).order_by(schema.step_runs.c.seq)
        with self._db.read() as connection:
            return [_step_record(row) for row in connection.execute(query)]

    def last_steps(self, step: str, limit: int = 2) -> list[StepRecord]:
        """The newest runs of a step, across all runs, newest first."""
        query = select(schema.step_runs).filter_by(step=step).order_by(schema.step_runs.c.seq.desc()).limit(limit)
        with self._db.read() as connection:
            return [_step_record(row) for row in connection.execute(query)]

    def step_names(self) -> list[str]:
        """Every step that ever ran, sorted."""
        query = select(schema.step_runs.c.step).distinct().order_by(schema.step_runs.c.step)
        with self._db.read() as connection:
            return list(connection.execute(query).scalars())


def _run(connection: Connection, run_id: str) -> RunRecord:
    row = connection.execute(select(schema.runs).filter_by(id=run_id)).first()
    if row is None:
        raise NotFoundError(f"there is no run {run_id}: see llmray runs")
    return _run_record(row)


def _run_record(row: Row[Any]) -> RunRecord:
    fields = dict(row._mapping)
    del fields["seq"]
    return RunRecord(run_id=fields.pop("id"), **fields)


def _step_record(row: Row[Any]) -> StepRecord:
    fields = dict(row._mapping)
    del fields["seq"]
    return StepRecord(step_run_id=fields.pop("id"), **fields)
