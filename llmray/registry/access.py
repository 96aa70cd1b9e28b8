"""Projects, their members, and the tokens that stand for a member.

A token is `lr-<id>-<secret>`: the id finds the row, the secret is 256 random bits of which only the SHA-256 is kept. A
slow password hash would add nothing, since nobody can guess 256 bits. Secrets come from the operating system, the one
place where randomness is not a parameter.
"""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import datetime
from typing import get_args

from sqlalchemy import Connection, insert, select, update

from llmray.digest import digest_bytes
from llmray.errors import ConfigError, NotFoundError
from llmray.reference import check_name
from llmray.registry import schema
from llmray.registry.database import Part, affected, insert_new, upsert
from llmray.registry.records import Identity, Quota, Role, TokenRecord

_NOBODY = "0" * 64
"""Compared with where there is no such token, so that this takes as long."""


class Access(Part):
    def create_project(self, name: str) -> None:
        """Make a project, unless it is there."""
        check_name(name)
        with self._db.write() as connection:
            insert_new(connection, schema.projects, [{"name": name, "created_at": self._db.now()}])

    def add_member(self, project: str, user: str, role: Role) -> None:
        """Let somebody into a project, or change their role.

        Raises:
            NotFoundError: there is no such project.
            ConfigError: there is no such role.
        """
        if role not in get_args(Role):
            raise ConfigError(f"role ({role!r}) must be one of {', '.join(get_args(Role))}")
        with self._db.write() as connection:
            self._check_project(connection, project)
            row = {"project": project, "user": user, "role": role, "created_at": self._db.now()}
            upsert(connection, schema.members, row)

    def issue_token(self, project: str, user: str, scopes: Iterable[str], expires_at: datetime | None = None) -> str:
        """A new token for a member. It is shown this once: only its hash is kept.

        Raises:
            NotFoundError: the user is no member of the project.
        """
        token_id, secret = secrets.token_hex(8), secrets.token_hex(32)
        with self._db.write() as connection:
            member = select(schema.members.c.user).filter_by(project=project, user=user)
            if connection.execute(member).first() is None:
                raise NotFoundError(f"{user} is no member of project {project!r}: add them with add_member")
            connection.execute(
                insert(schema.tokens).values(
                    id=token_id,
                    digest=digest_bytes(secret.encode()),
                    project=project,
                    user=user,
                    scopes=sorted(set(scopes)),
                    created_at=self._db.now(),
                    expires_at=expires_at,
                )
            )
        return f"lr-{token_id}-{secret}"

    def authenticate(self, token: str) -> Identity | None:
        """Whom a token stands for; None if it is unknown, expired or revoked."""
        token_id, secret = _parts(token)
        tokens, members = schema.tokens, schema.members
        query = (
            select(tokens, members.c.role)
            .join(members, (members.c.project == tokens.c.project) & (members.c.user == tokens.c.user))
            .where(tokens.c.id == token_id)
        )
        with self._db.read() as connection:
            row = connection.execute(query).first()
        right = hmac.compare_digest(digest_bytes(secret.encode()), _NOBODY if row is None else row.digest)
        if row is None or not right or row.revoked_at is not None:
            return None
        if row.expires_at is not None and row.expires_at <= self._db.now():
            return None
        return Identity(
            project=row.project, user=row.user, role=row.role, scopes=frozenset(row.scopes), token_id=row.id
        )

    def revoke_token(self, token: str) -> None:
        """End a token, given whole or by its id; a second time changes nothing.

        Raises:
            NotFoundError: there is no such token.
        """
        token_id = _parts(token)[0] or token
        with self._db.write() as connection:
            if connection.execute(select(schema.tokens.c.id).filter_by(id=token_id)).first() is None:
                raise NotFoundError("there is no such token: see llmray keys list")
            ended = update(schema.tokens).filter_by(id=token_id, revoked_at=None)
            affected(connection, ended.values(revoked_at=self._db.now()))

    def tokens(self, project: str | None = None) -> list[TokenRecord]:
        """Tokens without their secrets, oldest first."""
        tokens = schema.tokens
        columns = [tokens.c[field.name] for field in fields(TokenRecord)]
        query = select(*columns).order_by(tokens.c.created_at, tokens.c.id)
        if project is not None:
            query = query.where(tokens.c.project == project)
        with self._db.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [TokenRecord(**{**row, "scopes": frozenset(row["scopes"])}) for row in rows]

    def any_tokens(self) -> bool:
        """Whether a token was ever made; revoked ones count, so that the end of the last one opens no door."""
        with self._db.read() as connection:
            return connection.execute(select(schema.tokens.c.id).limit(1)).first() is not None

    def set_quota(self, project: str, quota: Quota) -> None:
        """What a project may use from now on.

        Raises:
            NotFoundError: there is no such project.
            ConfigError: a quota below one.
        """
        values = asdict(quota)
        for name, value in values.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} ({value}) must be a whole number from 1, or none for no limit")
        with self._db.write() as connection:
            self._check_project(connection, project)
            connection.execute(update(schema.projects).filter_by(name=project).values(**values))

    def quota(self, project: str) -> Quota:
        """What a project may use.

        Raises:
            NotFoundError: there is no such project.
        """
        columns = schema.projects.c
        query = select(columns.requests_per_minute, columns.tokens_per_minute).filter_by(name=project)
        with self._db.read() as connection:
            self._check_project(connection, project)
            return Quota(**connection.execute(query).mappings().one())

    def _check_project(self, connection: Connection, project: str) -> None:
        if connection.execute(select(schema.projects.c.name).filter_by(name=project)).first() is None:
            raise NotFoundError(f"there is no project {project!r}: make it with llmray keys create {project}")


def _parts(token: str) -> tuple[str, str]:
    """Id and secret; both empty where this is no token of ours."""
    match token.encode("ascii", "replace").decode().split("-"):
        case ["lr", token_id, secret]:
            return token_id, secret
    return "", ""
