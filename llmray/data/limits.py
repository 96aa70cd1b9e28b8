"""Limits that are learned from the data itself: what is usual for a measure, kind by kind, and which rows are not.

Limits are median ± k scaled MADs (Leys et al. 2013), of the value or of its logarithm, learned from rows that pass the
fixed rules: a thousand empty rows must not make a usual length unusual. Every row with a value is then held against
them. Measures that need the whole corpus before they can judge a row (`CorpusMeasure`) take a second look at the text
and go through the same limits.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray.data.config import CurateConfig
from llmray.data.rows import Row
from llmray.data.rules import robust_limits
from llmray.data.tables import FAILED, KINDS
from llmray.errors import ConfigError

F64 = NDArray[np.float64]
Limits = dict[str, dict[str, tuple[float, float]]]
"""Rule to kind to smallest and largest usual value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """A measure whose usual values are learned."""

    name: str
    """What a row that is unusual is said to have failed."""
    measure: Callable[[Row], float | None]
    """The value for a row; None where the measure does not apply to it."""
    scale: Literal["linear", "log"] = "linear"
    """Whether values or their logarithms have a usual spread; values of zero or less teach nothing on a log scale."""
    mads: float = 5.0
    """How many scaled MADs from the median a value may lie."""
    why: str = ""
    """One phrase for the report."""


class CorpusMeasure(Protocol):
    """A measure that must see all rows before it can say anything of one."""

    name: str
    scale: Literal["linear", "log"]
    mads: float
    why: str

    def survey(self, texts: Sequence[str], ids: Sequence[bytes]) -> Any:
        """What a chunk's rows have to say: small, and such that the order of chunks and their cuts do not matter."""
        ...

    def fit(self, surveys: Sequence[Any]) -> Any:
        """What is learned from all of it."""
        ...

    def score(self, texts: Sequence[str], model: Any) -> F64:
        """The value of each row; NaN where the measure does not apply."""
        ...


def learned_measures(config: CurateConfig) -> list[Learned]:
    """The measures that `prepare` stores, beside length.

    Raises:
        ConfigError: one cannot be loaded.
    """
    return [_load(name, "learned", Learned) for name in config.learned]


def corpus_measures(config: CurateConfig) -> list[CorpusMeasure]:
    """The measures that take a second look.

    Raises:
        ConfigError: one cannot be loaded.
    """
    return [load_attribute(name, "second_look") for name in config.second_look]


def quality_of(config: CurateConfig) -> Callable[[Row], float] | None:
    """The function that rates rows, if there is one.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if not config.quality:
        return None
    found = load_attribute(config.quality, "quality")
    if not callable(found):
        raise ConfigError(f"quality: {config.quality} is a {type(found).__name__}: make it a function of a row")
    rate: Callable[[Row], float] = found
    return rate


def load_attribute(name: str, field: str) -> Any:
    """What `module:attribute` names.

    Raises:
        ConfigError: it is not there.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{field}: {name} cannot be loaded: {error}") from error


def learn_limits(
    config: CurateConfig,
    kind_R: NDArray[np.int8],
    sound_R: NDArray[np.bool_],
    values: Mapping[str, F64],
    known: Limits,
) -> Limits:
    """Limits of every learned measure, by kind.

    Args:
        sound_R: rows that pass the fixed rules.
        values: rule to the value of each row, NaN where it does not apply.
        known: limits of the snapshot that is added to: what counts as usual does not change with each addition.
    """
    limits: Limits = {}
    for name, (scale, mads) in scales(config).items():
        limits[name] = {}
        for code, kind in enumerate(KINDS):
            rows = (kind_R == code) & ~np.isnan(values[name])
            if not rows.any():
                continue
            limits[name][kind] = known.get(name, {}).get(kind) or _usual(values[name][rows & sound_R], scale, mads)
    return limits


def unusual(limits: Limits, kind_R: NDArray[np.int8], values: Mapping[str, F64]) -> pa.Table:
    """Rows beyond the limits, as `FAILED`."""
    found = [FAILED.empty_table()]
    for name, by_kind in limits.items():
        for kind, (low, high) in by_kind.items():
            value_R = values[name]
            rows = np.flatnonzero((kind_R == KINDS.index(kind)) & ((value_R < low) | (value_R > high)))
            value = value_R[rows]
            columns = [rows, [name] * len(rows), value, np.where(value < low, low, high)]
            found.append(pa.table([pa.array(column) for column in columns], names=FAILED.names).cast(FAILED))
    return pa.concat_tables(found)


def scales(config: CurateConfig) -> dict[str, tuple[str, float]]:
    """Every learned measure, with its scale and how many MADs it allows."""
    measures: list[Learned | CorpusMeasure] = [*learned_measures(config), *corpus_measures(config)]
    length = {"length_outlier": ("log", config.outliers.length_mads)}
    lengths = length if "length_outlier" in config.outliers.rules else {}
    return {**lengths, **{one.name: (one.scale, one.mads) for one in measures}}


def _usual(values: F64, scale: str, mads: float) -> tuple[float, float]:
    if scale == "log":
        return robust_limits(values, mads)  # type: ignore[arg-type]
    if not len(values):
        return -np.inf, np.inf
    middle = float(np.median(values))
    # 1.4826 makes the MAD of a normal sample estimate its standard deviation; a MAD of zero says nothing.
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return (middle - mads * spread, middle + mads * spread) if spread else (-np.inf, np.inf)


def _load(name: str, field: str, kind: type[Learned]) -> Learned:
    found = load_attribute(name, field)
    if not isinstance(found, kind):
        raise ConfigError(f"{field}: {name} is a {type(found).__name__}: make it a llmray.data.limits.{kind.__name__}")
    return found
