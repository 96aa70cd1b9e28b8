"""Which copies go: clusters are connected components, yet a document only goes for a kept one that it repeats itself.

Taken best first, a document that nothing better removed is kept and removes what is at least `threshold` like it. So in
a chain A~B~C with A unlike C, B goes for A and C stays; every removed document names a kept one, and no two kept ones
are known repeats. Rejected: keeping one document per component, which deletes C though nothing kept resembles it.

Whoever stays decides all its neighbours, and then looks through theirs. A hot bucket joins its members to a hub alone:
whoever removes the hub takes its place by that look; and documents that are like the same third are often alike, though
chance kept them from ever sharing a bucket. Each list of neighbours is looked through a few times, so all looks together
cost what the edges cost. What later ones leave out is counted where it was promised, that is where documents share a
bucket (`verify`). Rejected: a bound on what one document looks at, which in a large cluster is met by each.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from llmray.data.minhash import I64
from llmray.data.near import Edges

MAX_LOOKS = 8
"""Kept documents that look through the neighbours of one, the best first."""


class Likeness(Protocol):
    """Documents that can be compared: by their shingles (`near.Shingled`) or their vectors (`semantic.Embedded`)."""

    def settle(self, graph: sparse.csr_matrix, threshold: float, max_looks: int) -> tuple[I64, NDArray[np.float64]]:
        """For each document the kept one that it repeats, itself where it stays, and how alike the two are.

        Args:
            graph: how alike documents are that are known to be, both ways [D, D].
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """What became of each document [D]."""

    cluster: I64
    """The best document of the component; its own number for a document without repeats."""
    kept_for: I64
    """The kept document that it repeats; its own number where it is kept."""
    similarity: NDArray[np.float64]
    """Jaccard with `kept_for`; 1 for a kept document."""


def resolve(num_documents: int, edges: Edges, documents: Likeness, threshold: float) -> Resolution:
    """Decide every cluster. Document numbers must follow rank: 0 is the best."""
    halves = (edges.similarity, (edges.left, edges.right))
    half = sparse.coo_matrix(halves, shape=(num_documents, num_documents))
    graph = (half + half.T).tocsr()
    graph.sort_indices()
    _, label = csgraph.connected_components(graph, directed=False)
    best = np.full(label.max() + 1 if num_documents else 0, num_documents, np.int64)
    np.minimum.at(best, label, np.arange(num_documents))
    kept_for, similarity = documents.settle(graph, threshold, MAX_LOOKS)
    return Resolution(cluster=best[label], kept_for=kept_for, similarity=similarity)
