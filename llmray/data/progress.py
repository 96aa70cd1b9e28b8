"""How far a curation has come, told in a line every few seconds: what is done, rows a second, time gone and time left.

Pure: the clock comes in from outside. Time left is what the stage would take at the rate so far; nothing is said of
stages to come, whose work is not known yet. A piece may take an hour (a large file that cannot be cut), so a stage is
told of while nothing is done too: a thread sees to that, and workers write how many rows they have gone through to a
small file each, which is gone with the piece. Rejected: an actor that workers report to; it is one more thing that can
die, and a retried task would report twice.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from llmray.ticking import ticking

log = logging.getLogger(__name__)

EVERY_S = 2.0


class Progress:
    """A stage on its way."""

    def __init__(
        self,
        stage: str,
        total: float,
        *,
        in_hand: Callable[[], int] = lambda: 0,
        tell: Callable[[str], None] = log.info,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A stage of `total` work; `in_hand` says how many rows of what is not done yet have been gone through."""
        self._stage = stage
        self._total = total
        self._in_hand = in_hand
        self._tell = tell
        self._clock = clock
        self._began = self._spoke = clock()
        self._done = 0.0
        self._rows = 0
        self._lock = threading.Lock()

    def add(self, work: float, rows: int = 0) -> None:
        """Some work is done; says so if it has been quiet for a while."""
        with self._lock:
            self._done += work
            self._rows += rows
        self.tick()

    def tick(self) -> None:
        """Time has passed; says how far the stage is if it has been quiet for a while."""
        with self._lock:
            now = self._clock()
            if now - self._spoke < EVERY_S or self._done >= self._total:
                return
            self._spoke = now
            said = self.line()
        self._tell(said)

    def ticking(self) -> AbstractContextManager[None]:
        """For the length of a block the stage is told of, whether anything gets done or not."""
        return ticking(self.tick, every_s=EVERY_S, name="curate-progress")

    def line(self) -> str:
        """What there is to say now."""
        seconds = max(1e-9, self._clock() - self._began)
        said = [f"curate: {self._stage} {self._done / max(self._total, 1e-9):.0%}"]
        if rows := self._rows + self._in_hand():
            said.append(f"{rows:,} rows, {rows / seconds:,.0f} rows/s")
        said.append(f"{_minutes(seconds)} so far")
        if self._done:
            said.append(f"{_minutes(seconds * max(0.0, self._total - self._done) / self._done)} left")
        return ", ".join(said)


@contextmanager
def counting(
    folder: Path | None, name: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """A function to be told, again and again, how many rows of a piece have been gone through: it writes that down.

    Args:
        folder: where; None to write nothing.
        name: of the piece. One that is done within `EVERY_S` writes nothing either.
    """
    spoke = clock()
    file: IO[bytes] | None = None
    path = None if folder is None else folder / name.replace("/", "-")

    def told(rows: int) -> None:
        nonlocal spoke, file
        if path is None or clock() - spoke < EVERY_S:
            return
        spoke = clock()
        if file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("wb", buffering=0)
        # As many bytes each time, over those before: whoever reads in between finds a number.
        file.seek(0)
        file.write(b"%020d" % rows)

    try:
        yield told
    finally:
        if path is not None and file is not None:
            file.close()
            path.unlink(missing_ok=True)


def rows_in_hand(folder: Path | None) -> int:
    """Rows that all pieces in hand have gone through, as far as `counting` has written it down."""
    total = 0
    with suppress(OSError):  # no piece has written yet, or one was done meanwhile
        for path in [] if folder is None else folder.iterdir():
            total += int(path.read_bytes() or 0)
    return total


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
