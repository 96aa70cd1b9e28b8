"""Boilerplate: the same result for every order and every cut of the documents, and nothing else touched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.data import boilerplate
from llmray.data.boilerplate import Boilerplate, Unit, count, line_keys, merge, repeated, share, strip
from llmray.data.normalize import Normalization, normalize
from llmray.errors import ConfigError

SMALL = Boilerplate(min_documents=2, min_characters=3)
LINES = st.sampled_from(
    ["", "  ", "shared one", "Shared  One", "\tindented", "own a", "own b", "x", "straße", "\x0b\x0c a"]
)
TEXTS = st.lists(st.lists(LINES, max_size=6).map("\n".join), max_size=8)
UNITS = st.sampled_from(["line", "paragraph"])

HEADER = "Copyright the authors of this work."


def boilerplate_of(texts: list[str], config: Boilerplate) -> list[int]:
    return repeated(count(texts, config), config).tolist()


def test_lines_that_documents_share_go_and_all_others_stay() -> None:
    texts = [f"{HEADER}\nText {number} says something.\n  {HEADER.upper()}\nend\n" for number in range(10)]
    config = Boilerplate()
    names = repeated(count(texts, config), config)
    made = strip(texts[3], names, config)
    assert made.text == "Text 3 says something.\nend\n"
    assert (made.num_units, made.num_characters) == (2, 2 * len(HEADER) + 4)
    assert share(texts[3], names, config) == (2 * len(HEADER) + 4) / len(texts[3])
    # Nine documents are one too few, and a chorus of one document is none.
    assert boilerplate_of(texts[:9], config) == []
    assert boilerplate_of([f"{HEADER}\n" * 50], config) == []


def test_paragraphs_go_whole() -> None:
    notice = "You may copy this\nas often as you like."
    texts = [f"\n\n{notice}\n \n\nParagraph {number} here,\nas often as you like.\n\n{notice}" for number in range(2)]
    config = Boilerplate(unit="paragraph", min_documents=2, min_characters=3)
    made = strip(texts[0], repeated(count(texts, config), config), config)
    assert made.text == "\n\nParagraph 0 here,\nas often as you like.\n\n"
    assert made.num_units == 2


def test_short_lines_are_never_boilerplate() -> None:
    config = Boilerplate(min_documents=2, min_characters=3)
    assert boilerplate_of(["}\nab", "}\nab\nx"], config) == []
    assert len(boilerplate_of(["}\nabc", "}\nabc\nx"], config)) == 1


def test_copies_of_a_text_are_one_and_near_copies_are_not() -> None:
    article = "A first line of the article.\nAnd a second line of it.\n"
    config = Boilerplate()
    assert boilerplate_of([article] * 50, config) == []
    # Copies that exact repeats may be: case and white space do not matter, unless they are said to.
    written = [f"{' ' * number}{article}" for number in range(50)]
    assert boilerplate_of(written, config) == []
    assert len(repeated(count(written, config, Normalization(space=False)), config)) == 2
    # Versions that differ in a line are different texts, and nothing that they share is left.
    dated = [f"{article}Read on day {number} of the year.\n" for number in range(10)]
    assert strip(dated[3], repeated(count(dated, config), config), config).text == "Read on day 3 of the year.\n"
    assert boilerplate_of([*dated[:9], *dated[:9]], config) == []


def test_nothing_to_take_gives_the_very_text() -> None:
    text = "a line of its own\n"
    assert strip(text, np.zeros(0, np.uint64), SMALL).text is text
    assert strip("", repeated(count(["abc", "abc\n\nx"], SMALL), SMALL), SMALL) == ("", 0, 0)
    assert share("", np.zeros(0, np.uint64), SMALL) == 0.0


@given(TEXTS, UNITS)
def test_places_are_those_of_the_lines(texts: list[str], unit: Unit) -> None:
    config = Boilerplate(unit=unit, min_characters=1)
    for text in texts:
        keys, starts, ends = line_keys(text, config)
        assert len(keys) == len(starts) == len(ends)
        assert all(a < b for a, b in zip(starts, ends, strict=True))
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
        said = [" ".join(text[start:end].split()).lower() for start, end in zip(starts, ends, strict=True)]
        assert len(set(said)) == len(set(keys.tolist()))
        assert "".join(said).replace(" ", "") == "".join(text.split()).lower()


@settings(deadline=None)  # the first example compiles
@given(TEXTS, UNITS, st.randoms(use_true_random=False), st.integers(0, 8), st.integers(2, 4))
def test_counts_do_not_depend_on_chunks_or_order(
    texts: list[str], unit: Unit, random: object, cut: int, most: int
) -> None:
    config = Boilerplate(unit=unit, min_documents=most, min_characters=3)
    whole = count(texts, config)
    shuffled = list(texts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = merge([count(shuffled[cut:], config), count([], config), count(shuffled[:cut], config)], config)
    pairs = list(zip(whole.keys.tolist(), whole.texts.tolist(), strict=True))
    assert pairs == list(zip(parts.keys.tolist(), parts.texts.tolist(), strict=True)) == sorted(set(pairs))


def test_texts_are_counted_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        f"{HEADER}\n" + "\n".join(f"line {number % 7} {at % number}" for at in range(9)) for number in range(1, 60)
    ]
    whole = count(texts, SMALL)
    monkeypatch.setattr(boilerplate, "_TEXTS_AT_ONCE", 3)
    monkeypatch.setattr(boilerplate, "_PAIRS_AT_ONCE", 20)
    parts = count(iter(texts), SMALL)
    assert [some.tolist() for some in parts] == [some.tolist() for some in whole]
    assert len(whole.keys) <= 2 * len(set(whole.keys.tolist()))


@settings(deadline=None)  # the first example compiles
@given(TEXTS, UNITS)
def test_what_is_left_is_the_rest_in_order_and_stays(texts: list[str], unit: Unit) -> None:
    config = Boilerplate(unit=unit, min_documents=2, min_characters=3)
    names = repeated(count(texts, config), config)
    for text in texts:
        made = strip(text, names, config)
        assert len(made.text) == len(text) - made.num_characters
        assert not set(line_keys(made.text, config).keys.tolist()) & set(names.tolist())
        assert strip(made.text, names, config) == (made.text, 0, 0)
        others = [line for line in text.split("\n") if line in made.text.split("\n")]
        assert [line for line in made.text.split("\n") if line.strip()] == [
            line for line in others if line.strip()
        ] or unit == "paragraph"


@settings(deadline=None)  # the first example compiles
@given(TEXTS, st.integers(2, 5))
def test_a_line_counts_once_a_text(texts: list[str], most: int) -> None:
    config = Boilerplate(min_documents=most, min_characters=3)
    different = {normalize(text, Normalization()): text for text in texts}.values()
    holders = {
        key: sum(key in line_keys(text, config).keys for text in different)
        for text in texts
        for key in line_keys(text, config).keys.tolist()
    }
    counts = count(texts, config)
    keys, documents = np.unique(counts.keys, return_counts=True)
    assert dict(zip(keys.tolist(), documents.tolist(), strict=True)) == {
        key: min(number, most) for key, number in holders.items()
    }
    assert repeated(counts, config).tolist() == sorted(key for key, number in holders.items() if number >= most)


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"unit": "word"}, "boilerplate.unit"),
        ({"action": "burn"}, "boilerplate.action"),
        ({"min_documents": 1}, "try 10"),
        ({"min_characters": 0}, "try 20"),
    ],
)
def test_wrong_settings_name_the_fix(fields: dict[str, object], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        Boilerplate(**fields)  # type: ignore[arg-type]
