"""Artifacts, the names they go by, and how a reference finds one.

An artifact is known by its digest; a name gathers versions 1, 2, 3 … of one kind. Registering the same digest again
changes nothing, apart from where the bytes lie now: they may have been lost and made again elsewhere.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, insert, select, true, update

from llmray.artifact import Artifact
from llmray.errors import InputError, NotFoundError
from llmray.reference import Reference, check_name, parse_reference
from llmray.registry import schema
from llmray.registry.aliases import current, lock_name, write_move
from llmray.registry.database import Database, Part, insert_new
from llmray.registry.lineage import write_edges
from llmray.registry.records import ArtifactRecord, Edge


class Artifacts(Part):
    def put_artifact(self, artifact: Artifact, *, name: str | None = None, run_id: str | None = None) -> ArtifactRecord:
        """Register an artifact and its parents; under a name it becomes the next version, and `name@latest`.

        What has a version under that name already keeps it, as prompts do; `latest` moves to it.

        Raises:
            InputError: the name cannot be one, or the digest is registered as another kind.
            NotFoundError: there is no such run.
        """
        if name is not None:
            check_name(name)
        with self._db.write() as connection:
            if run_id is not None and connection.execute(select(schema.runs.c.id).filter_by(id=run_id)).first() is None:
                raise NotFoundError(f"there is no run {run_id}: start it with start_run")
            _write_artifact(self._db, connection, artifact, run_id)
            edges = [Edge(child=artifact.digest, parent=parent, role=role) for role, parent in artifact.parents.items()]
            write_edges(self._db, connection, edges, run_id)
            version = None if name is None else _version_of(self._db, connection, artifact, name, run_id)
            return _record(connection, artifact.digest, name=name, version=version)

    def artifact(self, digest: str) -> ArtifactRecord:
        """The artifact with a digest, or with the only digest that begins so.

        Raises:
            NotFoundError: there is none.
            InputError: there are several.
        """
        with self._db.read() as connection:
            return _by_digest(connection, digest, None)

    def artifacts(self, kind: str | None = None, name: str | None = None) -> list[ArtifactRecord]:
        """Artifacts, newest first; with a name, one for each version under it."""
        query = _versions_query() if name is not None else select(schema.artifacts)
        order = schema.versions.c.version if name is not None else schema.artifacts.c.seq
        query = query.order_by(order.desc(), schema.artifacts.c.kind)
        if kind is not None:
            query = query.where(schema.artifacts.c.kind == kind)
        if name is not None:
            query = query.where(schema.versions.c.name == name)
        with self._db.read() as connection:
            rows = connection.execute(query).all()
            if name is not None:
                return [_as_record(row, row.name, row.version) for row in rows]
            newest = _newest_names(connection)
            return [_as_record(row, *newest.get(row.digest, (None, None))) for row in rows]

    def names_of(self, digest: str) -> list[str]:
        """The names that an artifact has a version under, sorted."""
        query = select(schema.versions.c.name).filter_by(digest=digest).distinct().order_by(schema.versions.c.name)
        with self._db.read() as connection:
            return list(connection.execute(query).scalars())

    def resolve(self, reference: str, kind: str | None = None) -> ArtifactRecord:
        """The artifact that a reference names: `name@alias`, `name:version` or a digest.

        Raises:
            InputError: no reference, or one that names several things.
            NotFoundError: nothing goes by it; the message says what exists.
        """
        parsed = parse_reference(reference)
        with self._db.read() as connection:
            if parsed.digest is not None:
                return _by_digest(connection, parsed.digest, kind)
            return _by_name(connection, parsed, kind)


def _write_artifact(database: Database, connection: Connection, artifact: Artifact, run_id: str | None) -> None:
    manifest = {
        "parents": dict(artifact.parents),
        "config": dict(artifact.config),
        "report": dict(artifact.report),
    }
    place = {"uri": artifact.uri, "manifest": manifest}
    row = {"digest": artifact.digest, "kind": artifact.kind, "run_id": run_id, "created_at": database.now()}
    insert_new(connection, schema.artifacts, [row | place])
    known = connection.execute(select(schema.artifacts).filter_by(digest=artifact.digest)).one()
    if known.kind != artifact.kind:
        raise InputError(f"{artifact.digest[:12]} is registered as a {known.kind}, and cannot be a {artifact.kind} too")
    if known.uri != artifact.uri:
        connection.execute(update(schema.artifacts).filter_by(digest=artifact.digest).values(**place))


def _version_of(database: Database, connection: Connection, artifact: Artifact, name: str, run_id: str | None) -> int:
    place = {"kind": artifact.kind, "name": name}
    lock_name(database, connection, **place)
    versions = select(schema.versions.c.version).filter_by(**place).order_by(schema.versions.c.version.desc()).limit(1)
    version: int | None = connection.execute(versions.filter_by(digest=artifact.digest)).scalar()
    if version is None:
        version = (connection.execute(versions).scalar() or 0) + 1
        connection.execute(
            insert(schema.versions).values(
                **place, version=version, digest=artifact.digest, run_id=run_id, created_at=database.now()
            )
        )
    if current(connection, artifact.kind, name, "latest") != artifact.digest:
        write_move(
            database,
            connection,
            kind=artifact.kind,
            name=name,
            alias="latest",
            digest=artifact.digest,
            actor="registry",
            reason=f"version {version}",
        )
    return version


def _by_digest(connection: Connection, digest: str, kind: str | None) -> ArtifactRecord:
    query = select(schema.artifacts.c.digest).where(schema.artifacts.c.digest.startswith(digest, autoescape=True))
    if kind is not None:
        query = query.where(schema.artifacts.c.kind == kind)
    found = list(connection.execute(query.limit(2)).scalars())
    if not found:
        raise NotFoundError(f"no {kind or 'artifact'} has a digest that begins with {digest[:24]}")
    if len(found) > 1:
        raise InputError(f"several artifacts have a digest that begins with {digest}: give more digits")
    return _record(connection, found[0])


def _by_name(connection: Connection, reference: Reference, kind: str | None) -> ArtifactRecord:
    table = schema.versions if reference.version is not None else schema.aliases
    query = select(table.c.kind, table.c.digest).where(table.c.name == reference.name, table.c.kind != "prompt")
    if reference.version is not None:
        query = query.where(schema.versions.c.version == reference.version)
    else:
        query = query.where(schema.aliases.c.alias == reference.alias)
    if kind is not None:
        query = query.where(table.c.kind == kind)
    found = connection.execute(query.order_by(table.c.kind)).all()
    if not found:
        raise NotFoundError(_what_exists(connection, reference, kind))
    if len(found) > 1:
        kinds = " and ".join(f"a {row.kind}" for row in found)
        raise InputError(f"{reference} is {kinds}: say which, or give the digest")
    return _record(connection, found[0].digest, name=reference.name, version=reference.version)


def _what_exists(connection: Connection, reference: Reference, kind: str | None) -> str:
    """Why a reference found nothing, and what it could have been."""
    of_kind = true() if kind is None else schema.names.c.kind == kind
    known = select(schema.names.c.name).where(schema.names.c.kind != "prompt", of_kind).distinct()
    names = list(connection.execute(known.order_by(schema.names.c.name)).scalars())
    what = kind or "artifact"
    if reference.name not in names:
        listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        return f"{reference} does not exist: no {what} is called {reference.name}; " + (
            f"there are {listed}" if names else f"there is no named {what} yet"
        )
    aliases = select(schema.aliases.c.alias).where(schema.aliases.c.name == reference.name)
    labels = list(connection.execute(aliases.distinct().order_by(schema.aliases.c.alias)).scalars())
    versions = select(func.max(schema.versions.c.version)).where(schema.versions.c.name == reference.name)
    newest = connection.execute(versions).scalar() or 0
    spans = {0: "no version", 1: "version 1"}.get(newest, f"versions 1 to {newest}")
    return f"{reference} does not exist: {reference.name} has {spans} and the aliases {', '.join(labels) or 'none'}"


def _record(
    connection: Connection, digest: str, *, name: str | None = None, version: int | None = None
) -> ArtifactRecord:
    row = connection.execute(select(schema.artifacts).filter_by(digest=digest)).one()
    if version is None:
        table = schema.versions
        query = select(table).filter_by(digest=digest).order_by(table.c.created_at.desc(), table.c.version.desc())
        if name is not None:
            query = query.where(table.c.name == name)
        if (newest := connection.execute(query.limit(1)).first()) is not None:
            name, version = newest.name, newest.version
    return _as_record(row, name, version)


def _as_record(row: Row[Any], name: str | None, version: int | None) -> ArtifactRecord:
    manifest: Mapping[str, Any] = row.manifest
    return ArtifactRecord(
        digest=row.digest,
        kind=row.kind,
        uri=row.uri,
        name=name,
        version=version,
        manifest=manifest,
        created_at=row.created_at,
    )


def _versions_query() -> Select[Any]:
    same = and_(
        schema.versions.c.digest == schema.artifacts.c.digest, schema.versions.c.kind == schema.artifacts.c.kind
    )
    return select(schema.artifacts, schema.versions.c.name, schema.versions.c.version).join(schema.versions, same)


def _newest_names(connection: Connection) -> dict[str, tuple[str, int]]:
    rows = connection.execute(select(schema.versions).order_by(schema.versions.c.created_at, schema.versions.c.version))
    return {row.digest: (row.name, row.version) for row in rows}
