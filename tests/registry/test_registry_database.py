"""Databases that are busy, gone, damaged, or none at all."""

import pickle
import socket
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from llmray import storage
from llmray.errors import ConfigError, UnavailableError
from llmray.registry.database import parse_url
from llmray.registry.registry import Registry


def test_the_default_is_a_file_in_the_home(llmray_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry.open() as registry:
        registry.start_run("curate", config={})
    assert (storage.local_home() / "registry.db").exists()
    other = llmray_home / "deep" / "other.db"
    monkeypatch.setenv("LLMRAY_DATABASE_URL", f"sqlite:///{other}")
    with Registry.open() as registry:
        assert registry.runs() == []
        assert registry.url == f"sqlite+pysqlite:///{other}"
    assert other.exists()


@pytest.mark.parametrize(
    "url", ["mysql://u:secret@h/d", "registry.db", "", "sqlite://", "sqlite:///:memory:", "postgresql://h:port/x"]
)
def test_other_databases_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not url:
        monkeypatch.setenv("LLMRAY_DATABASE_URL", "nonsense")
    with pytest.raises(ConfigError, match="use sqlite:///") as caught:
        Registry.open(url)
    assert "secret" not in str(caught.value)


def test_a_writer_that_never_gets_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with Registry.open(f"sqlite:///{path}", busy_timeout_s=0.05) as registry:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="another process has been writing for too long"):
            registry.start_run("curate", config={})
        assert registry.runs() == []
        other.execute("COMMIT")
        other.close()
        registry.start_run("curate", config={})
        assert len(registry.runs()) == 1


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on pages is how SQLite is made to meet one."""
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        with registry._db.write() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1")
        with pytest.raises(UnavailableError, match="the disk is full"):
            registry.start_run("curate", config={"padding": "x" * 1_000_000})
        assert registry.runs() == []


def test_a_read_only_file(tmp_path: Path) -> None:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        with registry._db.read() as connection:
            connection.exec_driver_sql("PRAGMA query_only=ON")
        with pytest.raises(UnavailableError, match="read-only: make it and its folder writable"):
            registry.start_run("curate", config={})


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be opened"):
        Registry.open(f"sqlite:///{tmp_path}")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_text("dear diary, " * 1000)
    with pytest.raises(UnavailableError, match="is no SQLite database") as caught:
        Registry.open(f"sqlite:///{path}")
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    assert path.read_text().startswith("dear diary")


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql://ada:secret@127.0.0.1:{free.getsockname()[1]}/llmray"
        with pytest.raises(UnavailableError, match="check that the server runs") as caught:
            Registry.open(url)
    assert "secret" not in str(caught.value)


def test_foreign_keys_hold(registry: Registry) -> None:
    with pytest.raises(sa.exc.IntegrityError), registry._db.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO members (project, \"user\", role, created_at) VALUES ('none', 'ada', 'owner', '2026-01-31')"
        )


def test_a_failed_transaction_leaves_nothing(registry: Registry) -> None:
    with pytest.raises(RuntimeError, match="half-way"), registry._db.write() as connection:
        connection.exec_driver_sql("INSERT INTO projects (name, created_at) VALUES ('half', '2026-01-31')")
        raise RuntimeError("half-way")
    with registry._db.read() as connection:
        assert connection.exec_driver_sql("SELECT name FROM projects").scalars().all() == ["default"]


def test_a_connection_that_the_server_closed_is_replaced(registry: Registry, url: str) -> None:
    with registry._db.read() as connection:
        if connection.dialect.name == "sqlite":
            pytest.skip("SQLite has no server that could close a connection")
        process = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(:process, 5000)"), {"process": process})
    engine.dispose()
    assert registry.runs() == []
    with registry._db.read() as connection:
        assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar() != process
