"""Learned limits: of measures of one's own and of measures that see the whole corpus first."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pure_curation import curate_purely

from llmray.data.config import CurateConfig
from llmray.data.features import Learned, Statistics
from llmray.data.index import SETTINGS, open_index, settings_bytes
from llmray.data.limits import learn_limits
from llmray.data.robust import Axis
from llmray.data.rules import Outliers
from llmray.errors import ConfigError

SHOUTING = Learned(
    name="shouting",
    measure=lambda text: sum(letter.isupper() for letter in text) / len(text),
    mads=8.0,
    side="high",
    why="share of capitals",
)


class CommonWords:
    """How many of a text's words few other texts have."""

    name = "rare_words"
    axis = Axis(mads=5.0)

    def survey(self, texts: Sequence[str], ids: Sequence[bytes], *, total: int | None = None) -> Any:
        assert all(len(id_) == 32 for id_ in ids)
        return [sorted(set(text.split())) for text in texts]

    def merge(self, surveys: Sequence[Any]) -> Any:
        return [words for survey in surveys for words in survey]

    def fit(self, surveys: Sequence[Any]) -> Any:
        counts: dict[str, int] = {}
        for survey in surveys:
            for words in survey:
                for word in words:
                    counts[word] = counts.get(word, 0) + 1
        return counts

    def score(self, texts: Sequence[str], ids: Sequence[bytes], model: dict[str, int]) -> np.ndarray[Any, Any]:
        return np.array([sum(model.get(word, 0) < 2 for word in text.split()) for text in texts], np.float64)


RARE = CommonWords()
NO_STATISTICS = Statistics(measures=())
NOT_A_MEASURE = 3


def texts(count: int = 60) -> list[dict[str, Any]]:
    """Some words of all, none to four capitals, none to three words of their own."""
    return [
        {
            "text": " ".join(
                [
                    *(f"word{(at * 7 + row) % 50}" for at in range(30)),
                    *["Once"] * (row % 5),
                    *(f"own{row}x{at}" for at in range(row % 4)),
                ]
            )
        }
        for row in range(count)
    ]


def test_a_measure_of_ones_own_has_limits_by_kind() -> None:
    config = CurateConfig(
        statistics=Statistics(measures=(f"{__name__}:SHOUTING",)), outliers=Outliers(rules=("empty",))
    )
    loud = {"text": "ALL OF THIS IS LOUD " * 6}
    made = curate_purely([[*texts(), loud, {"question": "WHAT?", "answer": "LOUD BUT NO TEXT"}]], config)
    assert made.report["rules"] == {"shouting": 1}
    (gone,) = (row for row in made.removed if row["reasons"])
    assert gone["excerpt"].startswith("ALL OF")
    assert gone["reasons"][0]["threshold"] == made.report["limits"]["shouting"]["text"]["high"]
    assert made.report["limits"]["shouting"]["messages"] == {"low": None, "high": None}


def test_a_second_look_sees_all_chunks_and_no_row_that_failed() -> None:
    config = CurateConfig(
        second_look=(f"{__name__}:RARE",),
        statistics=NO_STATISTICS,
        outliers=Outliers(rules=("too_short",), min_words=3),
    )
    strange = {"text": " ".join(f"never{at}" for at in range(31))}
    rows = [*texts(), strange, {"text": "never0 never1"}]
    made = curate_purely([rows], config, chunk_bytes=2000)
    assert made.report["rules"] == {"rare_words": 1, "too_short": 1}
    reasons = {row["row"]: row["reasons"] for row in made.removed if row["reasons"]}
    # "never0" and "never1" are in two rows, but the one that failed a rule taught nothing.
    assert reasons[61][0]["value"] == 31
    assert [failed["rule"] for failed in reasons[62]] == ["too_short"]
    whole = curate_purely([rows], config)
    assert whole.files == made.files


def test_limits_that_are_known_are_kept() -> None:
    config = CurateConfig()
    kinds, sound = np.zeros(50, np.int8), np.ones(50, bool)
    lengths = {"length": np.arange(100.0, 150.0)}
    learned = learn_limits(config, kinds, sound, lengths, {})
    assert 0 < learned["length"]["text"][0] < 100
    known = {"length": {"text": (1.0, 2.0)}}
    assert learn_limits(config, kinds, sound, lengths, known) == known


@pytest.mark.parametrize(
    ("statistics", "complaint"),
    [
        (Statistics(mads=3.0), r"mads of the measure length is 3\.0, and .* with 5\.0: set statistics\.mads"),
        (Statistics(min_rows=50), "statistics.min_rows is 50, and .* was made with 20"),
        (Statistics(measures=(f"{__name__}:SHOUTING",)), None),
        (Statistics(measures=()), None),
    ],
)
def test_limits_are_not_added_to_that_were_learned_in_another_way(
    tmp_path: Path, statistics: Statistics, complaint: str | None
) -> None:
    (tmp_path / "index").mkdir()
    limits = {"length": {"text": (1.0, float("inf"))}}
    (tmp_path / "index" / SETTINGS).write_bytes(settings_bytes(CurateConfig(), limits))
    assert open_index(tmp_path, CurateConfig()).limits == limits
    if complaint is None:
        open_index(tmp_path, CurateConfig(statistics=statistics))
        return
    with pytest.raises(ConfigError, match=complaint):
        open_index(tmp_path, CurateConfig(statistics=statistics))


def test_the_number_that_decides_is_the_measures_own_where_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(mads: float) -> CurateConfig:
        return CurateConfig(statistics=Statistics(measures=(f"{__name__}:SHOUTING",), mads=mads))

    (tmp_path / "index").mkdir()
    (tmp_path / "index" / SETTINGS).write_bytes(settings_bytes(config(5), {}))
    open_index(tmp_path, config(3))
    monkeypatch.setattr(f"{__name__}.SHOUTING", replace(SHOUTING, side="both"))
    with pytest.raises(ConfigError, match=r'side of the measure shouting is "both", and .* with "high"'):
        open_index(tmp_path, config(5))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"statistics": Statistics(measures=("nowhere:at_all",))}, "nowhere:at_all cannot be loaded"),
        ({"statistics": Statistics(measures=(f"{__name__}:NOT_A_MEASURE",))}, "make it a features.Learned"),
        ({"quality": f"{__name__}:NOT_A_MEASURE"}, "make it a function of a row"),
        ({"second_look": (f"{__name__}:NOTHING",)}, "second_look: .* cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded_names_the_field(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        curate_purely([texts(3)], CurateConfig(**given))
