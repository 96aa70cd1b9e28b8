"""Outputs and feedback."""

from datetime import timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_values import AT, feedback, fresh, output

from llmray.errors import InputError, NotFoundError
from llmray.registry.registry import Registry


def test_outputs_are_written_once(registry: Registry) -> None:
    one, two = output("one", prompt_reference="ask@production", variables={"x": [1]}), output("two", ttft_s=None)
    registry.put_outputs([one])
    registry.put_outputs([output("one", completion="another"), two])
    registry.put_outputs([])
    assert registry.output("one") == one
    assert registry.output("two") == two
    assert registry.output("three") is None


def test_the_newest_outputs_first(registry: Registry) -> None:
    registry.put_outputs(
        [output(f"o{n}", at=AT + timedelta(minutes=n), model_digest="ab"[n % 2] * 64) for n in range(6)]
    )
    assert [one.id for one in registry.outputs(2)] == ["o5", "o4"]
    assert [one.id for one in registry.outputs(9, model_digest="a" * 64)] == ["o4", "o2", "o0"]
    assert [one.id for one in registry.outputs(9, since=AT + timedelta(minutes=4))] == ["o5", "o4"]


def test_moments_come_back_in_utc(registry: Registry) -> None:
    there = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    registry.put_outputs([output("one", at=there)])
    found = registry.outputs(1, since=there)[0]
    assert found.at == AT
    assert found.at.utcoffset() == timedelta(0)
    with pytest.raises(InputError, match="timezone"):
        registry.put_outputs([output("two", at=AT.replace(tzinfo=None))])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters()))
def test_no_answer_is_lost_for_its_characters(registry: Registry, text: str) -> None:
    """NUL and unpaired surrogates cannot be stored as text; in JSON they come back as they were."""
    identity = fresh()
    registry.put_outputs([output(identity, completion=text, messages=[{"role": "user", "content": text}])])
    found = registry.output(identity)
    assert found is not None
    assert found.messages == [{"role": "user", "content": text}]
    assert found.completion == "".join("\ufffd" if c == "\0" or 0xD800 <= ord(c) < 0xE000 else c for c in text)


def test_feedback_attaches_to_outputs(registry: Registry) -> None:
    registry.put_outputs([output("one"), output("two")])
    thumb = feedback("f1", "one")
    choice = feedback(
        "f2",
        "two",
        kind="preference",
        value={"chosen": "two"},
        other_output_id="one",
        source="bot",
        rule="shorter wins",
        at=AT + timedelta(hours=1),
    )
    assert [registry.put_feedback(one) for one in (choice, thumb, thumb)] == ["f2", "f1", "f1"]
    assert registry.feedback() == [thumb, choice]
    assert registry.feedback(output_id="two") == [choice]
    assert registry.feedback(source="ada") == [thumb]
    assert registry.feedback(since=AT + timedelta(minutes=1)) == [choice]


def test_feedback_on_nothing_is_refused(registry: Registry) -> None:
    registry.put_outputs([output("one")])
    with pytest.raises(NotFoundError, match="no output nope"):
        registry.put_feedback(feedback("f", "nope"))
    with pytest.raises(NotFoundError, match="no output nope"):
        registry.put_feedback(feedback("f", "one", kind="preference", other_output_id="nope"))
    with pytest.raises(InputError, match="must be one of thumb, rating"):
        registry.put_feedback(feedback("f", "one", kind="applause"))
    with pytest.raises(InputError, match="preference needs it"):
        registry.put_feedback(feedback("f", "one", kind="preference"))
    assert registry.feedback() == []
