"""A registry whose database goes away in mid-traffic: nobody who asks notices, and what was queued arrives."""

import asyncio
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from memory_ports import Bench, finish
from sqlalchemy import Engine, create_engine, make_url

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray Serve's own, from pydantic, as it is imported
    from llmray.deployment import RegistryBridge

from llmray.serve.protocol import ChatRequest

BODY = {"model": "docs", "messages": [{"role": "user", "content": "one two"}]}
Mend = Callable[[], None]


def locked(file: Path) -> Mend:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other.close


@contextmanager
def postgres() -> Iterator[tuple[Engine, str]]:
    """A server, and the URL of a database of the test's own."""
    server = os.environ.get("LLMRAY_TEST_POSTGRES")
    if not server:
        pytest.skip("LLMRAY_TEST_POSTGRES names no PostgreSQL server (start one with .ci/postgres)")
    url = make_url(server).set(drivername="postgresql+psycopg")
    name = f"outage_{os.getpid()}"
    root = create_engine(url, isolation_level="AUTOCOMMIT")
    run(root, f"CREATE DATABASE {name}")
    try:
        yield root, url.set(database=name).render_as_string(hide_password=False)
    finally:
        run(root, f"DROP DATABASE {name} WITH (FORCE)")
        root.dispose()


def shut_out(root: Engine) -> Mend:
    """Ends every connection to the database and lets none in."""
    name = f"outage_{os.getpid()}"
    run(root, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    run(root, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    return lambda: run(root, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def run(root: Engine, statement: str) -> None:
    with root.connect() as connection:
        connection.exec_driver_sql(statement)


def damaged(file: Path) -> Mend:
    whole = file.read_bytes()
    file.write_bytes(b"no database" + whole[11:])
    return lambda: _put_back(file, whole)


def deleted(file: Path) -> Mend:
    whole = file.read_bytes()
    file.unlink()
    return lambda: _put_back(file, whole)


def taken_away(file: Path) -> Mend:
    whole = file.read_bytes()
    file.unlink()
    file.mkdir()

    def back() -> None:
        file.rmdir()
        _put_back(file, whole)

    return back


@pytest.mark.parametrize("broken", [locked, damaged, deleted, taken_away])
def test_inference_goes_on_and_nothing_queued_is_lost(llmray_home: Path, broken: Callable[[Path], Mend]) -> None:
    asyncio.run(outage(lambda: broken(llmray_home / "registry.db")))


@pytest.mark.postgres
def test_the_same_with_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres() as (root, url):
        monkeypatch.setenv("LLMRAY_DATABASE_URL", url)
        asyncio.run(outage(lambda: shut_out(root)))


async def outage(broken: Callable[[], Mend]) -> None:
    bridge = RegistryBridge.func_or_class(busy_timeout_s=0.01)
    message = {"role": "user", "content": "{x}"}
    bridge._registry.put_prompt("ask", messages=[message], settings={}, message="", author="ada")
    bench = Bench(registry=bridge)
    bench.gateway.start()
    answers = await ask(bench)
    await bench.gateway.accounts.flush()
    bridge._registry.close()  # no connection is left that would go on with a file that nobody else sees
    mend = broken()
    for _ in range(3):
        answers += await ask(bench)
    await bench.gateway.accounts.flush()
    assert b"llmray_output_log_waiting 6.0" in await bench.gateway.metrics_text()
    mend()
    await bench.gateway.close()
    for answer in answers:
        assert (await bridge.output(answer)).finish_reason == "stop"
    assert b"llmray_output_log_dropped_total 0.0" in await bench.gateway.metrics_text()
    bridge._registry.close()


async def ask(bench: Bench) -> list[str]:
    """Two answers, one by a prompt of the registry; their output ids."""
    prompted = {"model": "docs", "prompt": "ask@latest", "variables": {"x": "three"}}
    replies = [await bench.gateway.open(ChatRequest.model_validate(body)) for body in (BODY, prompted)]
    for reply in replies:
        await finish(reply)
    return [reply.id for reply in replies]


def _put_back(file: Path, whole: bytes) -> None:
    for rest in file.parent.glob(f"{file.name}-*"):
        rest.unlink()
    file.write_bytes(whole)
