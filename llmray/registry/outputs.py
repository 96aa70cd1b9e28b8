"""Answers that were served, and feedback on them. An answer is written once; writing it again is harmless."""

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Row, Select, func, select

from llmray.errors import InputError, NotFoundError
from llmray.outputs import Feedback, FeedbackKind, Output
from llmray.registry import schema
from llmray.registry.database import Part, insert_new

_NAMES = {kind: tuple(field.name for field in fields(kind)) for kind in (Output, Feedback)}


class Outputs(Part):
    def put_outputs(self, outputs: Sequence[Output]) -> None:
        """Keep answers, each once by its id."""
        with self._db.write() as connection:
            insert_new(connection, schema.outputs, [_row(output) for output in outputs])

    def output(self, output_id: str) -> Output | None:
        with self._db.read() as connection:
            row = connection.execute(select(schema.outputs).filter_by(id=output_id)).first()
            return None if row is None else Output(**_without_seq(row))

    def outputs(
        self,
        limit: int,
        model_digest: str | None = None,
        since: datetime | None = None,
        prompt_digest: str | None = None,
        request_id: str | None = None,
    ) -> list[Output]:
        """The newest answers, newest first."""
        table = schema.outputs
        query = select(table).order_by(table.c.at.desc(), table.c.seq.desc()).limit(limit)
        if since is not None:
            query = query.where(table.c.at >= since)
        if request_id is not None:
            query = query.where(table.c.request_id == request_id)
        with self._db.read() as connection:
            rows = connection.execute(_made_by(query, model_digest, prompt_digest))
            return [Output(**_without_seq(row)) for row in rows]

    def output_count(self, model_digest: str | None = None, prompt_digest: str | None = None) -> int:
        """How many answers there are."""
        query = select(func.count()).select_from(schema.outputs)
        with self._db.read() as connection:
            return connection.execute(_made_by(query, model_digest, prompt_digest)).scalar_one()

    def put_feedback(self, feedback: Feedback) -> str:
        """Keep a piece of feedback, once by its id; returns the id.

        Raises:
            NotFoundError: an output that it is about does not exist.
            InputError: an unknown kind, or a preference without the other output.
        """
        if feedback.kind not in get_args(FeedbackKind):
            raise InputError(f"feedback.kind ({feedback.kind!r}) must be one of {', '.join(get_args(FeedbackKind))}")
        if (feedback.kind == "preference") != (feedback.other_output_id is not None):
            raise InputError("feedback.other_output_id belongs to a preference, and a preference needs it")
        with self._db.write() as connection:
            for output_id in (feedback.output_id, feedback.other_output_id):
                if output_id is None:
                    continue
                if connection.execute(select(schema.outputs.c.id).filter_by(id=output_id)).first() is None:
                    raise NotFoundError(f"there is no output {output_id}")
            insert_new(connection, schema.feedback, [_row(feedback)])
        return feedback.id

    def feedback(
        self, output_id: str | None = None, source: str | None = None, since: datetime | None = None
    ) -> list[Feedback]:
        """Feedback, oldest first."""
        table = schema.feedback
        query = select(table).order_by(table.c.at, table.c.seq)
        if output_id is not None:
            query = query.filter_by(output_id=output_id)
        if source is not None:
            query = query.filter_by(source=source)
        if since is not None:
            query = query.where(table.c.at >= since)
        with self._db.read() as connection:
            return [Feedback(**_without_seq(row)) for row in connection.execute(query)]


def _made_by(query: Select[Any], model_digest: str | None, prompt_digest: str | None) -> Select[Any]:
    if model_digest is not None:
        query = query.where(schema.outputs.c.model_digest == model_digest)
    if prompt_digest is not None:
        query = query.where(schema.outputs.c.prompt_digest == prompt_digest)
    return query


def _row(record: Output | Feedback) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _NAMES[type(record)]}


def _without_seq(row: Row[Any]) -> dict[str, Any]:
    return {name: value for name, value in row._mapping.items() if name != "seq"}
