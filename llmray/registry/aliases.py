"""Aliases: names such as `chat@production` that move, and the log of every move.

The log is append-only (a trigger holds that) and the alias is what its last event says. A move puts what it names on a
stack, a rollback takes the top off: rolling back twice goes back two moves, and never returns to what was rolled back
from. A deletion empties the stack. A prompt's alias may be split: several versions with weights, moved in one event.

`production` of a model is protected, and so is any alias that somebody protected: it moves only with evidence whose
decision is to promote, and cannot be deleted. A rollback needs no evidence, since everything on the
stack came there by a move that was allowed. Rejected: rollback to "the event before the last one", which toggles
between two versions; and a deletion that rollback undoes, which would make a deleted alias be served again.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, delete, insert, select

from llmray.errors import GateRefusedError, InputError, NotFoundError, UnavailableError
from llmray.reference import check_name
from llmray.registry import schema
from llmray.registry.database import Database, Part, insert_new, upsert
from llmray.registry.records import AliasEvent, AliasRecord


class Aliases(Part):
    def move_alias(
        self,
        name: str,
        alias: str,
        digest: str | Mapping[str, float],
        *,
        kind: str,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected: str | Literal["any"] | None = "any",
    ) -> AliasEvent:
        """Let an alias name a digest from now on.

        Args:
            digest: or, for a prompt, several and their shares of the traffic, relative to one another.
            expected: what the alias must name until now, None for nothing: of two who decide at once, one is told.

        Raises:
            UnavailableError: the alias names something else than expected.
            GateRefusedError: the alias is protected and the evidence does not say to promote.
            NotFoundError: nothing of that kind and digest is registered.
            InputError: name or alias cannot be one, or a share is not above zero.
        """
        check_name(name)
        check_name(alias)
        target = _target(digest, kind)
        with self._db.write() as connection:
            for one in target.weights or [target.digest]:
                _check_registered(connection, kind, name, one)
            lock_name(self._db, connection, kind, name)
            if (evidence or {}).get("decision") != "promote" and protected(connection, kind, name, alias):
                raise _refused(kind, name, alias, evidence)
            if expected != "any" and (there := current(connection, kind, name, alias)) != expected:
                raise UnavailableError(
                    f"{name}@{alias} has moved to {there[:12] if there else 'nothing'} in the meantime: decide again"
                )
            place = {"kind": kind, "name": name, "alias": alias}
            said = {"actor": actor, "reason": reason, "evidence": evidence}
            return _write(self._db, connection, place, {"type": "move", **target._asdict(), **said})

    def rollback(self, name: str, alias: str, *, kind: str, actor: str, reason: str) -> AliasEvent:
        """Let an alias name again what it named before the last move that was not yet rolled back.

        Raises:
            NotFoundError: there is nothing to go back to.
        """
        with self._db.write() as connection:
            lock_name(self._db, connection, kind, name)
            stack = _stack(_events(connection, kind, name, alias))
            if not stack:
                raise _no_alias(kind, name, alias)
            if len(stack) == 1:
                first = stack[0].digest[:12]
                raise NotFoundError(f"{name}@{alias} has nothing to go back to: {first} is the first it named")
            place = {"kind": kind, "name": name, "alias": alias}
            return _write(
                self._db,
                connection,
                place,
                {"type": "rollback", **stack[-2]._asdict(), "actor": actor, "reason": reason},
            )

    def delete_alias(self, name: str, alias: str, *, kind: str, actor: str, reason: str) -> AliasEvent:
        """Let an alias name nothing; its history stays.

        Raises:
            NotFoundError: there is no such alias.
            GateRefusedError: the alias is protected.
        """
        with self._db.write() as connection:
            lock_name(self._db, connection, kind, name)
            if current(connection, kind, name, alias) is None:
                raise _no_alias(kind, name, alias)
            if protected(connection, kind, name, alias):
                raise GateRefusedError(f"{name}@{alias} is protected and stays: take the protection off first")
            place = {"kind": kind, "name": name, "alias": alias}
            nothing = {"digest": None, "weights": None}
            return _write(self._db, connection, place, {"type": "delete", **nothing, "actor": actor, "reason": reason})

    def protect_alias(
        self, name: str, alias: str, on: bool = True, *, kind: str, actor: str, reason: str
    ) -> AliasEvent:
        """Have an alias move only with a gate's evidence from now on, or (`on` false) with any move again.

        The alias need not name anything yet.

        Raises:
            NotFoundError: nothing of that kind has the name.
            InputError: the alias cannot be one, or is one whose protection is given.
        """
        check_name(alias)
        if alias == "latest" or _always_protected(kind, alias):
            given = "follows the newest version" if alias == "latest" else "is protected always"
            raise InputError(f"{alias} of a {kind} {given}: nothing can change that")
        with self._db.write() as connection:
            known = select(schema.names.c.name).filter_by(kind=kind, name=name)
            if connection.execute(known).first() is None:
                raise NotFoundError(f"there is no {kind} {name}")
            lock_name(self._db, connection, kind, name)
            place = {"kind": kind, "name": name, "alias": alias}
            row = connection.execute(select(schema.aliases).filter_by(**place)).first()
            there = {"digest": None, "weights": None} if row is None else {"digest": row.digest, "weights": row.weights}
            event = "protect" if on else "unprotect"
            return _write(self._db, connection, place, {"type": event, **there, "actor": actor, "reason": reason})

    def alias(self, name: str, alias: str, kind: str) -> str | None:
        """The digest an alias names, or None; of a split, the heaviest."""
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
            return [
                AliasRecord(**row._mapping, protected=protected(connection, row.kind, row.name, row.alias))
                for row in connection.execute(query).all()
            ]

    def alias_stack(self, name: str, alias: str, kind: str) -> list[str]:
        """The digests an alias can go back through, oldest first; the last one is what it names now."""
        with self._db.read() as connection:
            return [target.digest for target in _stack(_events(connection, kind, name, alias))]

    def alias_events(self, name: str, alias: str, kind: str | None = None) -> list[AliasEvent]:
        """Every event of an alias, oldest first."""
        with self._db.read() as connection:
            return _events(connection, kind, name, alias)


class _Target(NamedTuple):
    """What an alias names."""

    digest: str
    weights: Mapping[str, float] | None


def current(connection: Connection, kind: str, name: str, alias: str) -> str | None:
    query = select(schema.aliases.c.digest).filter_by(kind=kind, name=name, alias=alias)
    return connection.execute(query).scalar()


def protected(connection: Connection, kind: str, name: str, alias: str) -> bool:
    """Whether an alias moves only with a gate's evidence."""
    if _always_protected(kind, alias):
        return True
    table = schema.alias_events
    query = select(table.c.type).filter_by(kind=kind, name=name, alias=alias).order_by(table.c.seq.desc()).limit(1)
    return connection.execute(query.where(table.c.type.in_(("protect", "unprotect")))).scalar() == "protect"


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
) -> AliasEvent:
    """Move an alias within a transaction that has done its checks."""
    lock_name(database, connection, kind, name)
    place = {"kind": kind, "name": name, "alias": alias}
    moved = {"type": "move", "digest": digest, "weights": None}
    return _write(database, connection, place, {**moved, "actor": actor, "reason": reason})


def _target(digest: str | Mapping[str, float], kind: str) -> _Target:
    if isinstance(digest, str):
        return _Target(digest, None)
    if kind != "prompt":
        raise InputError(f"an alias of a {kind} names one digest: only a prompt's can be split")
    if not digest or not all(0 < weight < math.inf for weight in digest.values()):
        raise InputError("a split needs versions, each with a weight above zero: leave out what nobody shall get")
    heaviest = max(digest, key=lambda one: digest[one])
    return _Target(heaviest, None if len(digest) == 1 else dict(digest))


def _stack(events: Iterable[AliasEvent]) -> list[_Target]:
    """What an alias can go back through, oldest first; the last one is what it names now."""
    stack: list[_Target] = []
    for event in events:
        if event.type == "rollback":
            stack.pop()
        elif event.type == "delete":
            stack.clear()
        elif event.type == "move":
            assert event.digest is not None
            target = _Target(event.digest, event.weights)
            if not stack or stack[-1] != target:
                stack.append(target)
    return stack


def _write(
    database: Database, connection: Connection, place: Mapping[str, str], happened: Mapping[str, Any]
) -> AliasEvent:
    moment, events, aliases = database.now(), schema.alias_events, schema.aliases
    values = {**place, **happened, "previous": current(connection, **place), "at": moment}
    row = connection.execute(insert(events).values(**values).returning(events)).one()
    if happened["type"] == "delete":
        connection.execute(delete(aliases).filter_by(**place))
    elif happened["type"] in ("move", "rollback"):
        target = {"digest": happened["digest"], "weights": happened["weights"]}
        upsert(connection, aliases, {**place, **target, "updated_at": moment})
    return AliasEvent(**row._mapping)


def _events(connection: Connection, kind: str | None, name: str, alias: str) -> list[AliasEvent]:
    table = schema.alias_events
    query = select(table).filter_by(name=name, alias=alias).order_by(table.c.seq)
    if kind is not None:
        query = query.filter_by(kind=kind)
    return [AliasEvent(**row._mapping) for row in connection.execute(query)]


def _always_protected(kind: str, alias: str) -> bool:
    return kind == "model" and alias == "production"


def _refused(kind: str, name: str, alias: str, evidence: Mapping[str, Any] | None) -> GateRefusedError:
    decision = f"says {evidence.get('decision')!r}" if evidence else "is missing"
    how = (
        "promote with an evaluation that passes the gate (llmray promote … --evidence …)"
        if kind == "model"
        else "move it with the evidence of a gate whose decision is promote, or take the protection off first"
    )
    return GateRefusedError(f"{name}@{alias} stays where it is: the evidence {decision}; {how}")


def _no_alias(kind: str, name: str, alias: str) -> NotFoundError:
    return NotFoundError(f"there is no {kind} alias {name}@{alias}: see llmray aliases {name}")


def _check_registered(connection: Connection, kind: str, name: str, digest: str) -> None:
    if kind == "prompt":
        query = select(schema.prompts.c.digest).filter_by(name=name, digest=digest)
    else:
        query = select(schema.artifacts.c.digest).filter_by(kind=kind, digest=digest)
    if connection.execute(query).first() is None:
        raise NotFoundError(f"no {kind} {digest[:12]} is registered{f' as {name}' if kind == 'prompt' else ''}")
