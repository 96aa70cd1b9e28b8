"""What a person sees."""

import logging
import re
import warnings
from collections.abc import Iterator

import pytest

from llmray import console


@pytest.fixture
def loggers() -> Iterator[None]:
    """Logging and warnings as they were before."""
    names = ("llmray", *console.NOISY)
    found = {name: logging.getLogger(name) for name in names}
    before = {name: (one.level, one.propagate, list(one.filters)) for name, one in found.items()}
    with warnings.catch_warnings():
        yield
    logging.getLogger("llmray").handlers[:] = []
    for name, (level, propagate, filters) in before.items():
        found[name].setLevel(level)
        found[name].propagate = propagate
        found[name].filters[:] = filters


def test_our_progress_is_shown_with_the_time_and_others_only_with_trouble(
    loggers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    console.setup()
    logging.getLogger("llmray.train").info("step %d", 5)
    logging.getLogger("llmray.train").debug("too much")
    logging.getLogger("ray.train").info("chatter")
    logging.getLogger("ray.train").warning("chatter")
    said = capsys.readouterr()
    assert re.fullmatch(r"  0:0\d  step 5\n", said.err)
    assert said.out == ""


def test_a_second_setup_does_not_say_everything_twice(loggers: None, capsys: pytest.CaptureFixture[str]) -> None:
    console.setup()
    console.setup(logging.WARNING)
    logging.getLogger("llmray").warning("once")
    logging.getLogger("llmray").info("never")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_table_lines_up() -> None:
    rows = [("train", 1234567, 0.123456, True, None), ("a long name", 5, 98765.4, False, "x")]
    assert console.table(["step", "rows", "loss", "ok", "note"], rows).splitlines() == [
        "step              rows    loss   ok  note",
        "-----------  ---------  ------  ---  ----",
        "train        1,234,567  0.1235  yes",
        "a long name          5  98,765   no  x",
    ]


def test_a_table_of_nothing_has_its_headers() -> None:
    assert console.table(["name", "kind"], []) == "name  kind\n----  ----"


def test_a_row_of_another_length_is_our_bug() -> None:
    with pytest.raises((ValueError, IndexError)):
        console.table(["a", "b"], [("only one",)])
