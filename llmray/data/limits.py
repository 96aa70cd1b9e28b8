"""Limits that are learned from the data itself: what is usual for a measure, kind by kind, and which rows are not.

How limits are learned is `robust`; here is what is measured: `features` text by text as rows are prepared, and the
measures that need the whole corpus before they can judge a text (`corpus`), which take a second look at it. Limits are
learned from rows that pass the fixed rules: a thousand empty rows must not make a usual length unusual. Every row with
a value is then held against them.
"""

import inspect
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray.code_names import load_named
from llmray.data import features, robust
from llmray.data.config import CurateConfig
from llmray.data.corpus import CorpusMeasure
from llmray.data.robust import Axis
from llmray.data.rows import Row
from llmray.data.tables import FAILED, KINDS
from llmray.errors import ConfigError

F64 = NDArray[np.float64]
Limits = dict[str, dict[str, tuple[float, float]]]
"""Rule to kind to smallest and largest usual value."""


def corpus_measures(config: CurateConfig) -> list[CorpusMeasure]:
    """The measures that take a second look.

    Raises:
        ConfigError: one cannot be loaded.
    """
    built_in = {one.name: one for one in (config.unigram, config.word_order, config.embedding_outlier)}
    return [load_named(name, "second_look") if ":" in name else built_in[name] for name in config.second_look]


def quality_of(config: CurateConfig) -> Callable[[Row], float] | None:
    """The function that rates rows, if there is one.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if not config.quality:
        return None
    found = load_named(config.quality, "quality")
    if not callable(found):
        raise ConfigError(f"quality: {config.quality} is a {type(found).__name__}: make it a function of a row")
    rate: Callable[[Row], float] = found
    return rate


def axes(config: CurateConfig) -> dict[str, Axis]:
    """Every learned measure, and how its limits are learned."""
    return {
        **{one.name: one.axis(config.statistics.mads) for one in features.build(config.statistics)},
        **{one.name: one.axis for one in corpus_measures(config)},
    }


def reasons(config: CurateConfig) -> dict[str, str]:
    """What each learned measure measures, in a phrase."""
    looks = {one.name: (inspect.getdoc(type(one)) or "").split(";")[0] for one in corpus_measures(config)}
    return {**{one.name: one.why for one in features.build(config.statistics)}, **looks}


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
    for name, axis in axes(config).items():
        limits[name] = {}
        for code, kind in enumerate(KINDS):
            rows = (kind_R == code) & ~np.isnan(values[name])
            if not rows.any():
                continue
            limits[name][kind] = known.get(name, {}).get(kind) or robust.limits(
                values[name][rows & sound_R],
                axis.mads,
                transform=axis.transform,
                side=axis.side,
                min_values=config.statistics.min_rows,
            )
    return limits


def unusual(limits: Limits, kind_R: NDArray[np.int8], values: Mapping[str, F64]) -> pa.Table:
    """Rows beyond the limits, as `FAILED`."""
    found = [FAILED.empty_table()]
    for name, by_kind in limits.items():
        for kind, (low, high) in by_kind.items():
            value_R = values[name]
            rows = np.flatnonzero((kind_R == KINDS.index(kind)) & robust.outside(value_R, (low, high)))
            value = value_R[rows]
            found.append(failed(rows, name, value, np.where(value < low, low, high)))
    return pa.concat_tables(found)


def failed(rows: NDArray[np.int64], rule: str, value: F64, threshold: F64) -> pa.Table:
    """Rows that failed one rule, as `FAILED`."""
    nothing = pa.nulls(len(rows), pa.string())
    columns = [pa.array(rows), pa.array([rule] * len(rows), pa.string()), pa.array(value), pa.array(threshold), nothing]
    return pa.table(columns, schema=FAILED)
