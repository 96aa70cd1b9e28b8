"""Normalisation: what differs and what does not."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.data.normalize import Normalization, normalize, word_text

ALL = Normalization()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello  World", "hello world"),
        ("\tHello\nWorld ", "hello world"),
        ("ﬁne", "fine"),
        ("ＡＢＣ", "abc"),
        ("a\u00a0b", "a b"),
        ("Straße", "STRASSE"),
        ("e\u0301", "é"),
    ],
)
def test_differences_that_do_not_matter(one: str, other: str) -> None:
    assert normalize(one, ALL) == normalize(other, ALL)


@pytest.mark.parametrize(
    ("one", "other", "rules"),
    [
        ("Hello", "hello", Normalization(case=False)),
        ("a  b", "a b", Normalization(space=False)),
        ("Ａ", "a", Normalization(unicode=False)),
        ("version 1", "version 2", ALL),
        ("a b", "ab", ALL),
        ("it's", "its", ALL),
    ],
)
def test_differences_that_matter(one: str, other: str, rules: Normalization) -> None:
    assert normalize(one, rules) != normalize(other, rules)


@given(st.text(), st.booleans(), st.booleans(), st.booleans())
def test_normalize_is_idempotent(text: str, unicode: bool, case: bool, space: bool) -> None:
    rules = Normalization(unicode=unicode, case=case, space=space)
    once = normalize(text, rules)
    assert normalize(once, rules) == once


@given(st.text())
def test_compatibility_forms_are_equal(text: str) -> None:
    assert normalize(unicodedata.normalize("NFKC", text), ALL) == normalize(text, ALL)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP", ["don", "t", "stop"]),
        ("“quoted”—dash", ["quoted", "dash"]),
        ("snake_case v2", ["snake_case", "v2"]),
        ("漢字 test", ["漢", "字", "test"]),
        ("naïve Größe", ["naïve", "grösse"]),
        ("...", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    folded = word_text(text)
    assert "".join(letter if letter.isalnum() or letter == "_" else " " for letter in folded).split() == words
