"""What a run costs in money: a price list in the config, and core- and GPU-seconds times it.

Amounts are in the list's own currency, and core- and GPU-seconds mean what they mean to `tune.Budget` and to the
registry's spend. An empty list says nothing about money, which is not the same as saying 0. Rejected: prices of clouds
shipped with the code, which are wrong by the time they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmray.errors import ConfigError

_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceList:
    """What an hour costs; empty by default."""

    currency: str = ""
    """What the prices are in, for example EUR."""
    core_hour: float = 0.0
    """Price of a CPU core for an hour; 0 where it is in the GPU's price, or where nobody pays for cores."""
    gpu_hour: Mapping[str, float] = field(default_factory=dict)
    """Price of a GPU for an hour, by a part of its name (`H100`), or `any` for all others; the longest part wins."""

    def __post_init__(self) -> None:
        if not self.core_hour >= 0:
            raise ConfigError(f"prices.core_hour ({self.core_hour}) must be zero or more")
        for name, price in self.gpu_hour.items():
            if not price >= 0:
                raise ConfigError(f"prices.gpu_hour.{name} ({price}) must be zero or more")
        if self and not self.currency:
            raise ConfigError("prices.currency is empty: say what the prices are in, for example EUR")

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return bool(self.core_hour or self.gpu_hour)

    def of_gpu(self, device_name: str) -> float | None:
        """Price of that GPU for an hour; None where the list has none."""
        named = [part for part in self.gpu_hour if part.lower() in device_name.lower()]
        return self.gpu_hour[max(named, key=len)] if named else self.gpu_hour.get("any")


@dataclass(frozen=True, kw_only=True, slots=True)
class Money:
    amount: float
    currency: str

    def __str__(self) -> str:
        return f"{self.amount:,.2f} {self.currency}" if self.amount >= 1 else f"{self.amount:.4f} {self.currency}"


def money(prices: PriceList, *, core_seconds: float, gpu_seconds: float = 0.0, device_name: str = "") -> Money | None:
    """What so many seconds cost, or None where the list does not price everything that was used.

    Args:
        device_name: the GPU as `torch.cuda.get_device_name` calls it.
    """
    gpu_hour = prices.of_gpu(device_name) if gpu_seconds else 0.0
    if not prices or gpu_hour is None:
        return None
    amount = (core_seconds * prices.core_hour + gpu_seconds * gpu_hour) / _HOUR_S
    return Money(amount=amount, currency=prices.currency)
