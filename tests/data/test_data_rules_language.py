"""Language id with the model that comes with its wheel."""

import subprocess
import sys

import pytest

from llmray.data.rows import Row, parse_row
from llmray.data.rules import Language, Outliers, build, judge
from llmray.data.rules.language import identifier, probabilities
from llmray.errors import ConfigError

# The first article of the Universal Declaration of Human Rights, and a bit of the second.
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience "
    "and should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
    "und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и "
    "должны поступать в отношении друг друга в духе братства.",
}


def failed(row: Row, config: Language | None = None) -> list[str]:
    return [failure.rule for failure in judge(row, build(Outliers(rules=("language",), language=config or Language())))]


@pytest.mark.parametrize("code", sorted(ARTICLE))
def test_each_language_passes_where_it_is_kept_and_no_other(code: str) -> None:
    row = Row(shape="text", text=ARTICLE[code])
    assert failed(row, Language(keep=(code,))) == []
    assert failed(row, Language(keep=tuple(sorted(ARTICLE)))) == []
    others = tuple(sorted(ARTICLE.keys() - {code}))
    assert failed(row, Language(keep=others)) == ["language"]


def test_the_value_is_the_probability_of_all_that_is_kept() -> None:
    found = probabilities(ARTICLE["en"])
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)
    (rule,) = build(Outliers(rules=("language",), language=Language(keep=("en", "de"))))
    assert rule.measure(Row(shape="text", text=ARTICLE["en"])) == pytest.approx(found["en"] + found["de"])
    assert rule.low == Language().min_confidence


def test_what_a_model_would_learn_to_write_is_judged() -> None:
    assert failed(parse_row({"question": ARTICLE["de"], "answer": ARTICLE["en"]})) == []
    assert failed(parse_row({"question": ARTICLE["en"], "answer": ARTICLE["de"]})) == ["language"]
    assert failed(parse_row({"prompt": "?", "chosen": ARTICLE["fr"], "rejected": ARTICLE["en"]})) == ["language"]


def test_short_texts_are_passed_over_and_only_the_beginning_is_read() -> None:
    assert failed(Row(shape="text", text="  Ja, sehr gern, danke!" + " " * 100)) == []
    assert failed(Row(shape="text", text="Ja, sehr gern, danke!"), Language(min_letters=10)) == ["language"]
    assert failed(Row(shape="text", text=ARTICLE["en"] * 3 + ARTICLE["ru"] * 20)) == []


def test_no_surrogate_and_no_noise_makes_it_fall_over() -> None:
    assert failed(Row(shape="text", text="\ud800" * 300)) == []
    assert failed(Row(shape="text", text="\ud800ж" * 150)) == ["language"]
    assert failed(Row(shape="text", text="\x00" * 300)) == []


def test_figures_are_no_language() -> None:
    worked = "\n".join(f"{number} * 2 = {2 * number} eggs" for number in range(60))
    assert failed(Row(shape="text", text=worked), Language(keep=("ru",), min_letters=150)) == []
    assert failed(Row(shape="text", text=worked), Language(keep=("ru",), min_letters=20)) == ["language"]


def test_a_language_that_nobody_knows_names_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="english is not known: choose among"):
        build(Outliers(rules=("language",), language=Language(keep=("english",))))


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"keep": ()}, r"try \[en\]"),
        ({"min_confidence": 0}, "try 0.1"),
        ({"min_letters": 500}, "language.max_characters"),
    ],
)
def test_wrong_settings_name_the_fix(fields: dict[str, object], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        Language(**fields)  # type: ignore[arg-type]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ConfigError, match=r"llmray\[curate\]"):
        build(Outliers(rules=("language",)))


def test_neither_package_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys; from llmray.data.rules import Outliers, build; build(Outliers()); "
        "print(*{'ray', 'torch', 'py3langid', 'phonenumbers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
