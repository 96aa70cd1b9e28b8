"""Each measure against its definition, and junk on the right side of prose."""

import base64
import math
import random
import zlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmray.data import features
from llmray.data.features import BUILT_IN, Learned, Statistics, build, measure_all
from llmray.errors import ConfigError

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine fails no test."""
TEXT = "The quick brown fox jumps over the lazy dog. " * 3
MINE = Learned(name="vowels", measure=lambda text: float(sum(text.count(vowel) for vowel in "aeiou")), mads=2)
NOT_MINE = "no measure"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("length", "abc", 3),
        ("symbol_share", "ab 1!", 0.25),
        ("symbol_share", "snake_case", 0.1),
        ("symbol_share", "x — y…", 0.5),
        ("symbol_share", "e\u0301a", 0),  # An accent is part of its letter,
        ("symbol_share", "नमस्ते", 0),  # and so is a vowel sign.
        ("digit_share", "a1 b2", 0.5),
        ("digit_share", "٣a", 0.5),
        ("upper_share", "AbC1", 2 / 3),
        ("upper_share", "Éa", 0.5),
        ("space_share", "a b\n\t", 0.6),
        ("space_share", "a\u00a0b", 1 / 3),
        ("mean_word_length", "ab cdef", 3),
        ("link_share", "see https://www.a.example/x or www.b.example, http://c", 3 / 5),
        ("link_share", "no link", 0),
        ("entropy", "abab", 1),
        ("entropy", "aaaa", 0),
        ("entropy", "äöüß", 2),
        ("type_token", "a b " * 10, math.log(2) / math.log(20)),
        ("type_token", "same " * 30, 0),
    ],
)
def test_values(name: str, text: str, expected: float) -> None:
    assert BUILT_IN[name].measure(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, "") for name in BUILT_IN),
        ("symbol_share", " \n"),
        ("upper_share", "123"),
        ("mean_word_length", " "),
        ("link_share", " "),
        ("type_token", "a " * 19),
        ("compression", "x" * 127),
    ],
)
def test_a_text_too_short_is_not_measured(name: str, text: str) -> None:
    assert math.isnan(BUILT_IN[name].measure(text))


def test_compression_is_bytes_left() -> None:
    text = TEXT + "é"
    data = text.encode()
    packed = zlib.compressobj(1, zlib.DEFLATED, -15)
    assert features.compression(text) == (len(packed.compress(data)) + len(packed.flush())) / len(data)
    assert features.compression("spam " * 500) < 0.05


@RELAXED
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_has_every_measure(text: str) -> None:
    for learned in BUILT_IN.values():
        value = learned.measure(text)
        assert math.isnan(value) or value >= 0
        if learned.name.endswith("_share"):
            assert math.isnan(value) or value <= 1


@RELAXED
@given(st.text(max_size=60))
def test_characters_are_counted_as_unicode_has_them(text: str) -> None:
    visible = [character for character in text if not character.isspace()]
    if visible:
        assert features.space_share(text) == pytest.approx(1 - len(visible) / len(text))
    if text:
        shares = [count / len(text) for count in Counter(text).values()]
        assert features.entropy(text) == pytest.approx(-sum(share * math.log2(share) for share in shares), abs=1e-9)


@RELAXED
@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_ascii_is_counted_the_same_as_all_else(text: str) -> None:
    # One more letter of another script changes the way of counting, and the shares by what it is.
    more = text + "é"
    visible = sum(not character.isspace() for character in text)
    if visible:
        assert features.symbol_share(more) * (visible + 1) == pytest.approx(features.symbol_share(text) * visible)
        assert features.digit_share(more) * (visible + 1) == pytest.approx(features.digit_share(text) * visible)


def test_junk_lies_where_its_side_says() -> None:
    noise = random.Random(0)
    junk = base64.b64encode(noise.randbytes(600)).decode()
    assert features.mean_word_length(junk) > 10 * features.mean_word_length(TEXT)
    assert features.compression(junk) > 0.7 > features.compression(TEXT)
    assert features.digit_share(junk) > features.digit_share(TEXT)
    assert features.entropy(junk) > features.entropy(TEXT) + 1
    assert features.type_token("again and " * 40) < features.type_token(TEXT)
    assert features.upper_share(TEXT.upper()) == 1 and features.symbol_share("!?$ " * 9) == 1


def test_all_measures_at_once() -> None:
    texts = ["", TEXT, "Ünïcode " * 40]
    values_nm = measure_all(texts, list(BUILT_IN.values()))
    for row, text in enumerate(texts):
        for column, learned in enumerate(BUILT_IN.values()):
            assert values_nm[row, column] == pytest.approx(learned.measure(text), nan_ok=True)


def test_configured_by_name_or_as_ones_own() -> None:
    config = Statistics(measures=("entropy", f"{__name__}:MINE"), mads=4)
    found = build(config)
    assert [learned.name for learned in found] == ["entropy", "vowels"]
    assert [learned.axis(config.mads).mads for learned in found] == [4, 2]


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"measures": ("beauty",)}, "choose among"),
        ({"mads": 0}, "try 5"),
        ({"min_rows": 0}, "try 20"),
    ],
)
def test_impossible_settings_name_the_fix(fields: dict[str, object], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        Statistics(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "fix"), [("no.module:X", "cannot be loaded"), (f"{__name__}:NOT_MINE", "make it a")])
def test_a_measure_that_is_none_names_the_fix(name: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        build(Statistics(measures=(name,)))
