"""Bands and rows from threshold and recall."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmray.data.banding import Banding, choose_banding
from llmray.errors import ConfigError


@given(st.floats(0.3, 1.0), st.floats(0.5, 0.999))
def test_the_recall_is_reached_within_the_hashes(threshold: float, recall: float) -> None:
    try:
        banding = choose_banding(threshold=threshold, recall=recall)
    except ConfigError:
        assume(False)
        raise
    assert banding.candidate_probability(threshold) >= recall - 1e-12
    assert banding.num_hashes <= 256


def test_the_usual_choice_keeps_unlike_documents_apart() -> None:
    banding = choose_banding(threshold=0.8, recall=0.99)
    assert banding == Banding(num_bands=16, rows_per_band=6)
    assert banding.candidate_probability(0.2) < 1 / 500
    assert banding.candidate_probability(0.85) > 0.997


@pytest.mark.parametrize(("jaccard", "expected"), [(0.5, 0.05), (0.7, 0.57), (0.8, 0.92), (0.85, 0.99)])
def test_s_curve_against_published_values(jaccard: float, expected: float) -> None:
    curve = Banding(num_bands=14, rows_per_band=8).candidate_probability(jaccard)
    assert curve == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("threshold", "recall", "hashes", "fix"),
    [(0.1, 0.99, 8, "raise dedup.max_hashes"), (0, 0.9, 9, "dedup.threshold"), (0.8, 1.0, 256, "dedup.recall")],
)
def test_impossible_wishes_name_the_fix(threshold: float, recall: float, hashes: int, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        choose_banding(threshold=threshold, recall=recall, max_hashes=hashes)


def test_threshold_one_needs_one_band() -> None:
    assert choose_banding(threshold=1.0, recall=0.99).num_bands == 1
