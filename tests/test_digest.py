"""Canonical JSON and digests: equal values give equal bytes, in every process."""

import json
import math
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.digest import canonical_json, digest_bytes, digest_file, digest_of, fraction_of

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=15
)


@given(VALUES)
@settings(deadline=None)
def test_it_is_json_that_says_the_same(value: Any) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data
    assert digest_of(value) == digest_bytes(data)


@given(st.dictionaries(TEXT, SCALARS, max_size=6), st.randoms())
@settings(deadline=None)
def test_neither_order_nor_type_of_a_container_is_content(value: dict[str, Any], draw: Any) -> None:
    items = list(value.items())
    draw.shuffle(items)
    assert canonical_json(OrderedDict(items)) == canonical_json(MappingProxyType(value)) == canonical_json(value)
    assert canonical_json(tuple(value.values())) == canonical_json(list(value.values()))


@given(st.sets(st.integers() | TEXT, max_size=8))
@settings(deadline=None)
def test_a_set_has_one_order(value: set[Any]) -> None:
    assert canonical_json(value) == canonical_json(frozenset(list(value)[::-1]))
    assert len(json.loads(canonical_json(value))) == len(value)


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_whole_float_is_the_integer_that_it_equals(number: int) -> None:
    assert canonical_json(float(number)) == canonical_json(number)


@given(VALUES, VALUES)
@settings(deadline=None)
def test_different_values_have_different_bytes(one: Any, other: Any) -> None:
    same = canonical_json(one) == canonical_json(other)
    assert same == (_typed(one) == _typed(other))


def _typed(value: Any) -> Any:
    """A value in which True is not 1, as in JSON."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, float) and abs(value) >= 2**53:
        return ("large", repr(value))
    return value


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Inner:
    path: Path
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Outer:
    inner: Inner
    tags: frozenset[str] = frozenset({"b", "a"})
    level: Level = Level.LOW
    more: dict[str, float] = field(default_factory=lambda: {"z": -0.0, "a": 1.5})


def test_dataclasses_enums_and_paths_by_hand() -> None:
    assert canonical_json(Outer(Inner(Path("/a/ü")))) == (
        '{"inner":{"colour":"red","path":"/a/ü"},"level":1,"more":{"a":1.5,"z":0},"tags":["a","b"]}'.encode()
    )
    assert canonical_json(PurePosixPath("x")) == b'"x"'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"x": [math.nan]}], ids=repr)
def test_what_is_not_finite_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="use a finite number or None"):
        canonical_json(value)


@pytest.mark.parametrize(("value", "message"), [({1: "a"}, "string keys, got"), (object(), "object"), (Outer, "type")])
def test_what_has_no_json_is_refused(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        canonical_json({"deep": [value]})


def test_another_process_with_another_hash_seed_agrees() -> None:
    code = (
        "from llmray.digest import *; print(digest_of({'b': {'x', 'y', 'z'}, 'a': [1, 2.5, None]}), fraction_of('k'))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {f"{digest_of({'a': [1, 2.5, None], 'b': ['x', 'y', 'z']})} {fraction_of('k')}\n"}


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1):
        data = b"x" * size
        (tmp_path / "file").write_bytes(data)
        assert digest_file(tmp_path / "file") == digest_bytes(data)


def test_fractions_fill_the_unit_interval_evenly() -> None:
    fractions = [fraction_of(str(n)) for n in range(4000)]
    assert all(0 <= each < 1 for each in fractions)
    assert sum(each < 0.25 for each in fractions) == pytest.approx(1000, abs=110)  # four standard deviations
