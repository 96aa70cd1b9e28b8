"""The default source on the Python that runs the tests."""

import gzip
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.data.python_docs import NUM_CHOICES, DocsCounts, Task, draw_choices, write_python_docs
from llmray.data.rows import parse_row


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DocsCounts]:
    folder = tmp_path_factory.mktemp("docs")
    return folder, write_python_docs(folder)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in gzip.open(folder / f"{name}.jsonl.gz")]


def test_thousands_of_rows_and_the_counts_are_true(written: tuple[Path, DocsCounts]) -> None:
    folder, counts = written
    assert counts.objects > 10_000
    assert counts.modules > 300
    assert len(rows(folder, "text")) == counts.text_rows == counts.objects
    assert len(rows(folder, "questions")) == counts.messages_rows == counts.objects
    assert len(rows(folder, "tasks")) == counts.task_rows > 3000


def test_a_second_run_writes_the_same_bytes(written: tuple[Path, DocsCounts], tmp_path: Path) -> None:
    folder, counts = written
    assert write_python_docs(tmp_path) == counts
    for name in ("text", "questions", "tasks"):
        assert (tmp_path / f"{name}.jsonl.gz").read_bytes() == (folder / f"{name}.jsonl.gz").read_bytes()


def test_every_line_is_a_row_and_none_names_an_address(written: tuple[Path, DocsCounts]) -> None:
    for name in ("text", "questions", "tasks"):
        for record in rows(written[0], name):
            row = parse_row(record)
            assert row.group
            assert "at 0x7" not in row.whole


def test_real_repeats_and_real_junk_are_there(written: tuple[Path, DocsCounts]) -> None:
    said = Counter(record["text"] for record in rows(written[0], "text"))
    assert said[""] > 100
    assert said["Return repr(self)."] > 50
    asked = {record["messages"][0]["content"]: record for record in rows(written[0], "questions")}
    join, alias = asked["What does `posixpath.join` do?"], asked["What does `os.path.join` do?"]
    assert join["messages"][1] == alias["messages"][1]
    assert join["group"] == alias["group"] == "posixpath.join"
    assert any(text.startswith("Alias for field number") for text in said)


def test_the_module_is_right_and_among_the_choices(written: tuple[Path, DocsCounts]) -> None:
    tasks = rows(written[0], "tasks")
    assert all(len(task["choices"]) == NUM_CHOICES for task in tasks)
    answers = {task["messages"][0]["content"].split(" It is")[0]: task["messages"][1]["content"] for task in tasks}
    assert answers["Which module defines `normcase`?"] in ("posixpath", "ntpath")
    assert answers["Which module defines `getcwd`?"] == "os"
    assert answers["Which module defines `OrderedDict`?"] == "collections"


def _distinct(tasks: list[dict[str, Any]]) -> list[tuple[tuple[str, ...], str]]:
    """(choices, answer) of each task once, however many aliases ask it."""
    unique = {(task["messages"][0]["content"], task["messages"][1]["content"]): task for task in tasks}
    return [(tuple(task["choices"]), task["messages"][1]["content"]) for task in unique.values()]


def test_no_guess_from_the_choices_beats_one_in_four(written: tuple[Path, DocsCounts]) -> None:
    tasks = _distinct(rows(written[0], "tasks"))
    often = Counter(answer for _, answer in tasks)
    for guess in (
        lambda choices: max(choices, key=lambda choice: (often[choice], choice)),
        lambda choices: min(choices, key=lambda choice: (often[choice], choice)),
        min,
        lambda choices: max(choices, key=len),
    ):
        right = sum(guess(sorted(choices)) == answer for choices, answer in tasks)
        assert right / len(tasks) <= 0.25 + 1e-9
    places = Counter(choices.index(answer) for choices, answer in tasks)
    assert all(abs(count / len(tasks) - 0.25) < 0.03 for count in places.values())


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=120))
def test_each_set_of_choices_is_right_evenly(pairs: list[tuple[int, int]]) -> None:
    made = [Task(question=f"q{question}", answer=f"m{answer}", group="g") for question, answer in pairs]
    tasks = {task.key: task for task in made}
    drawn = draw_choices(tasks)
    right: dict[frozenset[str], Counter[str]] = defaultdict(Counter)
    answers: dict[str, set[str]] = defaultdict(set)
    for task in tasks.values():
        answers[task.question].add(task.answer)
    for key, choices in drawn.items():
        assert tasks[key].answer in choices
        assert len(set(choices)) == NUM_CHOICES
        # No other choice would be right as well.
        assert answers[tasks[key].question] & set(choices) == {tasks[key].answer}
        right[frozenset(choices)][tasks[key].answer] += 1
    for counts in right.values():
        assert len(set(counts.values())) == 1
        assert len(counts) == NUM_CHOICES
    assert drawn == draw_choices(dict(sorted(tasks.items(), reverse=True)))
