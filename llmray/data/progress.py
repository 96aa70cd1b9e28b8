"""How far a curation has come, told in a line every few seconds: what is done, rows a second, time left.

Pure: the clock comes in from outside. Time left is what the stage would take at the rate so far; nothing is said of
stages to come, whose work is not known yet.
"""

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

EVERY_S = 2.0


class Progress:
    """A stage on its way."""

    def __init__(
        self,
        stage: str,
        total: float,
        *,
        tell: Callable[[str], None] = log.info,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._total = total
        self._tell = tell
        self._clock = clock
        self._began = self._spoke = clock()
        self._done = 0.0
        self._rows = 0

    def add(self, work: float, rows: int = 0) -> None:
        """Some work is done; says so if it has been quiet for a while."""
        self._done += work
        self._rows += rows
        now = self._clock()
        if now - self._spoke >= EVERY_S and self._done < self._total:
            self._spoke = now
            self._tell(self.line())

    def line(self) -> str:
        """What there is to say now."""
        seconds = max(1e-9, self._clock() - self._began)
        said = [f"curate: {self._stage} {self._done / max(self._total, 1e-9):.0%}"]
        if self._rows:
            said.append(f"{self._rows:,} rows, {self._rows / seconds:,.0f} rows/s")
        if self._done:
            left = round(seconds * max(0.0, self._total - self._done) / self._done)
            said.append(f"{left // 60}:{left % 60:02d} left")
        return ", ".join(said)
