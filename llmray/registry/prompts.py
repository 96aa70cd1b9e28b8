"""Prompts: versioned message templates. Labels such as `ask-docs@production` are aliases of kind `prompt`.

A version never changes. A label names one version, or several with weights, to compare them on live traffic.

Placeholders are Python's own format fields, `{name}`, and nothing more: attribute and index access (`{user.key}`) would
let a template read what it was not given. Rejected: Jinja (a language to sandbox, for what is nearly always a
substitution).
"""

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from llmray.digest import digest_of
from llmray.errors import GateRefusedError, InputError, NotFoundError
from llmray.reference import Reference, check_name, parse_reference
from llmray.registry import schema
from llmray.registry.aliases import Aliases, current, lock_name, write_move
from llmray.registry.records import AliasEvent, PromptRecord

_KIND = "prompt"
_VERDICT = "gate.prompt"
"""Kind of the events that keep a verdict."""


class Prompts(Aliases):
    def put_prompt(
        self,
        name: str,
        *,
        messages: Sequence[Mapping[str, str]],
        settings: Mapping[str, Any],
        message: str,
        author: str,
    ) -> PromptRecord:
        """Register a prompt: the next version, or the version that has this content already; `latest` moves to it.

        Raises:
            InputError: the name cannot be one, there is no message, or a placeholder is malformed.
        """
        check_name(name)
        if not all({"role", "content"} <= entry.keys() for entry in messages):
            raise InputError("every message of a prompt needs role and content")
        plain = [{"role": entry["role"], "content": entry["content"]} for entry in messages]
        names = variables(plain)
        digest = digest_of({"messages": plain, "settings": settings})
        table = schema.prompts
        with self._db.write() as connection:
            lock_name(self._db, connection, _KIND, name)
            row = connection.execute(select(table).filter_by(name=name, digest=digest)).first()
            if row is None:
                newest = connection.execute(select(func.max(table.c.version)).filter_by(name=name)).scalar() or 0
                row = connection.execute(
                    insert(table)
                    .values(
                        name=name,
                        version=newest + 1,
                        digest=digest,
                        messages=plain,
                        variables=names,
                        settings=settings,
                        message=message,
                        author=author,
                        created_at=self._db.now(),
                    )
                    .returning(table)
                ).one()
            if current(connection, _KIND, name, "latest") != digest:
                write_move(
                    self._db,
                    connection,
                    kind=_KIND,
                    name=name,
                    alias="latest",
                    digest=digest,
                    actor=author,
                    reason=message,
                )
            return _record(row)

    def prompt(self, reference: str) -> PromptRecord:
        """The prompt that `name@alias`, `name:version` or a digest names.

        Raises:
            InputError: no reference.
            NotFoundError: nothing goes by it; the message says what exists.
        """
        with self._db.read() as connection:
            return _find(connection, parse_reference(reference))

    def prompt_split(self, reference: str) -> list[tuple[PromptRecord, float]]:
        """The versions that a reference names, oldest first, and their shares; nearly always one.

        Raises:
            InputError: no reference.
            NotFoundError: nothing goes by it; the message says what exists.
        """
        parsed = parse_reference(reference)
        with self._db.read() as connection:
            place = {"kind": _KIND, "name": parsed.name, "alias": parsed.alias}
            weights = connection.execute(select(schema.aliases.c.weights).filter_by(**place)).scalar()
            if parsed.alias is None or weights is None:
                return [(_find(connection, parsed), 1.0)]
            table = schema.prompts
            query = select(table).filter_by(name=parsed.name).where(table.c.digest.in_(weights))
            rows = connection.execute(query.order_by(table.c.version))
            return [(_record(row), float(weights[row.digest])) for row in rows]

    def label_prompt(
        self,
        name: str,
        label: str,
        versions: Mapping[str, float],
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | str | None = None,
    ) -> AliasEvent:
        """Let a label name a version from now on, or several with weights.

        Args:
            versions: numbers of versions or references to them, and their shares of the traffic.
            evidence: for a protected label: a gate's verdict, or the id of a recorded one on the version that is new there.

        Raises:
            GateRefusedError: the label is protected and the evidence does not say to promote, or there is no such evidence.
            NotFoundError: there is no such prompt or version.
            InputError: a version is named twice, or a share is not above zero.
        """
        check_name(name)
        weights: dict[str, float] = {}
        with self._db.read() as connection:
            for version, weight in versions.items():
                numbered = version.isdecimal() and len(version) < 10
                parsed = parse_reference(f"{name}:{version}" if numbered else version)
                digest = _find(connection, parsed, of=name).digest
                if digest in weights:
                    raise InputError(f"two of {', '.join(versions)} are the same version: name each once")
                weights[digest] = weight
            if isinstance(evidence, str):
                evidence = _recorded(connection, evidence, weights, name=name, label=label)
        return self.move_alias(name, label, weights, kind=_KIND, actor=actor, reason=reason, evidence=evidence)

    def record_verdict(self, reference: str, verdict: Mapping[str, Any]) -> str:
        """Keep a gate's verdict on a version, and return the id by which it is evidence.

        Raises:
            InputError: it does not say `promote` or `hold` as its decision.
            NotFoundError: there is no such version.
        """
        if verdict.get("decision") not in {"promote", "hold"}:
            raise InputError(f"a verdict's decision is promote or hold, not {verdict.get('decision')!r}")
        values = {"id": self._db.new_id(), "kind": _VERDICT, "payload": verdict, "at": self._db.now()}
        with self._db.write() as connection:
            digest = _find(connection, parse_reference(reference)).digest
            connection.execute(insert(schema.events).values(subject=digest, **values))
        return str(values["id"])

    def prompts(self, name: str | None = None) -> list[PromptRecord]:
        """Every version of every prompt, or of one, sorted by name, newest version first."""
        table = schema.prompts
        query = select(table).order_by(table.c.name, table.c.version.desc())
        if name is not None:
            query = query.filter_by(name=name)
        with self._db.read() as connection:
            return [_record(row) for row in connection.execute(query)]


def variables(messages: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the placeholders, in order of appearance.

    Raises:
        InputError: no messages, or a placeholder that is no plain `{name}`.
    """
    if not messages:
        raise InputError("a prompt needs at least one message")
    found: dict[str, None] = {}
    for entry in messages:
        try:
            parts = list(Formatter().parse(entry["content"]))
        except ValueError as error:
            raise InputError(f"a prompt's message has a stray brace ({error}): write {{{{ or }}}} for one") from error
        for _, name, spec, conversion in parts:
            if name is None:
                continue
            if not name.isidentifier() or spec or conversion:
                raise InputError(f"{{{name}}} is no placeholder: use a plain {{name}}, or {{{{ and }}}} for braces")
            found[name] = None
    return list(found)


def _find(connection: Connection, reference: Reference, of: str | None = None) -> PromptRecord:
    """The version that a reference names, of the prompt `of` or of any."""
    table = schema.prompts
    query = select(table).order_by(table.c.created_at.desc(), table.c.version.desc())
    if of is not None:
        query = query.filter_by(name=of)
    if reference.digest is not None:
        query = query.where(table.c.digest.startswith(reference.digest, autoescape=True))
    elif reference.version is not None:
        query = query.filter_by(name=reference.name, version=reference.version)
    else:
        digest = current(connection, _KIND, reference.name or "", reference.alias or "")
        query = query.filter_by(name=reference.name, digest=digest)
    row = connection.execute(query.limit(1)).first()
    if row is None:
        raise NotFoundError(_what_exists(connection, reference, reference.name or of))
    return _record(row)


def _recorded(
    connection: Connection, event_id: str, weights: Mapping[str, float], *, name: str, label: str
) -> Mapping[str, Any]:
    """The verdict of an event, which must be about every version that the label does not name yet."""
    there = connection.execute(select(schema.aliases).filter_by(kind=_KIND, name=name, alias=label)).first()
    known = set() if there is None else set(there.weights or [there.digest])
    event = connection.execute(select(schema.events).filter_by(id=event_id, kind=_VERDICT)).first()
    if event is None or event.subject not in weights or not weights.keys() - known <= {event.subject}:
        what = "does not exist" if event is None else f"is about {event.subject[:12]} alone"
        raise GateRefusedError(f"{name}@{label} stays where it is: the verdict {event_id} {what}")
    verdict: Mapping[str, Any] = event.payload
    return verdict


def _record(row: Row[Any]) -> PromptRecord:
    return PromptRecord(**row._mapping)


def _what_exists(connection: Connection, reference: Reference, name: str | None) -> str:
    table = schema.prompts
    names = list(connection.execute(select(table.c.name).distinct().order_by(table.c.name)).scalars())
    if name not in names:
        listed = f"there are {', '.join(names[:10])}" if names else "there is no prompt yet"
        return f"prompt {reference} does not exist: {listed}"
    labels = select(schema.aliases.c.alias).filter_by(kind=_KIND, name=name).order_by(schema.aliases.c.alias)
    newest = connection.execute(select(func.max(table.c.version)).filter_by(name=name)).scalar()
    return (
        f"prompt {reference} does not exist: {name} has versions up to {newest} and the aliases "
        f"{', '.join(connection.execute(labels).scalars())}"
    )
