"""Evaluation items planted in text are found, named, and told from quotations."""

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmray.data.contamination import Contamination, EvalIndex, EvalItem, Overlap, load, passages
from llmray.data.rows import parse_row
from llmray.errors import ConfigError, InputError, NotFoundError


def words(first: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(first, first + count))


def index(*texts: str, n: int = 13, least: int = 8) -> EvalIndex:
    items = [EvalItem(set="quiz", number=number, text=text) for number, text in enumerate(texts, 1)]
    return EvalIndex.build(items, ngram_words=n, min_words=least)


def test_an_item_that_is_whole_in_a_text_is_found_whole() -> None:
    [found] = index(words(0, 30), words(100, 30)).overlap([f"before {words(100, 30)} after"])
    assert found == Overlap(set="quiz", number=2, share=1.0, shared=18)
    assert found.why == "holds 100% of item 2 of quiz (18 runs of words)"


def test_case_punctuation_and_white_space_hide_nothing() -> None:
    [found] = index(words(0, 14)).overlap([words(0, 14).upper().replace(" ", ",\n  ")])
    assert found is not None and found.share == 1.0


def test_a_share_is_of_the_items_distinct_runs() -> None:
    # 22 words have 10 runs of 13; of the first 17 words a text has 5 of them.
    found = index(words(0, 22)).overlap([words(0, 17), words(0, 12), words(0, 17) + " and " + words(0, 17), ""])
    assert found[0] == found[2] == Overlap(set="quiz", number=1, share=0.5, shared=5)
    assert found[1] is None and found[3] is None


def test_a_short_item_is_one_run_of_all_its_words() -> None:
    quiz = index(words(0, 9), words(50, 7))
    assert quiz.num_short == 1 and quiz.lengths == (9,)
    assert quiz.overlap([f"x {words(0, 9)} y"])[0] == Overlap(set="quiz", number=1, share=1.0, shared=1)
    assert quiz.overlap([words(0, 8), words(50, 7)]) == [None, None]
    assert quiz.overlap([f"{words(0, 4)} x {words(4, 5)}"]) == [None]


def test_the_largest_share_wins_then_the_most_runs_then_the_first() -> None:
    quiz = index(words(0, 40), words(0, 20), words(0, 20), words(0, 13))
    assert quiz.overlap([words(0, 20)]) == [Overlap(set="quiz", number=2, share=1.0, shared=8)]
    assert quiz.overlap([words(0, 13)]) == [Overlap(set="quiz", number=4, share=1.0, shared=1)]


def test_an_empty_index_finds_nothing() -> None:
    assert index().overlap([words(0, 20)]) == [None]
    assert index("too short").overlap([words(0, 20)]) == [None]
    assert index(words(0, 20)).overlap([]) == []


RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine fails no test."""
WORD = st.sampled_from(["a", "b", "c", "d"])


@RELAXED
@given(
    st.lists(st.lists(WORD, max_size=12), max_size=5),
    st.lists(st.lists(WORD, max_size=20), max_size=5),
)
def test_against_the_definition(items: list[list[str]], texts: list[list[str]]) -> None:
    def runs(tokens: list[str], size: int) -> set[tuple[str, ...]]:
        return {tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)}

    expected: list[tuple[float, int, int] | None] = []
    for text in texts:
        best = None
        for number, item in enumerate(items, 1):
            if len(item) < 2:
                continue
            mine = runs(item, min(4, len(item)))
            shared = len(mine & runs(text, min(4, len(item))))
            if shared and (best is None or (shared / len(mine), shared, -number) > best):
                best = (shared / len(mine), shared, -number)
        expected.append(best)
    quiz = index(*(" ".join(item) for item in items), n=4, least=2)
    found = quiz.overlap([" ".join(text) for text in texts])
    assert [None if one is None else (one.share, one.shared, -one.number) for one in found] == expected
    assert found == [quiz.overlap([" ".join(text)])[0] for text in texts]


def test_passages_of_each_shape() -> None:
    assert passages(parse_row({"text": "t"})) == ["t"]
    assert passages(parse_row({"question": "q", "answer": "a"})) == ["q", "a"]
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    assert passages(parse_row({"messages": turns})) == ["u", "a"]
    assert passages(parse_row({"prompt": "p", "chosen": "c", "rejected": "r"})) == ["p", "c", "r"]


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"sets": ("gsm8k",)}, "must be name=uri"),
        ({"sets": ("a=x", "a=y")}, "name of its own"),
        ({"ngram_words": 0}, "try 13"),
        ({"min_words": 14}, "try 8"),
        ({"max_share": 1.0}, "try 0.2"),
    ],
)
def test_impossible_settings_name_the_fix(fields: dict[str, object], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        Contamination(**fields)  # type: ignore[arg-type]


def test_a_set_that_cannot_be_read_whole_stops_the_run(tmp_path: Path) -> None:
    good, bad, short, empty = (tmp_path / f"{name}.jsonl" for name in ("good", "bad", "short", "empty"))
    line = f'{{"text": "{words(0, 20)}"}}\n'
    good.write_text(line)
    bad.write_text(line + "{broken\n")
    short.write_text('{"text": "Yes."}\n')
    empty.write_text("")
    found = load(Contamination(sets=(f"quiz={good}",)))
    assert found.items == (EvalItem(set="quiz", number=1, text=words(0, 20)),)
    assert pickle.loads(pickle.dumps(found)).overlap([words(0, 20)]) == found.overlap([words(0, 20)])
    with pytest.raises(InputError, match="row 2"):
        load(Contamination(sets=(f"quiz={bad}",)))
    with pytest.raises(InputError, match=r"lower contamination\.min_words"):
        load(Contamination(sets=(f"quiz={good}", f"other={short}")))
    with pytest.raises(InputError, match="has no row"):
        load(Contamination(sets=(f"quiz={empty}",)))
    with pytest.raises(NotFoundError):
        load(Contamination(sets=(f"quiz={tmp_path / 'none.jsonl'}",)))


@pytest.fixture(scope="module")
def gsm8k() -> EvalIndex:
    folder = os.environ.get("LLMRAY_DATA")
    if not folder:
        pytest.skip("LLMRAY_DATA names no folder of public data")
    return load(Contamination(sets=(f"gsm8k={Path(folder) / 'gsm8k_train.jsonl'}",)))


@pytest.mark.data
def test_questions_of_gsm8k_planted_in_shakespeare(gsm8k: EvalIndex) -> None:
    plays = (Path(os.environ["LLMRAY_DATA"]) / "tinyshakespeare.txt").read_text()
    scenes = [plays[at : at + 3000] for at in range(0, 600_000, 3000)]
    assert gsm8k.overlap(scenes) == [None] * len(scenes)
    questions = [item for item in gsm8k.items if len(item.text.split()) >= 20][:: len(gsm8k.items) // 199]
    planted = [
        scene[:1500] + "\n" + item.text + "\n" + scene[1500:] for scene, item in zip(scenes, questions, strict=False)
    ]
    found = gsm8k.overlap(planted)
    assert len(planted) > 100
    assert all(one is not None and one.share == 1.0 for one in found)
    # Items with the same words as another are named by the first of them.
    named = [one is not None and one.number == item.number for one, item in zip(found, questions, strict=False)]
    assert sum(named) >= len(planted) - 2


@pytest.mark.data
def test_half_a_question_is_half_found(gsm8k: EvalIndex) -> None:
    item = next(item for item in gsm8k.items if item.text.startswith("Natalia sold clips"))
    tokens = item.text.split()
    [found] = gsm8k.overlap([" ".join(tokens[: len(tokens) // 2 + 6])])
    assert found is not None and found.number == item.number == 1
    assert 0.4 < found.share < 0.7
