"""Bring a database to the newest schema, however many processes open it at once.

A database that is up to date costs one small query and never loads Alembic. Otherwise one process migrates while the
others wait: on PostgreSQL behind an advisory lock, on SQLite behind a lock file (switching a new file to WAL ignores
the busy timeout and fails while anybody so much as looks at the file, so SQLite's own lock is not enough) and an
immediate transaction. Either the whole migration is there
afterwards or none of it. Rejected: `alembic upgrade` as a command of its own (a thing to forget), and downgrades (they
drop what people recorded).
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from llmray.errors import ConfigError
from llmray.registry.schema import HEAD, VERSION_TABLE

_ADVISORY_LOCK = 0x6C6C6D726179
"""`llmray` in ASCII: one lock a PostgreSQL database."""


def upgrade(writer: Engine) -> None:
    """Migrate to head if needed.

    Args:
        writer: engine whose transactions are allowed to write.

    Raises:
        ConfigError: the database has a schema that this version of llmray does not know.
    """
    with _locked(writer, fcntl.LOCK_SH), writer.engine.connect() as connection:
        if _wal(connection) and _revision(connection) == HEAD:
            return
    with _locked(writer, fcntl.LOCK_EX):
        if writer.dialect.name == "sqlite":
            with writer.connect() as connection:
                _switch_to_wal(connection)
        with writer.begin() as connection:
            if writer.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            if _revision(connection) != HEAD:
                _run(connection)


def _run(connection: Connection) -> None:
    import logging

    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    logging.getLogger("alembic.runtime").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    revision = _revision(connection)
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if revision is not None and revision not in known:
        raise ConfigError(
            f"the registry at {connection.engine.url.render_as_string()} has schema {revision}, and this llmray knows "
            f"schemas up to {HEAD}: upgrade llmray, or point LLMRAY_DATABASE_URL at another database"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608


def _wal(connection: Connection) -> bool:
    if connection.dialect.name != "sqlite":
        return True
    return connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def _switch_to_wal(connection: Connection) -> None:
    connection.connection.cursor().execute("PRAGMA journal_mode=WAL")  # below SQLAlchemy: outside any transaction


@contextmanager
def _locked(writer: Engine, how: int) -> Iterator[None]:
    if writer.dialect.name != "sqlite":
        yield
        return
    with Path(f"{writer.url.database}.lock").open("w") as file:
        fcntl.flock(file, how)
        yield
