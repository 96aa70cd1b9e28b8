"""Each rule on both sides of its limit."""

import math

import pytest

from llmray.data import rules
from llmray.data.rows import Row, parse_row
from llmray.data.rules import Outliers, Rule, build, judge
from llmray.errors import ConfigError

NO_VOWELS = Rule(name="no_vowels", measure=lambda row: sum(letter in "aeiou" for letter in row.answer), low=1)
NO_RULE = "not a rule"


def text(content: str) -> Row:
    return Row(shape="text", text=content)


def failed(row: Row, config: Outliers | None = None) -> list[str]:
    return [failure.rule for failure in judge(row, build(config or Outliers()))]


SENTENCE = "The quick brown fox jumps over the lazy dog near a river bank."
LONG = " ".join(f"word{number}" for number in range(60))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (SENTENCE, []),
        ("", ["empty", "too_short"]),
        (" \n\t", ["empty", "too_short"]),
        ("two words", ["too_short"]),
        ("just three words", []),
        ("Alias for field number 0", ["machine_made_docstring"]),
        ("Return repr(self).", ["too_short", "machine_made_docstring"]),
        ("Return self==value.", ["too_short", "machine_made_docstring"]),
        ("Return self+value.", ["too_short", "machine_made_docstring"]),
        ("Return getattr(self, name).", ["machine_made_docstring"]),
        ("Initialize self.  See help(type(self)) for accurate signature.", ["machine_made_docstring"]),
        ("Implement iter(self).", ["too_short", "machine_made_docstring"]),
        ("Return the sum of all items in the list.", []),
        ("Return self==value. And then explain at length what equality means here.", []),
        ("Helper for pickle.", ["machine_made_docstring"]),
        ("Helper for pickle. It registers a reducer.", []),
        # 10 words with one hash sign: at the limit of 0.1, which passes; 9 words: over it.
        ("# a b c d e f g h i", []),
        ("# a b c d e f g h", ["gopher_symbol_ratio"]),
        ("well ... a b c d e f g", ["gopher_symbol_ratio"]),
        ("a\nb c\nb c\nd e\nf\ng", []),
        ("same line\nsame line\nother line", ["gopher_duplicate_lines"]),
        (LONG, []),
        ("a b " * 24 + "x", []),  # 49 words: too short for Gopher's repetition rules.
        (LONG + " round and" * 40, ["gopher_top_2gram", "gopher_top_3gram", "gopher_top_4gram"]),
    ],
)
def test_text_rules(content: str, expected: list[str]) -> None:
    assert failed(text(content)) == expected


def test_other_shapes() -> None:
    assert failed(parse_row({"question": "What?", "answer": "Yes"})) == []
    worked = "4 * 2 = 8\n" * 20 + "#### 8"
    assert failed(parse_row({"question": "What is 4 * 2?", "answer": worked})) == []
    assert failed(parse_row({"question": "What?", "answer": " "})) == ["empty", "short_answer"]
    assert failed(parse_row({"prompt": "p", "chosen": "same", "rejected": "same"})) == ["same_preference"]
    assert failed(parse_row({"prompt": "p", "chosen": "one", "rejected": "other"})) == []


def test_a_failure_says_value_and_limit() -> None:
    found = judge(text("two words"), build(Outliers(min_words=5)))
    assert [(failure.rule, failure.value, failure.threshold) for failure in found] == [("too_short", 2.0, 5.0)]


def test_top_ngram_counts_characters_of_the_commonest() -> None:
    words = ["aa", "bb"] * 10 + [f"w{number:02d}" for number in range(40)]
    assert rules.top_ngram(text(" ".join(words)), 2) == pytest.approx(10 * 4 / (20 * 2 + 40 * 3))
    assert rules.top_ngram(text(LONG), 2) == 0.0
    assert rules.top_ngram(text("a a a"), 2) is None
    assert rules.top_ngram(text("a " * 60), 2) == 1.0


def test_a_value_that_is_no_number_fails() -> None:
    broken = Rule(name="broken", measure=lambda row: math.nan, low=0, high=1)
    assert [failure.rule for failure in judge(text("a"), [broken])] == ["broken"]


def test_a_rule_of_ones_own() -> None:
    config = Outliers(rules=("empty", f"{__name__}:NO_VOWELS"))
    assert failed(text("rhythm"), config) == ["no_vowels"]
    assert failed(text("vowel"), config) == []


@pytest.mark.parametrize(
    ("name", "fix"),
    [("nonsense", "choose among"), ("no.module:X", "cannot be loaded"), (f"{__name__}:NO_RULE", "make it a")],
)
def test_a_rule_that_is_none_names_the_fix(name: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        build(Outliers(rules=(name,)))
