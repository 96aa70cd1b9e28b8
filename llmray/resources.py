"""What a piece of work needs, said once in code and handed to Ray."""

from dataclasses import dataclass
from typing import Any

from llmray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    cpu: float = 1.0
    """Cores, fractions allowed."""
    gpu: float = 0.0
    """GPUs, fractions allowed."""
    memory_gb: float | None = None
    """Heap memory in GB (1e9 bytes) that Ray sets aside, or None to set none aside."""

    def __post_init__(self) -> None:
        for name, amount in (("cpu", self.cpu), ("gpu", self.gpu), ("memory_gb", self.memory_gb or 0.0)):
            if amount < 0:
                raise ConfigError(f"resources.{name} ({amount}) must be zero or more")

    def ray_options(self) -> dict[str, Any]:
        """Keyword arguments for `ray.remote(...)` and `.options(...)`."""
        options: dict[str, Any] = {"num_cpus": self.cpu, "num_gpus": self.gpu}
        if self.memory_gb is not None:
            options["memory"] = int(self.memory_gb * 1e9)
        return options
