"""Ray tasks, as many at a time as there is use for: told of while they run, and taken back when one of them fails.

A task that goes on after the run has failed holds its core, and writes into a work folder that may be gone: so nothing
is left running. What a worker says in our own words is raised in the same words here.
"""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from typing import Any

import ray
from ray.exceptions import RayError

from llmray.data.progress import Progress, rows_in_hand
from llmray.data.stages import Job
from llmray.data.work import Work
from llmray.errors import LLMRayError

log = logging.getLogger(__name__)

_RETRIES = 8
_PATIENCE_S = 10.0
"""How long a cancelled task may take to end by itself, and to die when it is made to."""

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of `stages` or `looks`, and what it is given."""


def run_all(
    stage: str,
    work: Work,
    job: Job | None,
    calls: Sequence[Call],
    *,
    rows: Callable[[int, Any], int] = lambda _number, _result: 0,
) -> list[Any]:
    """Results in order of the calls.

    Args:
        job: given to the functions before their own arguments; without one they are given these alone.
        rows: how many rows a call went through, by its number and its result; for telling how fast it goes.
    """
    began = time.monotonic()
    results: list[Any] = [None] * len(calls)
    progress = Progress(stage, len(calls), in_hand=lambda: rows_in_hand(work.counts))
    with progress.ticking(), closing(finished(job, calls)) as ended:
        for number, result in ended:
            results[number] = result
            progress.add(1, rows(number, result))
    log.debug("curate: %s took %.1f s", stage, time.monotonic() - began)
    return results


def finished(job: Job | None, calls: Sequence[Call]) -> Generator[tuple[int, Any], None, None]:
    """Number and result of each call, as they end. When one fails, or nobody asks any more, the others are taken back."""
    given = ray.put(job)
    # More than there are cores, so that none waits for the driver; not all, so that a million pieces do not queue up.
    window = 2 * max(8, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[Any, int] = {}
    waiting = iter(enumerate(calls))
    try:
        while True:
            while len(running) < window and (following := next(waiting, None)) is not None:
                number, (function, arguments) = following
                running[_call.remote(function, given, arguments)] = number
            if not running:
                return
            done, _ = ray.wait(list(running))
            for reference in done:
                yield running.pop(reference), ray.get(reference)
    finally:
        _take_back(list(running))


def in_our_words(error: BaseException) -> LLMRayError | None:
    """What went wrong, as a worker said it: Ray's own error is of both kinds, and says it with a traceback."""
    seen: BaseException | None = error
    while seen is not None and (isinstance(seen, RayError) or not isinstance(seen, LLMRayError)):
        seen = getattr(seen, "cause", None) or seen.__cause__
    return seen


def _take_back(running: list[Any]) -> None:
    """Cancel tasks, and wait until they have ended; whoever does not end by himself is made to."""
    for force in (False, True):
        if not running or not ray.is_initialized():
            return
        with suppress(RayError):  # The cluster has gone, and they with it.
            for reference in running:
                ray.cancel(reference, force=force)
            _, running = ray.wait(running, num_returns=len(running), timeout=_PATIENCE_S, fetch_local=False)
    if running:
        log.warning("curate: %d tasks did not end when they were told to", len(running))


def _call_stage(function: Callable[..., Any], job: Job | None, arguments: tuple[Any, ...]) -> Any:
    return function(*arguments) if job is None else function(job, *arguments)


_call = ray.remote(num_cpus=1, max_retries=_RETRIES)(_call_stage)
