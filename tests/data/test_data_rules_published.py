"""The rules of Gopher, C4 and FineWeb at the edges of their published definitions, and against plain restatements."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.data.rows import Row, parse_row
from llmray.data.rules import C4, GROUPS, FineWeb, Gopher, Outliers, build, c4, gopher, judge
from llmray.data.rules.document import Document, duplicates, view
from llmray.errors import ConfigError


def text(content: str) -> Row:
    return Row(shape="text", text=content)


def value(name: str, content: str, config: Outliers | None = None) -> float | None:
    (rule,) = build(config or Outliers(rules=(name,)))
    assert rule.name == name
    return rule.measure(text(content))


def passes(name: str, content: str) -> bool:
    return not judge(text(content), build(Outliers(rules=(name,))))


def lines(*pairs: tuple[str, int]) -> str:
    """Each line so many times, made different by a number in front where it says {}."""
    return "\n".join(line.format(number) for line, times in pairs for number in range(100, 100 + times))


SOME = ["a", "b", "cc", "the", "of", ".", "#", "…", "...", "12", "Émile", "日本"]
WORDS = st.lists(st.sampled_from(SOME), max_size=90)
PROSE = " ".join(["the cat and the dog have to walk with everybody"] * 6)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("gopher_word_count", "w " * 50, "w " * 49),
        ("gopher_word_count", "w " * 100_000, "w " * 100_001),
        ("gopher_mean_word_length", "aaa bbb", "aaa bb"),
        ("gopher_mean_word_length", "a" * 10 + " " + "b" * 10, "a" * 10 + " " + "b" * 11),
        ("gopher_mean_word_length", "aaa", ""),
        ("gopher_symbol_ratio", "# a b c d e f g h i", "# a b c d e f g h"),
        ("gopher_symbol_ratio", "… ... " + "a " * 18, "… ... " + "a " * 17),
        # Hash signs and ellipses are two ratios, not one sum.
        ("gopher_symbol_ratio", "# ... a b c d e f g h", "# # a b c d e f g h"),
        ("gopher_bullet_lines", lines(("• {}", 9), ("{}", 1)), lines(("• {}", 10), ("{}", 1))),
        ("gopher_bullet_lines", lines(("-{}", 10)), lines(("- {}", 10))),
        ("gopher_ellipsis_lines", lines(("{} ...  ", 2), ("{}…", 1), ("{}", 7)), lines(("{}...", 31), ("{}", 69))),
        ("gopher_alphabetic_words", "a b c 日本 5", "a b c 5 %"),
        ("gopher_alphabetic_words", "(a) '2nd' x3 9a 5", "1 2 3 4 a"),
        ("gopher_stop_words", "The end, and.", "the the the THE"),
        ("gopher_stop_words", "“With” (that)", "within thatch"),
        ("gopher_duplicate_lines", lines(("a", 4), ("{}", 6)), lines(("a", 5), ("{}", 6))),
        ("gopher_duplicate_lines", "a\n\n\n\nb", "a\n  a  \nb"),
        ("gopher_duplicate_paragraphs", "a\n\nb\n\nc\n\na", "a\n\nb\n \nb"),
        ("gopher_duplicate_paragraphs", "a\na\na", "a\n\na\n\na"),
        ("gopher_duplicate_line_characters", "abcd\nab\ncd\nefgh\nijkl\nab\nab", "abcd\nefg\nh\nabcd\n"),
        ("gopher_duplicate_paragraph_characters", "a" * 79 + "\n\n" + "b\n\nb", "a" * 10 + "\n\nbbbbb\n\nbbbbb"),
        ("c4_sentences", "One is a nice number. Two is! Is three one?", "One is a nice number. Two is the other."),
        ("c4_sentences", "It is here (he said.) And so is 'that one.' Or is it?", "I paid 3.50 or 4.50 for this."),
        (
            "c4_sentences",
            "One here is for you. Two. Three.\nshort one.",
            "One here is for you. Two.\nThree.\nFour five.",
        ),
        ("c4_terminal_punctuation", 'a.\nb"\nc\nd', "a.\nb...\nc…\nd"),
        ("c4_short_lines", "one two three four five\nno", "one two three four\none two three four five\nno"),
        ("c4_javascript", "a\nplease enable JavaScript", "javascript\nJavascript\na"),
        ("c4_policy", "a\nSee our Cookie Policy.", "We use cookies.\nTerms of Use\na"),
        ("c4_lorem_ipsum", "lorem", "A Lorem Ipsum text"),
        ("c4_curly_bracket", "f(x)[1]", "f(x) {"),
        ("fineweb_line_punctuation", lines(("{}.", 4), ("{}", 21)), lines(("{}.", 3), ("{}", 22))),
        ("fineweb_short_lines", lines(("{}", 66), ("{}" + "x" * 27, 34)), lines(("{}", 67), ("{}" + "x" * 27, 33))),
        ("fineweb_short_lines", "x" * 30, "x" * 29),
        ("fineweb_duplicate_line_characters", "ab\nab\n" + "x" * 17, "ab\nab\n" + "x" * 16),
        ("fineweb_newlines", "a b c\n" * 3 + "d", "a b c\n" * 3 + "\n"),
    ],
)
def test_each_limit_from_both_sides(name: str, good: str, bad: str) -> None:
    assert passes(name, good), value(name, good)
    assert not passes(name, bad), value(name, bad)


def test_an_exclusive_limit_names_itself() -> None:
    (failed,) = judge(text("ab\nab\n" + "x" * 16), build(Outliers(rules=("fineweb_duplicate_line_characters",))))
    assert (failed.value, failed.threshold) == (0.1, 0.1)
    (failed,) = judge(text(lines(("{}.", 3), ("{}", 22))), build(Outliers(rules=("fineweb_line_punctuation",))))
    assert (failed.value, failed.threshold) == (0.12, 0.12)


def test_published_limits() -> None:
    limits = Gopher()
    assert [getattr(limits, f"max_top_{size}gram") for size in (2, 3, 4)] == [0.20, 0.18, 0.16]
    duplicate = [getattr(limits, f"max_duplicate_{size}gram") for size in range(5, 11)]
    assert duplicate == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert (FineWeb().min_punctuated_lines, FineWeb().max_short_lines) == (0.12, 0.67)
    assert FineWeb().max_duplicate_line_characters == 0.1
    assert (C4().min_sentences, C4().min_line_words) == (3, 5)


def test_a_repeated_passage_counts_each_word_once() -> None:
    passage = [f"p{number:02d}" for number in range(13)]
    unique = [f"u{number:02d}" for number in range(74)]
    content = " ".join([*passage, *unique, *passage])
    # All 13 words of the second copy, although two 5-grams without overlap have only 10.
    assert value("gopher_duplicate_5gram", content) == pytest.approx(13 / 100)
    assert value("gopher_duplicate_10gram", content) == pytest.approx(13 / 100)
    assert value("gopher_top_2gram", content) == pytest.approx(2 * 2 / 100)
    assert [failure.rule for failure in judge(text(content), build(Outliers(rules=("gopher_repetition",))))] == [
        "gopher_duplicate_8gram",
        "gopher_duplicate_9gram",
        "gopher_duplicate_10gram",
    ]


def test_ngrams_of_short_documents_are_not_measured() -> None:
    assert value("gopher_duplicate_5gram", "a " * 49) is None
    assert value("gopher_duplicate_5gram", "a " * 50) == pytest.approx(49 / 50)
    early = Outliers(rules=("gopher_top_2gram",), gopher=Gopher(min_ngram_words=2))
    assert value("gopher_top_2gram", "a b a b", early) == 1.0


@given(WORDS, st.integers(1, 10))
def test_repeated_ngrams_are_those_that_a_counter_finds(words: list[str], size: int) -> None:
    document = Document(" ".join(words))
    grams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    expected = {gram: [at for at, other in enumerate(grams) if other == gram] for gram in grams}
    repeated = document.repeated(size)
    assert sorted(repeated) == sorted(places for places in expected.values() if len(places) > 1)


@given(WORDS, st.integers(5, 10))
def test_duplicate_ngrams_against_the_definition(words: list[str], size: int) -> None:
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for at in range(len(words) - size + 1):
        gram = tuple(words[at : at + size])
        if gram in seen:
            covered |= set(range(at, at + size))
        seen.add(gram)
    expected = sum(len(words[at]) for at in covered) / max(1, sum(map(len, words)))
    found = gopher.duplicate_ngrams(text(" ".join(words)), size, min_words=1)
    assert found is None if not words else found == pytest.approx(expected)


@given(WORDS, st.integers(2, 4))
def test_top_ngram_against_a_counter(words: list[str], size: int) -> None:
    found = gopher.top_ngram(text(" ".join(words)), size, min_words=1)
    counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
    times, longest = max(((times, sum(map(len, gram))) for gram, times in counts.items()), default=(0, 0))
    share = times * longest / max(1, sum(map(len, words)))
    assert found is None if not words else found == pytest.approx(min(1.0, share) if times > 1 else 0.0)


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"])))
def test_duplicates_repeat_an_earlier_one(parts: list[str]) -> None:
    repeats = [part for at, part in enumerate(parts) if part in parts[:at]]
    assert duplicates(parts) == (len(repeats), sum(map(len, repeats)))


@given(WORDS)
def test_shares_are_shares_and_every_value_is_a_number(words: list[str]) -> None:
    row = text("\n".join(words))
    for rule in build(Outliers(rules=("gopher", "c4", "fineweb"))):
        found = rule.measure(row)
        assert found is None or found >= 0, rule.name
        if "share" in rule.why and found is not None:
            assert found <= 1 + 1e-12, rule.name


def test_the_view_of_the_last_text_only_is_kept() -> None:
    first = view("one text")
    assert view("one text") is first
    view("another")
    assert view("one text") is not first


def test_the_lines_that_c4_keeps() -> None:
    page = "This line is kept as it is.\nToo short.\nNo mark at the end of this\nWe use cookies on all our pages.\n"
    document = Document(page + 'JavaScript must be on for this page.\n  "This one stays as well."  ')
    assert c4.kept_lines(document, C4()) == ["This line is kept as it is.", '"This one stays as well."']
    assert c4.kept_lines(document, C4(min_line_words=2, policy_phrases=()))[1:3] == [
        "Too short.",
        "We use cookies on all our pages.",
    ]


def test_conversations_and_preferences_are_passed_over() -> None:
    rules = build(Outliers(rules=("gopher", "c4", "fineweb")))
    assert len(rules) == 20 + 7 + 4
    assert judge(parse_row({"question": "What?", "answer": "#### 72 {"}), rules) == []
    assert judge(parse_row({"prompt": "p", "chosen": "# # {", "rejected": "b"}), rules) == []


def test_groups_stand_for_their_rules_and_each_rule_comes_once() -> None:
    config = Outliers(rules=("empty", "gopher_mean_word_length", "gopher_quality", "c4"))
    names = [rule.name for rule in build(config)]
    assert names[:2] == ["empty", "gopher_mean_word_length"]
    assert sorted(names) == sorted({"empty", *GROUPS["gopher_quality"], *GROUPS["c4"]})
    assert set(GROUPS["gopher"]) == {*GROUPS["gopher_quality"], *GROUPS["gopher_repetition"]}
    assert all(name.startswith(("gopher_", "c4_", "fineweb_")) for group in GROUPS.values() for name in group)


def test_limits_come_from_the_config() -> None:
    strict = Outliers(rules=("gopher_word_count",), gopher=Gopher(min_words=1, max_words=3))
    assert judge(text("a b c"), build(strict)) == []
    assert judge(text("a b c d"), build(strict))[0].threshold == 3
    german = Outliers(rules=("gopher_stop_words",), gopher=Gopher(stop_words=("der", "und")))
    assert value("gopher_stop_words", "Der Hund und die Katze.", german) == 2


def test_prose_passes_and_a_table_of_numbers_does_not() -> None:
    assert judge(text(PROSE), build(Outliers(rules=("gopher_quality",)))) == []
    table = "\n".join(f"{number} {number * 7}" for number in range(100))
    failed = {failure.rule for failure in judge(text(table), build(Outliers(rules=("gopher", "c4", "fineweb"))))}
    assert failed >= {"gopher_mean_word_length", "gopher_alphabetic_words", "gopher_stop_words", "c4_sentences"}
    assert failed >= {"fineweb_line_punctuation", "fineweb_short_lines", "fineweb_newlines"}


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: Gopher(min_words=10, max_words=5), "gopher.min_words"),
        (lambda: Gopher(stop_words=("The",)), "lower case"),
        (lambda: C4(policy_phrases=("Cookies",)), "lower case"),
    ],
)
def test_wrong_limits_name_the_field(make: object, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        make()  # type: ignore[operator]
