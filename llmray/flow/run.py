"""A run: one call of a job, a pipeline or an SDK function, with the registry open beside it.

`open_run` makes the run current for the block; steps find it there. A step called with no run around it opens one of
its own, so a single SDK call is recorded as faithfully as a pipeline.
"""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from llmray.errors import GateRefusedError, UserError
from llmray.registry.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    id: str
    name: str
    registry: Registry
    actor: str
    """Who started it: the user's name on this machine, unless told otherwise."""


_current: ContextVar[Run | None] = ContextVar("llmray_run", default=None)


def current_run() -> Run | None:
    """The run around the caller, or None."""
    return _current.get()


def acting() -> str:
    """Who does what is done here: `$LLMRAY_ACTOR`, or the user of this process."""
    return os.environ.get("LLMRAY_ACTOR") or os.environ.get("USER") or f"uid-{os.getuid()}"


@contextmanager
def open_run(name: str, *, config: Mapping[str, Any] | None = None, run_id: str | None = None) -> Iterator[Run]:
    """Record a run for the length of a block; inside another run, that one goes on.

    Args:
        name: what it does, such as `curate`.
        config: its settings, kept with it.
        run_id: a chosen id; by default `$LLMRAY_RUN_ID` for the first run of a process (`client.jobs.submit` sets it to
            the submission id, so that submitting twice is one run), and a new one for the others.
    """
    if (outer := _current.get()) is not None:
        yield outer
        return
    with Registry.open() as registry:
        identity = run_id or os.environ.pop("LLMRAY_RUN_ID", None) or new_run_id()
        actor = acting()
        mark_lost(registry)
        registry.start_run(name, config=config or {}, run_id=identity, actor=actor, owner=lease_owner())
        token = _current.set(Run(id=identity, name=name, registry=registry, actor=actor))
        status: Literal["done", "failed", "refused", "stopped"] = "failed"
        problem: str | None = None
        try:
            yield _current.get()  # type: ignore[misc]
            status = "done"
        except GateRefusedError as error:
            status, problem = "refused", str(error)
            raise
        except KeyboardInterrupt:
            status = "stopped"
            raise
        except BaseException as error:
            problem = str(error) if isinstance(error, UserError) else repr(error)
            raise
        finally:
            _current.reset(token)
            registry.finish_run(identity, status, error=problem)


def new_run_id() -> str:
    """A readable id that sorts by time: `20260131-154500-3f9a`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def mark_lost(registry: Registry) -> None:
    """Say of each run whose process on this machine has ended without a word that it is lost."""
    for run in registry.running():
        if run.owner is not None and is_dead(run.owner):
            registry.lose_run(run.run_id, run.owner)


def lease_owner() -> str:
    """Names this thread of this process on this machine, so that another can tell whether the process still lives."""
    return f"{socket.gethostname()}/{threading.get_ident()}:{os.getpid()}:{_started(os.getpid())}"


def is_dead(owner: str) -> bool:
    """Whether the owner of a lease was a process of this machine that has ended."""
    host, pid, started = owner.rsplit(":", 2)
    return host.partition("/")[0] == socket.gethostname() and _started(int(pid)) != started


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), field 22); empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            state, *rest = file.read().rpartition(")")[2].split()
            return "" if state in "ZX" else rest[18]  # a zombie has ended, and only waits for its parent to notice
    except (FileNotFoundError, ProcessLookupError):
        return "running" if not os.path.exists("/proc/self") and _answers(pid) else ""  # noqa: PTH110


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
