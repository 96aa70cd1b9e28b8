"""Spaces: spelling, distinct seeded points, and that they cover the range."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.errors import ConfigError
from llmray.tune.space import Dimension, parse_space, sample

SPACE = {"lr": "loguniform(1e-4, 3e-3)", "lora_rank": "choice(8, 32)", "zero": 2, "schedule": "choice(cosine, linear)"}


def test_spellings() -> None:
    space = parse_space({**SPACE, "batch": [4, 8], "mix": "uniform(0, 0.5)"})
    assert space["lr"] == Dimension(kind="loguniform", values=(1e-4, 3e-3))
    assert space["lora_rank"].values == (8, 32)
    assert space["schedule"].values == ("cosine", "linear")
    assert space["zero"].values == (2,)
    assert space["batch"].values == (4, 8)
    assert space["mix"].kind == "uniform"


@given(st.integers(1, 30), st.integers(0, 1000))
def test_points_are_distinct_inside_and_the_same_again(count: int, seed: int) -> None:
    points = sample(SPACE, count=count, seed=seed)
    assert points == sample(SPACE, count=count, seed=seed)
    assert len({str(point) for point in points}) == len(points) == count
    for point in points:
        assert list(point) == list(SPACE)
        assert isinstance(point["lr"], float)
        assert 1e-4 <= point["lr"] <= 3e-3
        assert point["lora_rank"] in (8, 32)


def test_a_longer_sample_starts_with_the_shorter_one() -> None:
    assert sample(SPACE, count=9, seed=1)[:4] == sample(SPACE, count=4, seed=1)


def test_four_points_lie_in_four_quarters_of_the_range() -> None:
    for seed in range(20):
        logs = [math.log(float(str(point["lr"]))) for point in sample({"lr": SPACE["lr"]}, count=4, seed=seed)]
        width = math.log(30) / 4
        assert len({round((value - min(logs)) / width) for value in logs}) == 4


def test_both_choices_come_up_among_four_points() -> None:
    for seed in range(20):
        assert {point["lora_rank"] for point in sample(SPACE, count=4, seed=seed)} == {8, 32}


def test_a_small_space_gives_every_point_once() -> None:
    points = sample({"a": [1, 2], "b": [3, 4, 5]}, count=50, seed=0)
    assert len(points) == 6


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        ({"lr": "loguniform(0, 1)"}, "above zero"),
        ({"lr": "uniform(2, 1)"}, "must rise"),
        ({"lr": "uniform(1)"}, "two numbers"),
        ({"lr": "uniform(a, b)"}, "two numbers"),
        ({"lr": "normal(0, 1)"}, "must be uniform"),
        ({"lr": "choice()"}, "at least one"),
        ({"lr": 1e-3}, "nothing that varies"),
        ({}, "nothing that varies"),
    ],
)
def test_impossible_spaces_are_refused(space: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_space(space)
