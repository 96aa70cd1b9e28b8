"""Money is said only where all that was used has a price."""

from dataclasses import dataclass, field

import pytest

from llmray.errors import ConfigError
from llmray.options import parse
from llmray.train.price import Money, PriceList, money

H100 = "NVIDIA H100 80GB HBM3"
PRICES = PriceList(currency="EUR", core_hour=0.05, gpu_hour={"H100": 3.0, "H100 PCIe": 2.0})


def test_core_and_gpu_hours_are_added_up() -> None:
    assert money(PRICES, core_seconds=7200.0) == Money(amount=0.1, currency="EUR")
    cost = money(PRICES, core_seconds=3600.0, gpu_seconds=7200.0, device_name=H100)
    assert cost is not None
    assert (cost.amount, str(cost)) == (pytest.approx(6.05), "6.05 EUR")
    assert money(PRICES, core_seconds=0.0, gpu_seconds=3600.0, device_name="NVIDIA H100 PCIe") == Money(
        amount=2.0, currency="EUR"
    )


def test_nothing_is_said_without_prices_or_with_some_missing() -> None:
    assert money(PriceList(), core_seconds=3600.0) is None
    assert money(PRICES, core_seconds=3600.0, gpu_seconds=1.0, device_name="NVIDIA L4") is None
    assert money(PRICES, core_seconds=3600.0, gpu_seconds=1.0) is None


def test_any_is_the_price_of_all_other_gpus() -> None:
    prices = PriceList(currency="USD", gpu_hour={"any": 1.0, "h100": 3.0})
    assert (prices.of_gpu("NVIDIA L4"), prices.of_gpu(H100)) == (1.0, 3.0)
    assert money(prices, core_seconds=1e6, gpu_seconds=3600.0) == Money(amount=1.0, currency="USD")


def test_small_amounts_keep_their_digits() -> None:
    assert str(Money(amount=0.00123, currency="EUR")) == "0.0012 EUR"
    assert str(Money(amount=1234.5, currency="EUR")) == "1,234.50 EUR"


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ({"core_hour": -1.0, "currency": "EUR"}, r"prices\.core_hour \(-1\.0\) must be zero or more"),
        ({"gpu_hour": {"L4": float("nan")}, "currency": "EUR"}, r"prices\.gpu_hour\.L4 \(nan\) must be zero or more"),
        ({"core_hour": 0.05}, r"prices\.currency is empty: say what the prices are in"),
    ],
)
def test_a_bad_price_names_its_option(prices: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PriceList(**prices)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Config:
    prices: PriceList = field(default_factory=PriceList)
    """What an hour costs."""


def test_prices_come_from_flags() -> None:
    flags = ["--prices.currency", "EUR", "--prices.core_hour", "0.05", "--prices.gpu_hour", '{"H100": 3, "any": 1.5}']
    read = parse(Config, flags, prog="train", description="").prices
    assert read == PriceList(currency="EUR", core_hour=0.05, gpu_hour={"H100": 3.0, "any": 1.5})
    assert parse(Config, [], prog="train", description="").prices == PriceList()
