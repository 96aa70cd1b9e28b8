"""Shingles against a plain definition, and signatures against the probability that they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.data.banding import Banding
from llmray.data.minhash import band_hashes, shingle, signatures
from llmray.data.normalize import word_text

WORDS = st.lists(st.sampled_from(["a", "b", "the", "naïve", "x_1", "漢", "Über"]), max_size=12)


def plain_shingles(text: str, size: int) -> set[tuple[str, ...]]:
    words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in word_text(text)).split()
    if not words:
        return set()
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


@settings(deadline=None)
@given(st.lists(WORDS, max_size=6), st.integers(1, 6))
def test_shingles_are_those_of_the_definition(documents: list[list[str]], size: int) -> None:
    texts = [" ".join(words) for words in documents]
    hashes, offsets = shingle(texts, size)
    assert offsets[-1] == len(hashes)
    plain = [plain_shingles(text, size) for text in texts]
    made = [set(hashes[offsets[d] : offsets[d + 1]].tolist()) for d in range(len(texts))]
    assert [len(one) for one in made] == [len(one) for one in plain]
    for one in range(len(texts)):
        for other in range(len(texts)):
            assert len(made[one] & made[other]) == len(plain[one] & plain[other])


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6), st.integers(1, 5))
def test_a_text_has_the_same_shingles_in_any_company(texts: list[str], size: int) -> None:
    together, offsets = shingle(texts, size)
    for place, text in enumerate(texts):
        alone, _ = shingle([text], size)
        assert np.array_equal(alone, together[offsets[place] : offsets[place + 1]])


def test_short_texts_are_one_shingle_and_differ_by_length() -> None:
    hashes, offsets = shingle(["a b", "a b c", "a", "", "?!", "a b"], 5)
    assert np.diff(offsets).tolist() == [1, 1, 1, 0, 0, 1]
    assert len(set(hashes.tolist())) == 3


def test_signatures_depend_on_the_text_alone() -> None:
    texts = [f"word{number} " * 3 + f"tail {number % 7} of it all" for number in range(500)] + ["x y z " * 40_000]
    hashes, offsets = shingle(texts, 5)
    together = signatures(hashes, offsets, 24, seed=3)
    for place in (0, 17, 499, 500):
        alone = signatures(*shingle([texts[place]], 5), 24, seed=3)
        assert np.array_equal(alone[0], together[place])
    assert not np.array_equal(signatures(hashes, offsets, 24, seed=4), together)
    assert np.array_equal(signatures(*shingle(texts, 5, distinct=False), 24, seed=3), together)


@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.8, 0.9])
def test_minima_agree_as_often_as_the_sets_are_alike(jaccard: float) -> None:
    generator = np.random.default_rng(11)
    shared = round(100 * 2 * jaccard / (1 + jaccard))
    agree = []
    for _ in range(60):
        pool = generator.integers(0, 2**64, 200 - shared, np.uint64)
        one, other = pool[:100], np.concatenate((pool[:shared], pool[100:]))
        both = np.concatenate((np.sort(one), np.sort(other)))
        made = signatures(both, np.array([0, 100, 200]), 200, seed=int(generator.integers(1 << 30)))
        agree.append((made[0] == made[1]).mean())
    truth = shared / (200 - shared)
    # 12,000 draws: five standard errors.
    assert np.mean(agree) == pytest.approx(truth, abs=5 * (truth * (1 - truth) / 12_000) ** 0.5)


@pytest.mark.parametrize("jaccard", [0.5, 0.7, 0.8, 0.9])
def test_candidates_are_as_frequent_as_the_s_curve_promises(jaccard: float) -> None:
    banding = Banding(num_bands=16, rows_per_band=6)
    generator = np.random.default_rng(5)
    shared = round(60 * 2 * jaccard / (1 + jaccard))
    num_pairs = 1500
    sets = []
    for _ in range(num_pairs):
        pool = generator.integers(0, 2**64, 120 - shared, np.uint64)
        sets += [np.sort(pool[:60]), np.sort(np.concatenate((pool[:shared], pool[60:])))]
    made = signatures(np.concatenate(sets), np.arange(2 * num_pairs + 1) * 60, banding.num_hashes, seed=0)
    bands = band_hashes(made, banding)
    met = (bands[0::2] == bands[1::2]).any(axis=1).mean()
    promised = banding.candidate_probability(shared / (120 - shared))
    assert met == pytest.approx(promised, abs=5 * (promised * (1 - promised) / num_pairs) ** 0.5 + 1e-3)


def test_bands_of_other_places_never_meet() -> None:
    same = np.full((2, 12), 7, np.uint32)
    bands = band_hashes(same, Banding(num_bands=4, rows_per_band=3))
    assert len(set(bands[0].tolist())) == 4
    assert np.array_equal(bands[0], bands[1])
