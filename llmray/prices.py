"""What work costs in money: a price list in `<home>/prices.yaml`, and core- and GPU-seconds times it.

    currency: EUR
    core_hour: 0.04
    gpu_hour: 2.5

One list for all that is kept under a home, read where something is paid for. Without it nothing is said about money,
which is not the same as saying 0. Rejected: an option of each job, since a price changes no result and would have to go
through every step, past its cache key; and prices of clouds shipped with the code, which are wrong by the time they are
read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from llmray import storage
from llmray.errors import ConfigError

FILE = "prices.yaml"
"""In the home."""
_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceList:
    """What an hour costs; an empty list says nothing about money."""

    currency: str = ""
    """What the prices are in, for example EUR."""
    core_hour: float = 0.0
    """Price of a CPU core for an hour; 0 where it is in the GPU's price."""
    gpu_hour: float | None = None
    """Price of a GPU for an hour; without it nothing is said of work that held GPUs."""

    def __post_init__(self) -> None:
        for name in ("core_hour", "gpu_hour"):
            price = getattr(self, name)
            if not (isinstance(price, int | float) and price >= 0) and (price is not None or name == "core_hour"):
                raise ConfigError(f"{FILE}: {name} ({price!r}) must be a number, zero or more")
        if (self.core_hour or self.gpu_hour) and not self.currency:
            raise ConfigError(f"{FILE}: currency is missing: say what the prices are in, for example EUR")

    def money(self, *, core_seconds: float, gpu_seconds: float) -> float | None:
        """What so many seconds cost; None where not all that was used has a price."""
        if not self.currency or (gpu_seconds and self.gpu_hour is None):
            return None
        return (core_seconds * self.core_hour + gpu_seconds * (self.gpu_hour or 0.0)) / _HOUR_S

    def figures(self, *, core_seconds: float, gpu_seconds: float) -> dict[str, Any]:
        """The same as `money` and `currency`, to go beside other figures; nothing where it is not known."""
        amount = self.money(core_seconds=core_seconds, gpu_seconds=gpu_seconds)
        return {} if amount is None else {"money": round(amount, 6), "currency": self.currency}


NO_PRICES = PriceList()


def price_list() -> PriceList:
    """The list of this home; an empty one where there is none.

    Raises:
        ConfigError: a line of it that says nothing known, or what cannot be.
    """
    uri = storage.join(storage.home(), FILE)
    if not storage.exists(uri):
        return NO_PRICES
    try:
        return PriceList(**(yaml.safe_load(storage.read_bytes(uri)) or {}))
    except (TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{uri} must hold lines of currency, core_hour and gpu_hour: {error}") from error


def text(figures: Mapping[str, Any]) -> str:
    """`money` and `currency` for a person: `0.0012 EUR`; empty where they are not among the figures."""
    if "money" not in figures:
        return ""
    amount = figures["money"]
    return f"{amount:,.2f} {figures['currency']}" if amount >= 1 else f"{amount:.4f} {figures['currency']}"
