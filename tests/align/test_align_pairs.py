"""Feedback becomes pairs: what is used, what is left out and why, whatever the order it came in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.align.pairs import PreferenceData, preference_data, prompt_of
from llmray.data.rows import parse_row
from llmray.digest import digest_of
from llmray.errors import InputError

ASKED = ({"role": "user", "content": "What does sleep do?"},)
ELSE = ({"role": "user", "content": "What does open do?"},)


@dataclass(frozen=True, kw_only=True)
class Said:
    completion: str
    messages: Sequence[Mapping[str, Any]] = ASKED


@dataclass(frozen=True, kw_only=True)
class Opinion:
    id: str
    output_id: str = "a"
    kind: str = "preference"
    value: Mapping[str, Any] = field(default_factory=dict)
    other_output_id: str | None = None


OUTPUTS = {
    "a": Said(completion="It waits."),
    "a2": Said(completion=" It waits.\n"),
    "b": Said(completion="It sleeps."),
    "c": Said(completion="A bed."),
    "empty": Said(completion=" \n"),
    "nothing": Said(completion=""),
    "else": Said(completion="It opens.", messages=ELSE),
    "ends": Said(completion="More.", messages=(*ASKED, {"role": "assistant", "content": "It"})),
}


def prefer(id_: str, better: str, worse: str) -> Opinion:
    return Opinion(id=id_, output_id=better, other_output_id=worse)


def correct(id_: str, output: str, text: str) -> Opinion:
    return Opinion(id=id_, output_id=output, kind="correction", value={"text": text})


def of(*opinions: Opinion) -> PreferenceData:
    return preference_data(opinions, OUTPUTS)


def test_a_preference_is_the_winner_over_the_loser() -> None:
    data = of(prefer("1", "b", "a"))
    prompt = "What does sleep do?"
    assert data.records == [
        {"prompt": prompt, "chosen": "It sleeps.", "rejected": "It waits.", "group": digest_of(prompt)}
    ]
    assert (data.feedback_in, data.left_out, data.used) == (1, {}, ["1"])


def test_a_correction_is_the_text_over_the_answer() -> None:
    [record] = of(correct("1", "c", "It waits a while.")).records
    assert (record["chosen"], record["rejected"]) == ("It waits a while.", "A bed.")


def test_a_record_is_a_row_of_shape_preference() -> None:
    row = parse_row(of(prefer("1", "b", "a")).records[0])
    assert (row.shape, row.prompt, row.chosen) == ("preference", "What does sleep do?", "It sleeps.")


def test_the_caller_may_name_the_group_of_a_prompt() -> None:
    opinions = [prefer("1", "a", "b"), prefer("2", "else", "other")]
    outputs = {**OUTPUTS, "other": Said(completion="It shuts.", messages=ELSE)}
    data = preference_data(opinions, outputs, group={ASKED[0]["content"]: "time.sleep"}.get)
    assert {record["prompt"]: record["group"] for record in data.records} == {
        "What does sleep do?": "time.sleep",
        "What does open do?": digest_of("What does open do?"),
    }


def test_white_space_may_lose_but_not_win() -> None:
    [record] = of(prefer("1", "a", "empty")).records
    assert record["rejected"] == " \n"


@pytest.mark.parametrize(
    ("opinion", "reason"),
    [
        (Opinion(id="1", kind="thumb", value={"thumb": "up"}), "no_pair"),
        (Opinion(id="1", kind="rating", value={"rating": 5}), "no_pair"),
        (prefer("1", "a", "else"), "other_messages"),
        (prefer("1", "a", "gone"), "unknown_output"),
        (prefer("1", "gone", "a"), "unknown_output"),
        (correct("1", "gone", "x"), "unknown_output"),
        (correct("1", "ends", "Something."), "no_question"),
        (prefer("1", "a", "a2"), "identical"),
        (correct("1", "a", "\tIt waits. "), "identical"),
        (prefer("1", "empty", "a"), "no_answer"),
        (prefer("1", "a", "nothing"), "no_answer"),
        (correct("1", "a", " "), "no_answer"),
    ],
)
def test_what_teaches_nothing_is_left_out_for_its_reason(opinion: Opinion, reason: str) -> None:
    data = of(opinion, prefer("2", "b", "c"))
    assert data.left_out == {reason: 1}
    assert data.used == ["2"]


def test_contradictions_go_on_both_sides_whoever_says_so_and_how_often() -> None:
    data = of(prefer("1", "a", "b"), prefer("2", "b", "a2"), prefer("3", "a", "b"), prefer("4", "a", "c"))
    assert data.left_out == {"contradicted": 2, "duplicate": 1}
    assert data.used == ["4"]


def test_a_correction_can_contradict_a_preference() -> None:
    assert of(prefer("1", "a", "b"), correct("2", "a", "It sleeps.")).left_out == {"contradicted": 2}


def test_the_same_answers_to_another_question_contradict_nothing() -> None:
    outputs = {
        **OUTPUTS,
        "a'": Said(completion="It waits.", messages=ELSE),
        "b'": Said(completion="It sleeps.", messages=ELSE),
    }
    data = preference_data([prefer("1", "a", "b"), prefer("2", "b'", "a'")], outputs)
    assert (len(data.records), data.left_out) == (2, {})


def test_repeats_count_once_and_the_smallest_id_stands_for_them() -> None:
    data = of(prefer("9", "a2", "b"), prefer("3", "a", "b"), correct("5", "b", "It waits."))
    assert (len(data.records), data.left_out, data.used) == (1, {"duplicate": 2}, ["3"])
    assert data.records[0]["chosen"] == "It waits."


def test_a_system_message_and_earlier_rounds_are_part_of_the_prompt() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And sleep?"},
    ]
    assert prompt_of(messages) == "System:\nBe brief.\n\nUser:\nHello\n\nAssistant:\nHi\n\nAnd sleep?"
    assert prompt_of(messages[-1:]) == "And sleep?"
    assert prompt_of([]) is None


@pytest.mark.parametrize(
    ("opinion", "message"),
    [
        (Opinion(id="f7"), "f7 is a preference without other_output_id"),
        (Opinion(id="f7", kind="correction", value={"reason": "x"}), "f7 is a correction whose value has no text"),
    ],
)
def test_feedback_that_cannot_be_read_is_an_error_that_names_it(opinion: Opinion, message: str) -> None:
    with pytest.raises(InputError, match=message):
        of(opinion)


def test_no_feedback_is_no_records() -> None:
    assert of() == PreferenceData(records=[], feedback_in=0, left_out={}, used=[])


_IDS = st.sampled_from([*sorted(OUTPUTS), "gone"])
_OPINIONS = st.lists(
    st.one_of(
        st.builds(lambda better, worse: prefer("", better, worse), _IDS, _IDS),
        st.builds(lambda output, text: correct("", output, text), _IDS, st.sampled_from(["It sleeps.", "A bed.", " "])),
        st.builds(lambda output: Opinion(id="", output_id=output, kind="thumb", value={"thumb": "up"}), _IDS),
    ),
    max_size=12,
)


@given(opinions=_OPINIONS, data=st.data())
def test_the_order_of_feedback_changes_nothing(opinions: list[Opinion], data: st.DataObject) -> None:
    numbered = [
        Opinion(id=f"{i:02}", output_id=o.output_id, kind=o.kind, value=o.value, other_output_id=o.other_output_id)
        for i, o in enumerate(opinions)
    ]
    assert of(*data.draw(st.permutations(numbered))) == of(*numbered)


@given(opinions=_OPINIONS)
def test_no_two_records_contradict_and_all_feedback_is_accounted_for(opinions: list[Opinion]) -> None:
    data = preference_data(opinions, OUTPUTS)
    said = [(r["prompt"], r["chosen"].strip(), r["rejected"].strip()) for r in data.records]
    assert len(set(said)) == len(said)
    assert not {(prompt, rejected, chosen) for prompt, chosen, rejected in said} & set(said)
    assert len(opinions) == len(data.records) + sum(data.left_out.values())
