"""The schema: migrations agree with the tables, many processes may open a new database, history cannot be rewritten."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from registry_values import PROCESSES

from llmray.errors import ConfigError
from llmray.registry import migrations, schema
from llmray.registry.database import parse_url
from llmray.registry.registry import Registry


def test_migrations_lead_to_the_tables_in_the_code(registry: Registry, url: str) -> None:
    engine = sa.create_engine(parse_url(url))
    with engine.connect() as connection:
        options = {"version_table": schema.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        difference = compare_metadata(context, schema.metadata)
    engine.dispose()
    assert difference == []


def test_the_comparison_would_see_a_difference(registry: Registry, url: str) -> None:
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE runs DROP COLUMN error")
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        difference = compare_metadata(context, schema.metadata)
    engine.dispose()
    assert [(change[0], change[3].name) for change in difference] == [("add_column", "error")]


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_a_newer_schema_is_refused(registry: Registry, url: str) -> None:
    _set_revision(url, "9999")
    with pytest.raises(ConfigError, match=r"schema 9999.*upgrade llmray"):
        Registry.open(url)


def test_opening_again_keeps_what_is_there(registry: Registry, url: str) -> None:
    registry.start_run("curate", config={}, run_id="one")
    with Registry.open(url) as again:
        assert again.run("one").name == "curate"


def test_opening_an_up_to_date_database_does_not_load_alembic(registry: Registry, url: str) -> None:
    code = (
        "import sys; from llmray.registry.registry import Registry; Registry.open(sys.argv[1]).close();"
        "print([name for name in ('alembic', 'torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, url], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_ten_processes_open_a_new_database_at_once(make_url: Callable[[], str]) -> None:
    url = make_url()
    barrier = PROCESSES.Barrier(10)
    with PROCESSES.Pool(10, initializer=_remember, initargs=(barrier,)) as pool:
        names = pool.map(_open_and_start, [url] * 10, chunksize=1)
    with Registry.open(url) as registry:
        assert sorted(names) == sorted(run.run_id for run in registry.runs())
        assert len(set(names)) == 10


@pytest.mark.parametrize("change", ["UPDATE alias_events SET digest = 'x'", "DELETE FROM alias_events"])
def test_alias_events_cannot_be_changed(registry: Registry, url: str, change: str) -> None:
    registry.put_prompt("ask", messages=[{"role": "user", "content": "?"}], settings={}, message="first", author="ada")
    before = registry.alias_events("ask", "latest")
    engine = sa.create_engine(parse_url(url))
    with pytest.raises(sa.exc.IntegrityError, match="append-only"), engine.begin() as connection:
        connection.exec_driver_sql(change)
    engine.dispose()
    assert registry.alias_events("ask", "latest") == before != []


def test_events_from_before_labels_could_be_split_are_still_there(url: str) -> None:
    engine = sa.create_engine(parse_url(url))
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.exec_driver_sql("INSERT INTO names VALUES ('model', 'chat', '2026-01-31 12:00:00+00:00')")
        connection.exec_driver_sql(
            "INSERT INTO alias_events (seq, kind, name, alias, type, digest, actor, reason, at) VALUES "
            "(7, 'model', 'chat', 'best', 'move', 'abc', 'ada', 'won', '2026-01-31 12:00:00+00:00')"
        )
    with Registry.open(url) as registry:
        [event] = registry.alias_events("chat", "best")
        assert (event.seq, event.digest, event.weights, event.previous) == (7, "abc", None, None)
    with pytest.raises(sa.exc.IntegrityError, match="append-only"), engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM alias_events")
    engine.dispose()


def _set_revision(url: str, revision: str) -> None:
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{revision}'")
    engine.dispose()


_barrier = None


def _remember(barrier: object) -> None:
    global _barrier  # noqa: PLW0603
    _barrier = barrier


def _open_and_start(url: str) -> str:
    _barrier.wait(60)
    with Registry.open(url) as registry:
        return registry.start_run("race", config={}).run_id
