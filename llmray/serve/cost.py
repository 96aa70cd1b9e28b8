"""What an answer cost: its share of the time that its model's replicas were busy.

While k answers run on a model, each uses 1/k of it: an answer's share is the integral of 1/k(t) over its life, and the
shares of all answers add up to the seconds in which any ran. One clock a model that advances at the speed 1/k gives
every share as a difference of two readings (the virtual time of fair queueing: Demers, Keshav and Shenker 1989). Times
the price of a second of the model, that is the answer's cost. Waiting counts as running, idle time is charged to
nobody, and k is what this gateway sees: several gateways in front of one model each charge it in full where they
overlap. Rejected: price a token (prompt and answer tokens cost differently, and both depend on the batch), and latency
times price, which charges k answers k times for one machine.
"""

from collections.abc import Callable


class SharedTime:
    """The clock of one model."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running = 0
        self._reading = 0.0
        self._at = clock()

    def begin(self) -> float:
        """An answer begins to run; returns the reading that `end` wants."""
        self._advance()
        self._running += 1
        return self._reading

    def end(self, begun: float) -> float:
        """An answer has ended; returns its share in seconds."""
        self._advance()
        self._running -= 1
        return self._reading - begun

    def _advance(self) -> None:
        now = self._clock()
        if self._running:
            self._reading += max(0.0, now - self._at) / self._running
        self._at = now
