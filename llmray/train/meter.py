"""What a run used: tokens, wall seconds, core- and GPU-seconds. It carries over a resume; the clock comes from outside.

Core-seconds are those set aside (workers · cores · time), whether or not they were busy: that is what a bill says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmray.train.flops import flops_per_token, mfu, peak_flops_per_s
from llmray.train.memory import peak_bytes
from llmray.train.shape import Shape
from llmray.train.spec import TrainSpec

if TYPE_CHECKING:
    from llmray.train.checkpoint import Progress
    from llmray.train.engine import Place


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

    @property
    def tokens_per_s(self) -> float:
        """Non-padding tokens per wall second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauge:
    """What a run is measured with, the same for all of its steps."""

    num_blocks: int
    """Blocks of the training data."""
    max_length: int
    """Tokens in a block, padding included."""
    device: str
    """Of this process."""
    num_devices: int
    cores: float
    """Set aside, over all workers."""
    gpus: float
    flops_per_token: float
    peak_flops_per_s: float | None
    """Of one device; None where nobody knows it."""

    def add(self, meter: Meter, *, tokens: int, targets: int, seconds: float) -> Meter:
        """The meter after one more step, of all ranks together."""
        return Meter(
            tokens=meter.tokens + tokens,
            targets=meter.targets + targets,
            seconds=meter.seconds + seconds,
            core_seconds=meter.core_seconds + seconds * self.cores,
            gpu_seconds=meter.gpu_seconds + seconds * self.gpus,
        )

    def line(self, progress: "Progress", *, lr: float, grad_norm: float) -> dict[str, Any]:
        """The line of metrics of a step.

        Args:
            lr: the step's learning rate.
            grad_norm: norm of its gradient before clipping.
        """
        meter = progress.meter
        line = {
            "step": progress.step,
            "loss": progress.train_loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "epoch": round(progress.next_index / self.num_blocks, 4),
            "tokens": meter.tokens,
            "tokens_per_s": round(meter.tokens_per_s, 1),
            "packing_efficiency": round(meter.tokens / (progress.next_index * self.max_length), 4),
            "peak_bytes": peak_bytes(self.device),
            "core_seconds": round(meter.core_seconds, 3),
            "gpu_seconds": round(meter.gpu_seconds, 3),
        }
        if self.peak_flops_per_s is not None and meter.gpu_seconds:
            device_seconds = meter.gpu_seconds * self.num_devices / self.gpus  # also of other numbers of workers before
            used = mfu(meter.tokens / device_seconds, self.flops_per_token, self.peak_flops_per_s)
            line["mfu"] = round(used, 4)
        return {**line, "high_for": progress.watch.high_for} if progress.watch.high_for else line


def gauge_of(shape: Shape, spec: TrainSpec, place: "Place", *, num_blocks: int) -> Gauge:
    """The gauge of a run in this process."""
    peak = None
    if place.device != "cpu":
        import torch

        peak = peak_flops_per_s(torch.cuda.get_device_name(place.device))
    return Gauge(
        num_blocks=num_blocks,
        max_length=spec.max_length,
        device=place.device,
        num_devices=place.world_size,
        cores=spec.num_workers * spec.cpus_per_worker,
        gpus=spec.num_workers * spec.gpus_per_worker,
        flops_per_token=flops_per_token(shape, spec),
        peak_flops_per_s=peak,
    )


def laps(clock: Callable[[], float]) -> Iterator[float]:
    """Seconds since the call, then since the `next` before, to the millisecond."""
    last = clock()
    while True:
        now = clock()
        yield round(now - last, 3)
        last = now
