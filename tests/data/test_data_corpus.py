"""Measures of the whole corpus: what they find, and that no cutting, order or batch can change a bit."""

import hashlib
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmray.data import corpus
from llmray.data.corpus import CorpusMeasure, Sampled, key_of, merge_samples, sample
from llmray.data.likelihood import Unigram, WordOrder
from llmray.data.minhash import I64
from llmray.data.neighbours import EmbeddingOutliers
from llmray.errors import ConfigError, InputError

NOUNS = ["river", "bank", "stone", "ship", "letter", "queen", "garden", "window", "winter", "road"]
VERBS = ["follows", "carries", "opens", "forgets", "paints", "guards"]
CODE = ["integer", "pointer", "buffer", "compiles", "overflow", "kernel", "module", "branch"]


def sentence(generator: random.Random) -> str:
    noun = generator.sample(NOUNS, 2)
    return f"the old {noun[0]} {generator.choice(VERBS)} a small {noun[1]} in the middle of the night"


def texts_of(num: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [". ".join(sentence(generator) for _ in range(generator.randint(2, 6))) for _ in range(num)]


def ids_of(texts: Sequence[str]) -> list[bytes]:
    return [hashlib.sha256(text.encode()).digest() for text in texts]


def lengths(texts: Sequence[str]) -> NDArray[np.float64]:
    """An embedder of three dimensions, independent of the batch."""
    return np.array([[len(text), text.count("e"), text.count(" ") + 1] for text in texts], float)


def narrow(texts: Sequence[str]) -> NDArray[np.float64]:
    return np.zeros(len(texts))


MEASURES: list[CorpusMeasure] = [
    Unigram(),
    WordOrder(sample=40),
    EmbeddingOutliers(sample=40, dims=8, group=0.1),
    EmbeddingOutliers(sample=40, group=0.1, embedding=f"{__name__}:lengths"),
]


def scores(measure: CorpusMeasure, texts: Sequence[str], cuts: Sequence[int], **options: Any) -> dict[str, float]:
    """Scores by text, surveyed and scored in the chunks that the cuts make."""
    chunks = [texts[low:high] for low, high in zip([0, *cuts], [*cuts, len(texts)], strict=True)]
    surveys = [measure.survey(chunk, ids_of(chunk), **options) for chunk in chunks]
    half = len(surveys) // 2
    parts = [measure.merge(group) for group in (surveys[half:], surveys[:half]) if group]
    model = pickle.loads(pickle.dumps(measure.fit([pickle.loads(pickle.dumps(part)) for part in parts])))
    found: dict[str, float] = {}
    for chunk in chunks:
        found |= dict(zip(chunk, measure.score(chunk, ids_of(chunk), model).tolist(), strict=True))
    return found


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: f"{measure.name}")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.randoms(use_true_random=False), cuts=st.sets(st.integers(0, 90), max_size=6))
def test_neither_order_nor_chunks_change_a_bit(measure: CorpusMeasure, order: random.Random, cuts: set[int]) -> None:
    texts = [*texts_of(88), "", "word"]
    shuffled = texts.copy()
    order.shuffle(shuffled)
    before, after = scores(measure, texts, []), scores(measure, shuffled, sorted(cuts))
    assert np.array([before[text] for text in texts]).tobytes() == np.array([after[text] for text in texts]).tobytes()
    assert len({value for value in before.values() if value == value}) > 20


@pytest.mark.parametrize("measure", MEASURES[1:], ids=lambda measure: f"{measure.name}")
def test_knowing_the_total_changes_what_is_carried_and_no_score(measure: CorpusMeasure) -> None:
    texts = texts_of(600)
    assert scores(measure, texts, [100, 350]) == scores(measure, texts, [100, 350], total=len(texts))
    [small, large] = [measure.survey(texts, ids_of(texts), total=total) for total in (10**6, None)]
    assert len(small.keys) < len(large.keys) == 40


@pytest.mark.parametrize("measure", [WordOrder(), EmbeddingOutliers(dims=16)], ids=lambda measure: measure.name)
def test_threads_change_no_bit(measure: CorpusMeasure) -> None:
    code = f"""
import sys, numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_data_corpus as t
texts = t.texts_of(400)
print(np.array(list(t.scores(t.{measure!r}, texts, [100]).values())).tobytes().hex())
"""
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert found[0] == found[1] and len(found[0]) > 400 * 8


def test_shuffled_words_have_the_same_words_in_a_strange_order() -> None:
    generator = random.Random(1)
    texts = texts_of(300)
    words = texts[0].split() + texts[1].split()
    generator.shuffle(words)
    strange = " ".join(words)
    order, unigram = scores(WordOrder(), [*texts, strange], []), scores(Unigram(), [*texts, strange], [])
    assert order[strange] < min(order[text] for text in texts if len(text.split()) >= 20) - 0.2
    assert unigram[strange] > min(unigram[text] for text in texts)


def test_words_that_nobody_uses_are_unlikely_however_often_one_text_says_them() -> None:
    texts = texts_of(300)
    for strange in ("zxqv " * 500, "Wörter einer Sprache die hier sonst niemand spricht"):
        found = scores(Unigram(), [*texts, strange], [])
        assert found[strange] < min(found[text] for text in texts) - 1


def test_unigram_against_the_definition() -> None:
    texts = ["a b b", "a c", "d"]
    found = scores(Unigram(), texts, [1])
    # The others of "a b b" say a, c and d; the counts are smoothed over 2^18 buckets.
    bottom = 3 + 2**18
    assert found["a b b"] == pytest.approx((np.log(2 / bottom) + 2 * np.log(1 / bottom)) / 3, abs=1e-8)
    assert found["d"] == pytest.approx(np.log(1 / (5 + 2**18)), abs=1e-8)
    assert np.isnan(scores(Unigram(), ["", "a"], [])[""])


def test_word_order_against_the_definition() -> None:
    texts = ["x y " * 10 + "z", "x y z w " * 6]
    measure = WordOrder()
    found = scores(measure, texts, [])
    # Judged by the other text alone: 24 words, of x, y, z and w six each; the pairs xy 6, yx 0, yz 6.
    seen, unseen = np.log(0.1 + 0.9 * 6 * 24 / 36), np.log(0.1)
    # Three places apart stand xy nine times, yx eight times and yz once; seven places apart 7, 6 and 1 times.
    control = (9 + 1 + 7 + 1) * seen + (8 + 6) * unseen
    assert found[texts[0]] == pytest.approx((11 * seen + 9 * unseen) / 20 - control / 32, abs=1e-8)
    outside = measure.score(texts[:1], [b"of another corpus"], measure.fit([measure.survey(texts, ids_of(texts))]))
    assert outside[0] != found[texts[0]]
    assert np.isnan(scores(measure, ["just a few words", *texts], [])["just a few words"])


def test_what_is_about_something_else_lies_far_from_all() -> None:
    generator = random.Random(2)
    texts = texts_of(300)
    strange = [" ".join(generator.choices(CODE, k=40)) + " the night in the middle" for _ in range(9)]
    measure = EmbeddingOutliers(dims=16, group=0.02)
    found = scores(measure, [*texts, *strange[:1]], [])
    assert found[strange[0]] > max(found[text] for text in texts) + 0.1
    # Two in a hundred make a kind: six of 306 texts have five others each, one too few; nine of 309 have enough.
    few, enough = scores(measure, [*texts, *strange[:6]], []), scores(measure, [*texts, *strange], [])
    assert min(few[text] for text in strange[:6]) > max(few[text] for text in texts)
    assert max(enough[text] for text in strange) < min(few[text] for text in strange[:6]) - 0.1


def test_words_that_the_directions_do_not_know_take_a_text_away_from_all() -> None:
    texts = texts_of(300)
    words = texts[0].split()
    half = " ".join(f"{word} unheard{place}" for place, word in enumerate(words))
    measure = EmbeddingOutliers(dims=16)
    model = measure.fit([measure.survey(texts, ids_of(texts))])
    near, far = measure.score([texts[0], half], [b"a", b"b"], model)
    assert far > near + 0.1


def test_distances_against_a_direct_computation() -> None:
    texts = texts_of(60)
    measure = EmbeddingOutliers(embedding=f"{__name__}:lengths", group=2 / 60)
    found = scores(measure, texts, [])
    unit = lengths(texts) / np.linalg.norm(lengths(texts), axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -1)
    assert [found[text] for text in texts] == pytest.approx(-np.log(np.sort(cosine, axis=1)[:, -2]), abs=5e-4)


def test_the_projection_keeps_the_strongest_directions() -> None:
    from scipy import sparse

    from llmray.data import neighbours

    rows = sparse.random_array((120, neighbours._BUCKETS), density=2e-4, rng=np.random.default_rng(0), format="csr")
    rows = rows + 0.4 * sparse.csr_array(np.outer(np.ones(120), np.arange(neighbours._BUCKETS) < 9))
    found_vk = neighbours._directions(sparse.csr_matrix(rows), 5)
    singular = np.sqrt(np.linalg.eigvalsh((rows @ rows.T).toarray()))[::-1]
    assert found_vk.T @ found_vk == pytest.approx(np.eye(5), abs=1e-9)
    assert np.linalg.norm(rows @ found_vk[:, 0]) == pytest.approx(singular[0], rel=1e-9)
    assert np.linalg.norm(rows @ found_vk) >= 0.97 * np.linalg.norm(singular[:5])
    assert (found_vk[np.abs(found_vk).argmax(axis=0), np.arange(5)] > 0).all()


def test_what_has_nothing_in_common_is_as_far_as_can_be() -> None:
    texts = texts_of(300)
    measure = EmbeddingOutliers(dims=16)
    model = measure.fit([measure.survey(texts, ids_of(texts))])
    assert measure.score(["zxqv wvut", ""], [b"a", b"b"], model) == pytest.approx([-np.log(1e-4), np.nan], nan_ok=True)


def test_more_directions_than_the_corpus_has_are_zeros() -> None:
    texts = ["one two", "one three", "two three", "three one", "two one"]
    found = scores(EmbeddingOutliers(dims=64, sample=10), texts, [])
    assert all(0 <= value < 1 for value in found.values())
    assert all(np.isnan(value) for value in scores(EmbeddingOutliers(), texts[:1], []).values())


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: f"{measure.name}")
def test_nothing_is_no_trouble(measure: CorpusMeasure) -> None:
    survey = measure.survey([], [])
    model = measure.fit([survey, measure.survey([], [])])
    assert measure.score([], [], model).shape == (0,)
    assert len(measure.score(["a text of some words"], [b"id"], model)) == 1


def test_a_sample_is_the_smallest_keys_each_once() -> None:
    def encode(texts: Sequence[str]) -> tuple[NDArray[np.int64], I64]:
        return np.array([int(text) for text in texts], np.int64), np.arange(len(texts) + 1, dtype=np.int64)

    def sampled(numbers: range) -> Sampled:
        return sample([str(n) for n in numbers], [str(n).encode() for n in numbers], 10, encode)

    wanted = sorted(range(100), key=lambda n: key_of(str(n).encode()))[:10]
    overlapping = [sampled(range(60, 100)), sampled(range(70)), sampled(range(0))]
    assert merge_samples(overlapping, 10).codes.tolist() == wanted
    assert merge_samples([merge_samples(overlapping[:2], 10), overlapping[0]], 10).codes.tolist() == wanted
    assert corpus.places_of(merge_samples(overlapping, 10).keys, [str(wanted[3]).encode(), b"none"]).tolist() == [3, -1]


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: Unigram(mads=0), "try 5"),
        (lambda: WordOrder(sample=0), "try 20000"),
        (lambda: WordOrder(mads=-1), "try 2.5"),
        (lambda: EmbeddingOutliers(group=1), "try 0.02"),
        (lambda: EmbeddingOutliers(dims=0), "1 or more"),
        (lambda: EmbeddingOutliers(mads=0), "try 4"),
    ],
)
def test_impossible_settings_name_the_fix(make: Any, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        make()


def test_an_embedder_that_gives_no_vectors_is_named() -> None:
    with pytest.raises(InputError, match="must return numbers of shape"):
        EmbeddingOutliers(embedding=f"{__name__}:narrow").survey(["a"], [b"a"])
