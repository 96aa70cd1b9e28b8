"""The simulated users: open rules, and questions that depend on the seed alone."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.flow.traffic import RULE, THUMB_UP_FROM, Question, judge, ordered, unusual_questions, word_f1

TEXTS = st.lists(st.sampled_from(["join", "splits", "a", "path", "Path", "loads", "42", "é"]), max_size=8).map(" ".join)
DOCUMENTED = Question(id="q", text="What does os.path.join do?", answer="Joins the parts of a path.")


@given(TEXTS, TEXTS)
def test_f1_is_symmetric_and_one_only_for_the_same_words(one: str, other: str) -> None:
    value = word_f1(one, other)
    assert value == word_f1(other, one)
    assert 0.0 <= value <= 1.0
    same = bool(one) and sorted(one.lower().split()) == sorted(other.lower().split())
    assert (value == 1.0) == same
    assert (value > 0.0) == bool(set(one.lower().split()) & set(other.lower().split()))


def test_f1_by_hand() -> None:
    assert word_f1("it joins the paths", "Joins the parts of a path.") == pytest.approx(2 * 2 / (4 + 6))
    assert word_f1("the the the", "the path") == pytest.approx(2 * 1 / (3 + 2))
    assert word_f1("", "") == 0.0


def test_the_better_answer_is_preferred_and_a_poor_first_one_is_corrected() -> None:
    good, poor = "joins parts of a path", "sends an email"
    up = judge(DOCUMENTED, good, poor)
    assert (up.preferred, up.thumb, up.correction) == (0, "up", None)
    down = judge(DOCUMENTED, poor, good)
    assert (down.preferred, down.thumb, down.correction) == (1, "down", DOCUMENTED.answer)
    assert (down.first_f1, down.second_f1) == (up.second_f1, up.first_f1)
    assert judge(DOCUMENTED, good, good).preferred is None
    assert f"{THUMB_UP_FROM:g}" in RULE


def test_a_thumb_is_up_from_the_threshold_on() -> None:
    answer = "path b c d"  # one word of four shared with six: F1 2·1/(4+6) = 0.2
    assert judge(DOCUMENTED, answer, "").first_f1 == pytest.approx(THUMB_UP_FROM)
    assert judge(DOCUMENTED, answer, "").thumb == "up"
    assert judge(DOCUMENTED, f"{answer} e", "").thumb == "down"


@given(st.permutations(range(12)), st.integers(0, 1000))
def test_the_order_depends_on_ids_and_seed_not_on_arrival(arrival: list[int], seed: int) -> None:
    questions = [Question(id=str(n), text="?", answer="!") for n in range(12)]
    came = ordered([questions[n] for n in arrival], seed)
    assert came == ordered(questions, seed)
    assert sorted(came, key=lambda question: int(question.id)) == questions


def test_another_seed_is_another_order() -> None:
    questions = [Question(id=str(n), text="?", answer="!") for n in range(12)]
    assert len({tuple(question.id for question in ordered(questions, seed)) for seed in range(20)}) == 20


def test_unusual_questions_depend_on_the_seed_alone() -> None:
    asked = unusual_questions(60, seed=3)
    assert asked == unusual_questions(60, seed=3)
    assert asked != unusual_questions(60, seed=4)
    assert asked[:20] == unusual_questions(20, seed=3)
    assert all(question.endswith("?") for question in asked)
    assert len(set(asked)) > 30


def test_unusual_questions_share_few_words_with_usual_ones() -> None:
    usual = " ".join(
        f"What does `{module}.{name}` do? Which module defines `{name}`? What does the example of {name} print?"
        for module in ("os", "json", "math", "string", "random", "re", "collections", "itertools", "pathlib", "time")
        for name in dir(__import__(module))
    )
    known = set(re.findall(r"\w+", usual.lower()))
    for question in unusual_questions(90, seed=0):
        words = re.findall(r"\w+", question.lower())
        assert sum(word in known for word in words) < len(words) / 2, question
