"""What a run used: tokens, wall seconds, core- and GPU-seconds. It carries over a resume; the clock comes from outside.

Core-seconds are those set aside (workers · cores · time), whether or not they were busy: that is what a bill says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    tokens: int = 0
    """Tokens trained on, padding left out."""
    targets: int = 0
    """Tokens that the loss was taken over."""
    seconds: float = 0.0
    """Wall seconds inside training steps."""
    core_seconds: float = 0.0
    """Seconds times the cores set aside."""
    gpu_seconds: float = 0.0
    """Seconds times the GPUs set aside."""

    def add(self, *, tokens: int, targets: int, seconds: float, cores: float, gpus: float) -> "Meter":
        """The meter after one more step."""
        return replace(
            self,
            tokens=self.tokens + tokens,
            targets=self.targets + targets,
            seconds=self.seconds + seconds,
            core_seconds=self.core_seconds + seconds * cores,
            gpu_seconds=self.gpu_seconds + seconds * gpus,
        )

    @property
    def tokens_per_s(self) -> float:
        """Non-padding tokens per wall second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0


def laps(clock: Callable[[], float]) -> Iterator[float]:
    """Seconds since the call, then since the `next` before, to the millisecond."""
    last = clock()
    while True:
        now = clock()
        yield round(now - last, 3)
        last = now
