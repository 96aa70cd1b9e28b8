"""Conversations and preferences in the forms that are published, and why some are refused."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.align.pairs import prompt_of
from llmray.data.rows import Row, RowError, parse_row
from llmray.data.turns import prompt_text, read_transcript


def said(*turns: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


def shared(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": name, "value": text} for name, text in turns]


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"conversations": shared(("human", "q"), ("gpt", "a"))}, [("user", "q"), ("assistant", "a")]),
        ({"conversations": said("q", "a")}, [("user", "q"), ("assistant", "a")]),
        ({"messages": shared(("user", "q"), ("assistant", "a"))}, [("user", "q"), ("assistant", "a")]),
        (
            {"conversations": shared(("system", "s"), ("human", "q"), ("tool", "t"), ("gpt", "a"))},
            [("system", "s"), ("user", "q"), ("tool", "t"), ("assistant", "a")],
        ),
        (
            {"system": "s", "conversations": shared(("human", "q"), ("gpt", "a"))},
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        (
            {"system": "other", "conversations": shared(("system", "s"), ("human", "q"), ("gpt", "a"))},
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        ({"conversations": shared(("gpt", "a"))}, [("assistant", "a")]),
        ({"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, [("user", "q"), ("assistant", "a")]),
        ({"instruction": "do", "output": "done"}, [("user", "do"), ("assistant", "done")]),
        ({"instruction": "do", "input": " ", "output": "done"}, [("user", "do"), ("assistant", "done")]),
        ({"instruction": "do", "input": "this", "output": "done"}, [("user", "do\n\nthis"), ("assistant", "done")]),
        (
            {"instruction": "do", "input": None, "output": "done", "system": "s", "text": "all of it"},
            [("system", "s"), ("user", "do"), ("assistant", "done")],
        ),
    ],
)
def test_conversations(record: dict[str, Any], messages: list[tuple[str, str]]) -> None:
    row = parse_row(record)
    assert (row.shape, row.messages) == ("messages", tuple(messages))
    assert row.id == Row(shape="messages", messages=tuple(messages)).id


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversations": "hi"}, "conversations is a string, not a list of turns"),
        ({"conversations": []}, "conversations is empty"),
        ({"conversations": ["hi"]}, "turn 1 of conversations is a string"),
        ({"conversations": shared(("narrator", "x"))}, "turn 1 of conversations has from 'narrator', not one of"),
        ({"conversations": [{"from": "gpt", "value": 5}]}, "turn 1 of conversations has value that is a number"),
        ({"conversations": [{"from": "gpt"}]}, "turn 1 of conversations has value that is null"),
        ({"conversations": [{"value": "x"}]}, "turn 1 of conversations has role None"),
        ({"conversations": shared(("human", "q"))}, "conversations has no assistant turn"),
        ({"conversations": {"from": ["human"], "value": ["q", "a"]}}, "different lengths: from of 1, value of 2"),
        ({"conversations": {"from": "human"}}, "conversations is an object, not a list of turns"),
        ({"conversations": shared(("gpt", "a")), "system": 5}, "system is a number"),
        (
            {"messages": [{"role": "human", "content": "q"}]},
            "has role 'human', not one of assistant, system, tool, user",
        ),
        ({"instruction": "do"}, "output is missing"),
        ({"instruction": 5, "output": "done"}, "instruction is a number"),
        ({"instruction": "do", "input": [], "output": "done"}, "input is a list, not a string"),
        ({"instruction": "do", "output": None}, "output is missing"),
        ({"input": "a", "output": "b"}, "has input, output"),
    ],
)
def test_conversations_that_are_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(record)
    assert reason in str(caught.value)


def test_a_text_with_an_instruction_but_no_output_is_a_text() -> None:
    assert parse_row({"instruction": "do", "text": "t"}).text == "t"


@pytest.mark.parametrize(
    ("record", "prompt", "chosen", "rejected"),
    [
        ({"chosen": said("q", "good"), "rejected": said("q", "bad")}, "q", "good", "bad"),
        ({"prompt": "q", "chosen": said("q", "good"), "rejected": said("q", "bad")}, "q", "good", "bad"),
        ({"prompt": said("q"), "chosen": said("q", "good"), "rejected": said("q", "bad")}, "q", "good", "bad"),
        ({"prompt": "q", "chosen": said("", "good")[1:], "rejected": said("", "bad")[1:]}, "q", "good", "bad"),
        ({"prompt": said("q"), "chosen": said("", "good")[1:], "rejected": said("", "bad")[1:]}, "q", "good", "bad"),
        ({"prompt": said("q"), "chosen": "good", "rejected": "bad"}, "q", "good", "bad"),
        ({"prompt": "q", "chosen": said("q", "good")[1:], "rejected": "bad"}, "q", "good", "bad"),
        ({"prompt": "q", "chosen": said("q", "good")[1], "rejected": said("q", "bad")[1]}, "q", "good", "bad"),
        (
            {
                "conversations": shared(("human", "q")),
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            *("q", "good", "bad"),
        ),
        (
            {"chosen": said("q1", "a1", "q2", "good"), "rejected": said("q1", "a1", "q2", "bad")},
            *("User:\nq1\n\nAssistant:\na1\n\nq2", "good", "bad"),
        ),
        (
            {"prompt": "q2", "chosen": said("q1", "a1", "q2", "good"), "rejected": said("q1", "a1", "q2", "bad")},
            *("User:\nq1\n\nAssistant:\na1\n\nq2", "good", "bad"),
        ),
        ({"chosen": said("q", "same"), "rejected": said("q", "same")}, "q", "same", "same"),
        (
            {
                "chosen": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: good\n\n- with a list\n",
                "rejected": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: bad, Human: he said",
            },
            *("User:\nq1\n\nAssistant:\na1\n\nq2", "good\n\n- with a list", "bad, Human: he said"),
        ),
        ({"chosen": "Human: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant:"}, "q", "good", ""),
        # Both answers begin alike: the shared part ends before the last answer, wherever the texts part.
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: I would", "rejected": "\n\nHuman: q\n\nAssistant: I would not"},
            *("q", "I would", "I would not"),
        ),
    ],
)
def test_preferences(record: dict[str, Any], prompt: str, chosen: str, rejected: str) -> None:
    row = parse_row({**record, "group": "g"})
    assert (row.shape, row.group) == ("preference", "g")
    assert (row.prompt, row.chosen, row.rejected) == (prompt, chosen, rejected)
    assert row.id == parse_row({"prompt": prompt, "chosen": chosen, "rejected": rejected}).id


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "q", "chosen": "c"}, "rejected is missing"),
        ({"prompt": "q", "rejected": "c"}, "chosen is missing"),
        ({"chosen": "c", "rejected": "r"}, "prompt is missing, and chosen is no transcript"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "r"},
            "prompt is missing, and rejected is no transcript",
        ),
        ({"chosen": said("q1", "a"), "rejected": said("q2", "a")}, "share no first turn"),
        ({"chosen": said("q", "a", "q2", "b"), "rejected": said("q", "c")}, "chosen has 3 turns after what it shares"),
        ({"chosen": said("q", "c"), "rejected": said("q", "a", "q2", "b")}, "rejected has 3 turns after"),
        ({"chosen": said("q", "a", "q2"), "rejected": said("q", "a", "q3")}, "chosen ends with a turn of user"),
        ({"prompt": "other", "chosen": said("q", "a"), "rejected": said("q", "b")}, "prompt is not what chosen and"),
        ({"prompt": said("x"), "chosen": said("q", "a"), "rejected": said("q", "b")}, "prompt is not what chosen and"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "prompt is empty"),
        ({"prompt": said("q", "a"), "chosen": "a", "rejected": "b"}, "the prompt ends with a turn of assistant"),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, "prompt is a number"),
        ({"prompt": "q", "chosen": 5, "rejected": "b"}, "chosen is a number, not a string or a list of turns"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "chosen is empty"),
        ({"prompt": "q", "chosen": {"text": "a"}, "rejected": "b"}, "chosen is an object"),
        ({"prompt": "q", "chosen": [5], "rejected": "b"}, "turn 1 of chosen is a number"),
    ],
)
def test_preferences_that_are_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(record)
    assert reason in str(caught.value)


def test_ids_of_rows_that_are_in_snapshots_already_do_not_change() -> None:
    assert parse_row({"text": "a"}).id == "bae621e32343c3318f50330de7cecc56c51414f5692284e23617a64ae66cefcc"
    conversation = "9cc5e9ab47ccf460c5942036539dbb318be12e08462126f2c509555b8e81b2e8"
    assert parse_row({"question": "q", "answer": "a"}).id == conversation
    assert parse_row({"messages": said("q", "a")}).id == conversation
    preference = parse_row({"prompt": "p", "chosen": "c", "rejected": "r"})
    assert preference.id == "cbe2555b9c33feeac3b9d027a5d530b2853225555617aa8b696e39e9a21a2a28"


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), TEXT), max_size=4)


@given(TURNS, TEXT)
def test_a_prompt_has_one_text_wherever_it_comes_from(earlier: list[tuple[str, str]], question: str) -> None:
    messages = [{"role": role, "content": content} for role, content in [*earlier, ("user", question)]]
    assert prompt_text([(turn["role"], turn["content"]) for turn in messages]) == prompt_of(messages)


@given(TURNS, TEXT, TEXT, TEXT)
def test_what_two_sides_share_is_their_prompt(
    earlier: list[tuple[str, str]], question: str, chosen: str, rejected: str
) -> None:
    before = [{"role": role, "content": content} for role, content in [*earlier, ("user", question)]]
    sides = [[*before, {"role": "assistant", "content": answer}] for answer in (chosen, rejected)]
    row = parse_row({"chosen": sides[0], "rejected": sides[1]})
    assert row == parse_row({"prompt": before, "chosen": chosen, "rejected": rejected})
    assert (row.prompt, row.chosen, row.rejected) == (prompt_of(before), chosen, rejected)


@given(st.lists(st.text("ab \n", max_size=8).map(str.strip).filter(lambda text: "\n\n" not in text), min_size=1))
def test_a_transcript_is_read_as_it_was_written(contents: Sequence[str]) -> None:
    names = [("Human", "user"), ("Assistant", "assistant")]
    written = "".join(f"\n\n{names[at % 2][0]}: {content}" for at, content in enumerate(contents))
    assert read_transcript(written) == tuple((names[at % 2][1], content) for at, content in enumerate(contents))


@pytest.mark.parametrize("text", ["", "Hello", "\n\nAssistant: a", "x\n\nHuman: q\n\nAssistant: a", "Human is here"])
def test_other_texts_are_no_transcripts(text: str) -> None:
    assert read_transcript(text) is None


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXT, st.sampled_from(["user", "assistant", "human", "gpt"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3),
    ),
    max_leaves=12,
)
NAMES = [*("text", "messages", "conversations", "system", "choices", "group", "question", "answer")]
NAMES += ["instruction", "input", "output", "prompt", "chosen", "rejected", "other"]


@given(st.one_of(JUNK, st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=5)))
def test_anything_is_a_row_or_has_a_reason(record: Any) -> None:
    try:
        row = parse_row(record)
    except RowError as error:
        assert str(error)
    else:
        assert len(row.id) == 64
        assert isinstance(row.whole, str)
