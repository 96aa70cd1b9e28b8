"""A step: an ordinary function whose result is kept, whose inputs are remembered, and which never runs twice in vain.

    @step(resources=Resources(cpu=2))
    def clean(data: Artifact, *, threshold: float) -> Artifact: ...

Called inside a run (or alone), it looks its key up in the cache; on a miss it takes a lease, so that two runs do not
compute the same thing twice, runs as a Ray task with those resources (or in this process when it has none, as the
steps do that drive Ray themselves), and records result, lineage and cost. A hit whose bytes are gone is a loud miss.
Rejected: a graph declared beforehand (Airflow, KFP): ordinary Python already has loops and conditions.
"""

import functools
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from llmray import artifact as artifacts
from llmray import cluster, storage
from llmray.artifact import Artifact
from llmray.errors import ConfigError, InputError, NotFoundError, UnavailableError
from llmray.flow.identity import RESERVED, cache_key, identity_fields, place_digest
from llmray.flow.run import Run, is_dead, lease_owner, open_run
from llmray.prices import price_list
from llmray.prices import text as money_text
from llmray.resources import Resources

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

LEASE_S = 30.0


@dataclass(kw_only=True, slots=True)
class Spend:
    """What a step used; engines that start workers of their own add to it."""

    core_seconds: float = 0.0
    gpu_seconds: float = 0.0

    def add(self, core_seconds: float, gpu_seconds: float) -> None:
        self.core_seconds += core_seconds
        self.gpu_seconds += gpu_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """What the body of a running step can ask for."""

    folder: Path
    spend: Spend = field(default_factory=Spend)


_work: ContextVar[_Work | None] = ContextVar("llmray_work", default=None)


def charge(*, core_seconds: float, gpu_seconds: float = 0.0) -> None:
    """Add to the cost of the step that is running; without one, nothing is charged."""
    if (work := _work.get()) is not None:
        work.spend.add(core_seconds, gpu_seconds)


@contextmanager
def metered(*, cores: float, gpus: float = 0.0) -> Iterator[None]:
    """Charge the step that is running for cores and GPUs held for the length of a block, however the block ends."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - started
        charge(core_seconds=cores * seconds, gpu_seconds=gpus * seconds)


def work_folder() -> Path:
    """A folder that belongs to this step and these inputs, still there when the step is killed and started again.

    Raises:
        InputError: no step is running.
    """
    if (work := _work.get()) is None:
        raise InputError("work_folder() is for the body of a @step")
    work.folder.mkdir(parents=True, exist_ok=True)
    return work.folder


class Step(Generic[P, R]):
    """A function with a cache around it; `step.function` is the function itself."""

    def __init__(self, function: Callable[P, R], *, name: str, version: int, resources: Resources | None) -> None:
        self.function = function
        self.name = name
        self.version = version
        self.resources = resources
        self._signature = inspect.signature(function)
        if taken := RESERVED & self._signature.parameters.keys():
            raise ConfigError(
                f"step {name}: an argument cannot be called {', '.join(sorted(taken))}: its key has those"
            )
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        fields = identity_fields(self.name, self.version, self.function, bound.arguments)
        with open_run(self.name, config=fields) as run:
            key = cache_key(fields)
            hit, value = self._cached(run, key, fields, tell=False)
            if hit:
                return value
            with _lease(run, key, self.name):
                hit, value = self._cached(run, key, fields, tell=True)
                return value if hit else self._compute(run, key, fields, bound)

    def _cached(self, run: Run, key: str, fields: Mapping[str, str], *, tell: bool) -> tuple[bool, Any]:
        entry = run.registry.cache_get(key)
        if entry is None:
            return False, None
        try:
            value = _decode(entry.outputs)
        except NotFoundError as error:
            if tell:
                log.warning("%s: the cache knows this result but %s; running again", self.name, error)
            return False, None
        record = run.registry.start_step(run.id, self.name, key=key, fields=dict(fields))
        run.registry.finish_step(record, "cached", outputs=entry.outputs, seconds=0.0)
        log.info("%-10s unchanged: cache hit %s", self.name, key[:12])
        return True, value

    def _compute(self, run: Run, key: str, fields: Mapping[str, str], bound: inspect.BoundArguments) -> Any:
        log.info("%-10s starts", self.name)
        prices = price_list()
        record = run.registry.start_step(run.id, self.name, key=key, fields=dict(fields))
        folder = storage.local_home() / "work" / f"{self.name}-{key[:24]}" / place_digest(bound.arguments)
        spend = Spend()
        started = time.monotonic()
        outputs: dict[str, Any] | None = None
        try:
            value = self._run(bound, folder, spend)
            outputs = _encode(value)
            for made in _artifacts_in(value):
                run.registry.put_artifact(made, run_id=run.id)
            run.registry.cache_put(key, step=self.name, fields=dict(fields), outputs=outputs)
        except BaseException:
            outputs = None
            raise
        finally:
            seconds = time.monotonic() - started
            used = {"core_seconds": spend.core_seconds, "gpu_seconds": spend.gpu_seconds}
            paid = prices.figures(**used)
            run.registry.add_spend(run.id, self.name, **used, money=paid.get("money", 0.0))
            run.registry.finish_step(record, "failed" if outputs is None else "done", outputs=outputs, seconds=seconds)
        storage.remove(str(folder.parent))
        cost = ", ".join(filter(None, [f"{spend.core_seconds:.0f} core-seconds", money_text(paid)]))
        log.info("%-10s done in %.1f s (%s)", self.name, seconds, cost)
        return _decode(outputs)  # what a hit will return

    def _run(self, bound: inspect.BoundArguments, folder: Path, spend: Spend) -> R:
        """Run the function here or as a Ray task; what it costs is added to `spend`, also when it fails."""
        if self.resources is None:
            return _run_body(self.function, bound.args, bound.kwargs, _Work(folder=folder, spend=spend))
        started = time.monotonic()
        try:
            value, inside = _run_on_ray(self.function, bound.args, bound.kwargs, folder, self.resources)
            spend.add(inside.core_seconds, inside.gpu_seconds)
            return value
        finally:
            seconds = time.monotonic() - started
            spend.add(self.resources.cpu * seconds, self.resources.gpu * seconds)


def step(
    *, resources: Resources | None = None, version: int = 1, name: str | None = None
) -> Callable[[Callable[P, R]], Step[P, R]]:
    """Turn a function into a step.

    Args:
        resources: run as a Ray task that holds these; None runs in the calling process, for a function that drives
            Ray itself.
        version: raise it to discard what was cached, when something outside the code has changed.
        name: how the registry calls it; the function's name by default.

    The function's arguments are artifacts, dataclasses and plain JSON values; so is its result, but for dataclasses.
    What it returns comes back as JSON keeps it, from the cache or not: a tuple as a list.
    """

    def wrap(function: Callable[P, R]) -> Step[P, R]:
        return Step(function, name=name or function.__name__, version=version, resources=resources)

    return wrap


def _run_body(function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any], work: _Work) -> R:
    token = _work.set(work)
    try:
        return function(*args, **kwargs)
    finally:
        _work.reset(token)


def _run_in_worker(
    home: str, function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any], folder: Path
) -> tuple[R, Spend]:
    """The same in another process, whose artifacts belong where the driver looks for them."""
    os.environ["LLMRAY_HOME"] = home
    work = _Work(folder=folder)
    return _run_body(function, args, kwargs, work), work.spend


def _run_on_ray(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], folder: Path, resources: Resources
) -> tuple[Any, Spend]:
    cluster.connect()
    import ray

    home = storage.home()
    if storage.is_local(home):
        home = str(storage.local_path(home).absolute())
    task = ray.remote(_run_in_worker).options(**resources.ray_options(), name=getattr(function, "__name__", "step"))
    try:
        return ray.get(task.remote(home, function, args, kwargs, folder))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error


@contextmanager
def _lease(run: Run, key: str, name: str) -> Iterator[None]:
    """Hold the only right to compute a key; wait while a living process has it."""
    owner = lease_owner()
    waiting = False
    while not run.registry.acquire_lease(key, owner, LEASE_S, datetime.now(UTC)):
        holder = run.registry.lease_owner(key)
        if holder is not None and is_dead(holder):
            run.registry.release_lease(key, holder)
            continue
        if not waiting:
            log.info("%-10s is being computed by %s: waiting for its result", name, holder)
            waiting = True
        time.sleep(0.5)
    done = threading.Event()

    def renew() -> None:
        held = True
        while held and not done.wait(LEASE_S / 3):
            try:
                held = run.registry.renew_lease(key, owner, LEASE_S, datetime.now(UTC))
            except UnavailableError as error:  # a database that is away for a moment; the lease may outlive that
                log.warning("%s: the lease on %s could not be renewed: %s", name, key[:12], error)
        if not held:
            log.warning("%s: lost its lease on %s: another run may be computing the same", name, key[:12])

    keeper = threading.Thread(target=renew, name=f"lease-{name}", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        run.registry.release_lease(key, owner)


def _encode(value: Any) -> dict[str, Any]:
    return {"value": _to_json(value)}


def _to_json(value: Any) -> Any:
    match value:
        case Artifact():
            return {"$artifact": value.uri, "digest": value.digest}
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(key): _to_json(item) for key, item in value.items()}
        case list() | tuple():
            return [_to_json(item) for item in value]
    raise InputError(f"a step returned {type(value).__name__}: return artifacts and plain JSON values")


def _decode(outputs: Mapping[str, Any]) -> Any:
    return _from_json(outputs["value"])


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "$artifact" in value:
            found = artifacts.load(value["$artifact"])
            if lost := artifacts.missing(found):
                raise NotFoundError(f"{found.uri} has lost {', '.join(lost[:3])}")
            return found
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value


def _artifacts_in(value: Any) -> Iterator[Artifact]:
    if isinstance(value, Artifact):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _artifacts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _artifacts_in(item)
