"""Row shapes, ids, and the reasons why a record is no row."""

from typing import Any

import pytest

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
