"""Money is said only where all that was used has a price."""

from pathlib import Path
from typing import Any

import pytest

from llmray.errors import ConfigError
from llmray.prices import PriceList, price_list, text

PRICES = PriceList(currency="EUR", core_hour=0.05, gpu_hour=3.0)


def test_core_and_gpu_hours_are_added_up() -> None:
    assert PRICES.money(core_seconds=7200.0, gpu_seconds=0.0) == pytest.approx(0.1)
    assert PRICES.figures(core_seconds=3600.0, gpu_seconds=7200.0) == {"money": 6.05, "currency": "EUR"}


def test_nothing_is_said_without_prices_or_with_some_missing() -> None:
    assert PriceList().figures(core_seconds=3600.0, gpu_seconds=0.0) == {}
    assert PriceList(currency="EUR", core_hour=0.05).money(core_seconds=1.0, gpu_seconds=1.0) is None
    assert PriceList(currency="EUR", gpu_hour=3.0).money(core_seconds=1e6, gpu_seconds=1200.0) == 1.0


def test_small_amounts_keep_their_digits() -> None:
    assert text({"money": 0.00123, "currency": "EUR"}) == "0.0012 EUR"
    assert text({"money": 1234.5, "currency": "EUR"}) == "1,234.50 EUR"
    assert text({"loss": 1.0}) == ""


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ({"core_hour": -1.0, "currency": "EUR"}, r"core_hour \(-1\.0\) must be a number, zero or more"),
        ({"core_hour": None, "currency": "EUR"}, r"core_hour \(None\) must be a number, zero or more"),
        ({"gpu_hour": float("nan"), "currency": "EUR"}, r"gpu_hour \(nan\) must be a number, zero or more"),
        ({"gpu_hour": "3 EUR"}, r"gpu_hour \('3 EUR'\) must be a number"),
        ({"core_hour": 0.05}, r"currency is missing: say what the prices are in"),
    ],
)
def test_a_bad_price_names_its_line(prices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PriceList(**prices)


def test_the_list_lies_in_the_home(llmray_home: Path) -> None:
    assert price_list() == PriceList()
    llmray_home.mkdir()
    file = llmray_home / "prices.yaml"
    file.write_text("currency: EUR\ncore_hour: 0.05\ngpu_hour: 3\n")
    assert price_list() == PRICES
    for wrong in ("currency: EUR\ncores: 3\n", "- 3\n", "{"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=r"prices\.yaml must hold lines of currency, core_hour and gpu_hour"):
            price_list()
