"""The registry on both databases: each test runs on SQLite and, where a server is given, on PostgreSQL."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from registry_values import Clock

from llmray.registry.registry import Registry

_schemas = itertools.count()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Makes the URL of an empty database, a new one with each call."""
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{tmp_path / f'registry-{next(_schemas)}.db'}"
        return
    server = os.environ.get("LLMRAY_TEST_POSTGRES")
    if not server:
        pytest.skip("LLMRAY_TEST_POSTGRES names no PostgreSQL server (start one with .ci/postgres)")
    engine = sa.create_engine(sa.make_url(server).set(drivername="postgresql+psycopg"))
    made: list[str] = []

    def make() -> str:
        schema = f"test_{os.getpid()}_{next(_schemas)}"
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
        made.append(schema)
        options = {"options": f"-csearch_path={schema}"}
        return sa.make_url(server).update_query_dict(options).render_as_string(hide_password=False)

    yield make
    with engine.begin() as connection:
        for schema in made:
            connection.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture
def url(make_url: Callable[[], str]) -> str:
    """The URL of an empty database."""
    return make_url()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(url: str, clock: Clock) -> Iterator[Registry]:
    ids = (f"id{number:04}" for number in itertools.count(1))
    with Registry.open(url, clock=clock, new_id=lambda: next(ids)) as opened:
        yield opened
