"""One database behind the registry: where it is, how a transaction begins, and what its failures mean.

SQLite takes one writer at a time, so a writing transaction says so when it begins (`BEGIN IMMEDIATE`) and waits its
turn; a deferred one would fail half-way, when its snapshot is no longer the newest. Readers never wait: the log is in
WAL mode. PostgreSQL takes many; what must not interleave there locks the row of the name it works on.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Executable, Table, create_engine, event
from sqlalchemy import exc as failures
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url

from llmray import storage
from llmray.errors import ConfigError, InputError, UnavailableError
from llmray.registry import migrate
from llmray.registry.columns import to_json

_WRITE = "llmray_write"
_SQLITE_TROUBLE = {
    5: "another process has been writing for too long: try again, or use PostgreSQL for many writers",
    6: "another connection holds it: try again",
    8: "it is read-only: make it and its folder writable, or point LLMRAY_DATABASE_URL elsewhere",
    10: "the disk failed to read or write it: check the disk",
    11: "its file is damaged: restore a backup, or point LLMRAY_DATABASE_URL at a new file",
    13: "the disk is full: free some of it",
    14: "its file cannot be opened: check that the folder exists and is writable",
    26: "its file is no SQLite database: point LLMRAY_DATABASE_URL at another file",
}
"""By primary result code, https://www.sqlite.org/rescode.html."""
_POSTGRES_AWAY = ("08", "53", "55P03", "57P", "58", "25006", "28", "3D000", "40")
"""SQLSTATE prefixes of a server that is not there, not ready, full, read-only, closed to us, or asks to try again."""


class Database:
    """An open database at the newest schema."""

    def __init__(
        self, url: str, *, clock: Callable[[], datetime], new_id: Callable[[], str], busy_timeout_s: float = 30.0
    ) -> None:
        self.now = clock
        self.new_id = new_id
        self._url = parse_url(url)
        self._engine = _engine(self._url, busy_timeout_s)
        self._writer = self._engine.execution_options(**{_WRITE: True})
        try:
            with self._errors(), storage.disk_errors(str(self)):
                migrate.upgrade(self._writer)
        except BaseException:
            self._engine.dispose()
            raise

    def __str__(self) -> str:
        return self._url.render_as_string()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that sees one state of the database and changes nothing."""
        with self._errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that changes all it says, or nothing."""
        with self._errors(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except failures.DBAPIError as error:
            if (reason := _trouble(error)) is None:
                raise
            raise UnavailableError(f"the registry at {self} is not available: {reason}") from error
        except failures.TimeoutError as error:
            raise UnavailableError(
                f"the registry at {self} is not available: all connections of this process are busy: try again"
            ) from error
        except failures.StatementError as error:
            if isinstance(error.orig, InputError):  # raised by one of our column types
                raise error.orig from error
            raise


class Part:
    """A noun of the registry: methods over one shared database."""

    def __init__(self, database: Database) -> None:
        self._db = database


def parse_url(url: str) -> URL:
    """Read a database URL.

    Raises:
        ConfigError: it names neither a SQLite file nor a PostgreSQL database.
    """
    try:
        parsed = make_url(url)
    except (failures.ArgumentError, ValueError) as error:
        raise _unknown(url) from error
    match parsed.get_backend_name():
        case "sqlite" if parsed.database and parsed.database != ":memory:":
            return parsed.set(drivername="sqlite+pysqlite", database=str(Path(parsed.database).expanduser().absolute()))
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+psycopg")
    raise _unknown(url)


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert those rows that collide with no unique key."""
    if rows:
        connection.execute(_insert(connection, table).on_conflict_do_nothing(), list(rows))


def upsert(connection: Connection, table: Table, row: Mapping[str, Any], *, where: Any = None) -> bool:
    """Insert a row or overwrite the one with its primary key, there only if `where` holds; returns whether it did."""
    statement = _insert(connection, table).values(**row)
    keys = [column.name for column in table.primary_key]
    statement = statement.on_conflict_do_update(
        index_elements=keys,
        set_={name: statement.excluded[name] for name in row if name not in keys},
        where=where,
    )
    return connection.execute(statement.returning(*table.primary_key)).first() is not None


def affected(connection: Connection, statement: Executable) -> int:
    """Run an UPDATE or DELETE and say how many rows it touched."""
    return connection.execute(statement).rowcount


def default_url() -> str:
    """`$LLMRAY_DATABASE_URL`, or a SQLite file in the local home."""
    return os.environ.get("LLMRAY_DATABASE_URL") or f"sqlite:///{storage.local_home() / 'registry.db'}"


def _insert(connection: Connection, table: Table) -> Any:
    return (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(table)


def _unknown(url: str) -> ConfigError:
    return ConfigError(
        f"{url.rsplit('@', maxsplit=1)[-1]!r} is no database for the registry: use sqlite:///path/to/registry.db or "
        "postgresql://user:password@host/database"
    )


def _engine(url: URL, busy_timeout_s: float) -> Engine:
    if url.get_backend_name() == "postgresql":
        try:
            return create_engine(url, pool_pre_ping=True, json_serializer=to_json, connect_args={"connect_timeout": 10})
        except ImportError as error:
            raise ConfigError("PostgreSQL needs a driver: pip install 'llmray[postgres]'") from error
    folder = Path(url.database or "").parent
    with storage.disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, json_serializer=to_json, connect_args={"timeout": busy_timeout_s})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves; pysqlite would begin deferred ones, and late
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")  # a promotion that was confirmed outlives a power cut


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _trouble(error: failures.DBAPIError) -> str | None:
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code == 1 and "no such table" in str(error.orig):
        return "its file was deleted: restore a backup, or start again what writes to it"
    if code is not None:
        return _SQLITE_TROUBLE.get(code & 0xFF)
    state = getattr(error.orig, "sqlstate", None)
    if (state is None and isinstance(error, failures.OperationalError)) or (state or "").startswith(_POSTGRES_AWAY):
        reason = str(error.orig).strip().splitlines()
        return (
            f"{reason[0] if reason else 'no answer'}: check that the server runs and that LLMRAY_DATABASE_URL is right"
        )
    return None
