"""Vectors and scores: fixed for ever, blind to order, and far apart for different languages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from usual_traffic import SHAKESPEARE, questions

from llmray.errors import InputError
from llmray.monitor.features import Nonconformity, vectors


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_vectors_have_length_one_or_zero_and_do_not_depend_on_their_neighbours(texts: list[str]) -> None:
    together = vectors(texts, dims=64)
    assert np.all(np.isclose(np.linalg.norm(together, axis=1), 1, atol=1e-4) | (np.abs(together).sum(axis=1) == 0))
    assert np.array_equal(together[-1], vectors(texts[-1:], dims=64)[0])


def test_the_hash_is_the_same_in_every_process() -> None:
    [vector] = vectors(["What does `os.path.join` do?"], dims=16)
    assert vector[:6] == pytest.approx([-0.3858, -0.3858, 0.0, 0.2572, 0.1286, -0.2572], abs=1e-4)


def test_case_and_white_space_do_not_matter() -> None:
    assert np.array_equal(vectors(["What  does\nX do"]), vectors(["what does x do"]))


def test_a_message_is_nearest_to_itself() -> None:
    usual = questions()[:50]
    score = Nonconformity(usual, neighbours=1)
    assert score.scores(usual) == pytest.approx([0.0] * 50, abs=1e-5)


def test_unusual_messages_score_higher_than_usual_ones() -> None:
    usual = questions()
    score = Nonconformity(usual[:200])
    assert min(score.scores(SHAKESPEARE)) > max(score.scores(usual[200:600]))


def test_empty_text_is_strange_but_no_error() -> None:
    assert Nonconformity(questions()[:20]).scores([""]) == [1.0]


def test_a_reference_smaller_than_the_neighbourhood_is_refused() -> None:
    with pytest.raises(InputError, match="at least 5"):
        Nonconformity(["one"])
