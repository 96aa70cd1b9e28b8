"""What `llmray.data.components.resolve` decides, a document at a time, on plain sets: the reference for its kernel."""

from collections.abc import Sequence

import numpy as np

from llmray.data.near import Edges


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / max(1, len(one | other))


def resolve(
    sets: Sequence[frozenset[int]], edges: Edges, threshold: float, max_looks: int
) -> tuple[list[int], list[int], list[float]]:
    """Cluster, kept document and similarity of each."""
    near: list[list[int]] = [[] for _ in sets]
    for left, right in zip(edges.left.tolist(), edges.right.tolist(), strict=True):
        near[left].append(right)
        near[right].append(left)
    near = [sorted(one) for one in near]
    kept_for, similarity, decided = list(range(len(sets))), [1.0] * len(sets), set[int]()
    looks = [0] * len(sets)
    for document in range(len(sets)):
        if document in decided or not near[document]:
            continue
        decided.add(document)
        far = set[int]()
        for one in near[document]:
            looks[one] += 1
            far |= set(near[one]) if looks[one] <= max_looks else set()
        for rival in {*near[document], *far} - decided:
            alike = jaccard(sets[document], sets[rival])
            if alike >= threshold:
                kept_for[rival], similarity[rival] = document, alike
                decided.add(rival)
    return components(near), kept_for, similarity


def components(near: Sequence[Sequence[int]]) -> list[int]:
    """The least member of the component of each."""
    least = list(range(len(near)))
    changed = True
    while changed:
        changed = False
        for one, others in enumerate(near):
            best = min([least[one], *(least[other] for other in others)])
            changed |= best < least[one]
            least[one] = best
    return least


def edges_of(pairs: Sequence[tuple[int, int]], sets: Sequence[frozenset[int]]) -> Edges:
    """Edges between some documents, as alike as they are."""
    pairs = sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]})
    return Edges(
        left=np.array([left for left, _ in pairs], np.int64),
        right=np.array([right for _, right in pairs], np.int64),
        similarity=np.array([jaccard(sets[left], sets[right]) for left, right in pairs], np.float64),
    )
