"""Row shapes, ids, and the reasons why a record is no row."""

from typing import Any

import pytest

from llmray.data.config import Dedup
from llmray.data.exact import exact_key
from llmray.data.normalize import Normalization
from llmray.data.rows import Row, RowError, parse_row

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("record", "shape", "answer"),
    [
        ({"text": "001"}, "text", "001"),
        ({"text": ""}, "text", ""),
        ({"text": "x", "extra": 5}, "text", "x"),
        ({"messages": TURNS}, "messages", "a"),
        ({"messages": TURNS, "text": "whole"}, "messages", "a"),
        ({"messages": None, "text": "x"}, "text", "x"),
        ({"question": "q", "answer": "a"}, "messages", "a"),
        ({"question": "q", "answer": "a", "choices": ["a", "b"]}, "messages", "a"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference", "c"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "text": "x"}, "preference", "c"),
    ],
)
def test_shapes(record: dict[str, Any], shape: str, answer: str) -> None:
    row = parse_row(record)
    assert (row.shape, row.answer) == (shape, answer)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (5, "not an object: a number"),
        (None, "not an object: null"),
        (["text"], "not an object: a list"),
        ({}, "has no field"),
        ({"txt": "a"}, "has txt"),
        ({"text": 1}, "text is a number, not a string"),
        ({"text": True}, "text is true or false, not a string"),
        ({"text": None}, "has no field"),
        ({"text": ["a"]}, "text is a list, not a string"),
        ({"messages": "hi"}, "messages is a string, not a list of turns"),
        ({"messages": []}, "messages is empty"),
        ({"messages": ["hi"]}, "turn 1 of messages is a string"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no assistant turn"),
        ({"messages": [{"role": "bot", "content": "q"}]}, "role 'bot'"),
        ({"messages": [*TURNS, {"role": "user", "content": None}]}, "turn 3 of messages has content that is null"),
        ({"messages": TURNS, "choices": ["b", "c"]}, "does not contain the assistant's last turn"),
        ({"messages": TURNS, "choices": ["a"]}, "two or more answers"),
        ({"messages": TURNS, "choices": ["a", "a"]}, "all different"),
        ({"messages": TURNS, "choices": ["a", 2]}, "not a list of strings"),
        ({"messages": TURNS, "choices": "ab"}, "not a list of strings"),
        ({"chosen": "c", "rejected": "r"}, "prompt is missing"),
        ({"prompt": "p", "chosen": "c", "rejected": 3}, "rejected is a number"),
        ({"question": "q", "answer": 3}, "answer is a number"),
        ({"text": "a", "group": 7}, "group is a number"),
    ],
)
def test_reasons(record: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(record)
    assert reason in str(caught.value)


def test_the_id_is_of_the_content_alone() -> None:
    assert Row(shape="text", text="a", group="g").id == Row(shape="text", text="a").id
    ids = {
        Row(shape="text", text="a").id,
        Row(shape="text", text="A").id,
        parse_row({"question": "q", "answer": "a"}).id,
        parse_row({"question": "q", "answer": "a", "choices": ["a", "b"]}).id,
        parse_row({"question": "q", "answer": "a", "choices": ["b", "a"]}).id,
        parse_row({"prompt": "q", "chosen": "a", "rejected": ""}).id,
    }
    assert len(ids) == 6
    assert parse_row({"question": "q", "answer": "a"}).id == parse_row({"messages": TURNS}).id


def test_parts_of_a_row_do_not_run_together() -> None:
    one = parse_row({"prompt": "a", "chosen": "b", "rejected": "c"})
    other = parse_row({"prompt": "ab", "chosen": "", "rejected": "c"})
    assert one.whole != other.whole


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {"prompt": "Which city?", "chosen": "New York", "rejected": "City of Angels"},
            {"prompt": "Which city?", "chosen": "New", "rejected": "York City of Angels"},
        ),
        (
            {"messages": [*TURNS, {"role": "user", "content": "b c"}, {"role": "user", "content": "d"}]},
            {"messages": [*TURNS, {"role": "user", "content": "b"}, {"role": "user", "content": "c d"}]},
        ),
        (
            {"question": "?", "answer": "1", "choices": ["1", "2 3", "4"]},
            {"question": "?", "answer": "1", "choices": ["1", "2", "3 4"]},
        ),
    ],
)
def test_where_a_part_ends_is_a_part_of_what_a_row_says(one: dict[str, Any], other: dict[str, Any]) -> None:
    keys = {exact_key("", Dedup().exact_text(parse_row(row)), Normalization()) for row in (one, other)}
    assert len(keys) == 2
