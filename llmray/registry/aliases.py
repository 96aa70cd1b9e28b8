"""Aliases: names such as `chat@production` that move, and the log of every move.

The log is append-only (a trigger holds that) and the alias is what its last event says. A move puts a digest on a
stack, a rollback takes the top off: rolling back twice goes back two digests, and never returns to one that was rolled
back from. `production` of a model moves only with evidence whose decision is to promote; a rollback needs none, since
everything on the stack came through the gate before. Rejected: rollback to "the event before the last one", which
toggles between two versions.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from sqlalchemy import Connection, insert, select

from llmray.errors import GateRefusedError, NotFoundError, UnavailableError
from llmray.reference import check_name
from llmray.registry import schema
from llmray.registry.database import Database, Part, insert_new, upsert
from llmray.registry.records import AliasEvent, AliasRecord


class Aliases(Part):
    def move_alias(
        self,
        name: str,
        alias: str,
        digest: str,
        *,
        kind: str,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected: str | Literal["any"] | None = "any",
    ) -> AliasEvent:
        """Let an alias name a digest from now on.

        Args:
            expected: what the alias must name until now, None for nothing: of two who decide at once, one is told.

        Raises:
            UnavailableError: the alias names something else than expected.
            GateRefusedError: the alias is a model's `production` and the evidence does not say to promote.
            NotFoundError: nothing of that kind and digest is registered.
            InputError: name or alias cannot be one.
        """
        check_name(name)
        check_name(alias)
        if kind == "model" and alias == "production" and (evidence or {}).get("decision") != "promote":
            decision = f"says {evidence.get('decision')!r}" if evidence else "is missing"
            raise GateRefusedError(
                f"{name}@production stays where it is: the evidence {decision}; promote with an evaluation that passes "
                "the gate (llmray promote … --evidence …)"
            )
        with self._db.write() as connection:
            _check_registered(connection, kind, name, digest)
            lock_name(self._db, connection, kind, name)
            if expected != "any" and (there := current(connection, kind, name, alias)) != expected:
                raise UnavailableError(
                    f"{name}@{alias} has moved to {there[:12] if there else 'nothing'} in the meantime: decide again"
                )
            return write_move(
                self._db,
                connection,
                kind=kind,
                name=name,
                alias=alias,
                digest=digest,
                actor=actor,
                reason=reason,
                evidence=evidence,
            )

    def rollback(self, name: str, alias: str, *, kind: str, actor: str, reason: str) -> AliasEvent:
        """Let an alias name again what it named before the last move that was not yet rolled back.

        Raises:
            NotFoundError: there is nothing to go back to.
        """
        with self._db.write() as connection:
            lock_name(self._db, connection, kind, name)
            stack = past(_events(connection, kind, name, alias))
            if not stack:
                raise NotFoundError(f"there is no {kind} alias {name}@{alias}: see llmray aliases {name}")
            if len(stack) == 1:
                raise NotFoundError(f"{name}@{alias} has nothing to go back to: {stack[0][:12]} is the first it named")
            place = {"kind": kind, "name": name, "alias": alias}
            moved = {"type": "rollback", "digest": stack[-2], "previous": stack[-1]}
            return _write(self._db, connection, place, {**moved, "actor": actor, "reason": reason})

    def alias(self, name: str, alias: str, kind: str) -> str | None:
        """The digest an alias names, or None."""
        with self._db.read() as connection:
            return current(connection, kind, name, alias)

    def aliases(self, name: str | None = None, kind: str | None = None) -> list[AliasRecord]:
        """Aliases and what they name, sorted by kind, name and alias."""
        table = schema.aliases
        query = select(table).order_by(table.c.kind, table.c.name, table.c.alias)
        if name is not None:
            query = query.filter_by(name=name)
        if kind is not None:
            query = query.filter_by(kind=kind)
        with self._db.read() as connection:
            return [AliasRecord(**row._mapping) for row in connection.execute(query)]

    def alias_stack(self, name: str, alias: str, kind: str) -> list[str]:
        """The digests an alias can go back through, oldest first; the last one is what it names now."""
        with self._db.read() as connection:
            return past(_events(connection, kind, name, alias))

    def alias_events(self, name: str, alias: str, kind: str | None = None) -> list[AliasEvent]:
        """Every move of an alias, oldest first."""
        with self._db.read() as connection:
            return _events(connection, kind, name, alias)


def past(events: Iterable[AliasEvent]) -> list[str]:
    """The digests an alias can go back through, oldest first; the last one is what it names now."""
    stack: list[str] = []
    for event in events:
        if event.type == "rollback":
            stack.pop()
        elif not stack or stack[-1] != event.digest:
            stack.append(event.digest)
    return stack


def current(connection: Connection, kind: str, name: str, alias: str) -> str | None:
    query = select(schema.aliases.c.digest).filter_by(kind=kind, name=name, alias=alias)
    return connection.execute(query).scalar()


def lock_name(database: Database, connection: Connection, kind: str, name: str) -> None:
    """Make a name if it is new, and keep other writers off it until this transaction ends."""
    insert_new(connection, schema.names, [{"kind": kind, "name": name, "created_at": database.now()}])
    connection.execute(select(schema.names).filter_by(kind=kind, name=name).with_for_update())


def write_move(
    database: Database,
    connection: Connection,
    *,
    kind: str,
    name: str,
    alias: str,
    digest: str,
    actor: str,
    reason: str,
    evidence: Mapping[str, Any] | None = None,
) -> AliasEvent:
    """Move an alias within a transaction that has done its checks."""
    lock_name(database, connection, kind, name)
    place = {"kind": kind, "name": name, "alias": alias}
    said = {"actor": actor, "reason": reason, "evidence": evidence}
    moved = {"type": "move", "digest": digest, "previous": current(connection, **place)}
    return _write(database, connection, place, {**moved, **said})


def _write(
    database: Database, connection: Connection, place: Mapping[str, str], happened: Mapping[str, Any]
) -> AliasEvent:
    moment = database.now()
    row = connection.execute(
        insert(schema.alias_events).values(**place, **happened, at=moment).returning(schema.alias_events)
    ).one()
    upsert(connection, schema.aliases, {**place, "digest": happened["digest"], "updated_at": moment})
    return AliasEvent(**row._mapping)


def _events(connection: Connection, kind: str | None, name: str, alias: str) -> list[AliasEvent]:
    table = schema.alias_events
    query = select(table).filter_by(name=name, alias=alias).order_by(table.c.seq)
    if kind is not None:
        query = query.filter_by(kind=kind)
    return [AliasEvent(**row._mapping) for row in connection.execute(query)]


def _check_registered(connection: Connection, kind: str, name: str, digest: str) -> None:
    if kind == "prompt":
        query = select(schema.prompts.c.digest).filter_by(name=name, digest=digest)
    else:
        query = select(schema.artifacts.c.digest).filter_by(kind=kind, digest=digest)
    if connection.execute(query).first() is None:
        raise NotFoundError(f"no {kind} {digest[:12]} is registered{f' as {name}' if kind == 'prompt' else ''}")
