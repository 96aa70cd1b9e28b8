"""A run folder: one spec's checkpoints, metrics and result, so that the same call with the same folder goes on.

It is held to what changes the result, and not to the place: another number of workers goes on as well.

Figures come back through `metrics.jsonl`, which rank 0 writes and the driver follows: `ray.train.report` would make
every step wait for the controller's poll. Rejected: a folder named after the digest of the spec, in which nobody
notices that they typed another learning rate than yesterday.
"""

import contextlib
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmray import artifact, storage
from llmray.errors import ConfigError, InputError
from llmray.ticking import ticking
from llmray.train.model_run import changed

RESULT, METRICS, EXPORT, GROUP, STOP = "result.json", "metrics.jsonl", "export", "ray", "stop"
"""Inside a run folder: what a finished run returned, a line a step, the model before it is published, Ray's state with
its checkpoints, and a file that tells the workers to stop.
"""
_SPEC = "spec.json"
_POLL_S, _SAY_EVERY_S = 0.25, 5.0

Line = dict[str, Any]
OnReport = Callable[[Line], None]


def claim(run_dir: str, settings: Mapping[str, Any]) -> Path:
    """The folder, made if missing, and held to the settings that it was begun with (`ModelRun.settings`).

    Raises:
        ConfigError: it belongs to a run with other settings, or is not on a disk that workers see.
    """
    if not storage.is_local(run_dir):
        raise ConfigError(f"run_dir ({run_dir}) must be a local or mounted folder that every worker sees")
    folder = storage.local_path(run_dir).absolute()
    with storage.disk_errors(run_dir):
        folder.mkdir(parents=True, exist_ok=True)
    owner = folder / _SPEC
    if owner.exists():
        theirs = json.loads(owner.read_text())
        ours = json.loads(json.dumps(settings))
        if names := changed(theirs, ours):
            raise ConfigError(
                f"{run_dir} belongs to a run with other settings ({', '.join(names)}): choose another run_dir, "
                f"or the settings that it was begun with"
            )
    else:
        storage.write_bytes(str(owner), json.dumps(settings, indent=1).encode())
    return folder


@contextlib.contextmanager
def stopping_on_sigterm(folder: Path) -> Iterator[None]:
    """Turn a SIGTERM within the block into the file that tells the workers to stop; a second one is as it was before.

    Only the main thread can hear signals, and only a handler of Python's can be put back: else nothing is changed, but
    that an older such file goes away.
    """
    (folder / STOP).unlink(missing_ok=True)
    before = signal.getsignal(signal.SIGTERM)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        (folder / STOP).touch()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def reopen_metrics(path: Path, steps_done: int) -> Any:
    """The file with the lines of the steps that the checkpoint knows; later ones will be written again."""
    kept = [line for line in read_metrics(path) if line["step"] <= steps_done]
    storage.write_bytes(str(path), "".join(json.dumps(line) + "\n" for line in kept).encode())
    return path.open("a")


def read_metrics(path: Path) -> list[Line]:
    """The complete lines of metrics; none where there is no file yet."""
    lines: list[Line] = []
    if path.exists():
        with contextlib.suppress(json.JSONDecodeError):  # a line cut off by a kill, which is the last one
            for text in path.read_text().splitlines():
                lines.append(json.loads(text))
    return lines


@contextlib.contextmanager
def following(
    path: Path,
    *,
    on_report: OnReport | None,
    log: logging.Logger,
    describe: Callable[[Line], str],
    max_steps: int,
) -> Iterator[None]:
    """Log progress and call `on_report` for each step once, from a thread, until the block ends.

    Steps that an earlier call took come first, so whoever listens has the whole curve.
    """
    follower = _Follower(path, on_report, log, describe, max_steps)
    try:
        with ticking(follower.poll, every_s=_POLL_S, name="train-metrics"):
            yield
    finally:
        follower.poll()
        follower.say_last()


class Tail:
    """The new lines of a growing `metrics.jsonl`, each step once, also where a restart wrote the file again."""

    def __init__(self, path: Path) -> None:
        self._path, self._step = path, 0
        self._inode, self._at = -1, 0

    def read(self) -> list[Line]:
        """The complete lines since the last call."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode:
                    self._inode, self._at = inode, 0
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        lines = [line for line in map(json.loads, whole.splitlines()) if line["step"] > self._step]
        self._step = lines[-1]["step"] if lines else self._step
        return lines


class _Follower:
    def __init__(
        self,
        path: Path,
        on_report: OnReport | None,
        log: logging.Logger,
        describe: Callable[[Line], str],
        max_steps: int,
    ) -> None:
        self._tail, self._on_report, self._log, self._describe = Tail(path), on_report, log, describe
        self._max_steps, self._logged_at = max_steps, 0.0
        self._unsaid: Line | None = None

    def poll(self) -> None:
        for line in self._tail.read():
            if self._on_report is not None:
                self._on_report(line)
            self._unsaid = line
            if time.monotonic() - self._logged_at >= _SAY_EVERY_S or line["step"] == self._max_steps:
                self.say_last()

    def say_last(self) -> None:
        """Log the last line that was read, once."""
        if self._unsaid is not None:
            self._log.info("%s", self._describe(self._unsaid))
            self._unsaid, self._logged_at = None, time.monotonic()


def too_high(line: Line) -> str:
    """Behind a loss, for a person: for how many steps it has been too high; nothing where it is not."""
    return f" (too high for {line['high_for']} steps)" if "high_for" in line else ""


def parents_of(uris: Mapping[str, str]) -> dict[str, str]:
    """Digests by role of those URIs that are artifacts."""
    parents = {}
    for role, uri in uris.items():
        with contextlib.suppress(InputError):
            parents[role] = artifact.load(uri).digest
    return parents


def finite(value: float) -> float | None:
    """The number as JSON can hold it: None for one that is not finite."""
    return value if math.isfinite(value) else None
