"""Which copies go: clusters are connected components, yet a document only goes for a kept one that it repeats itself.

Taken best first, a document that nothing better removed is kept and removes what is at least `threshold` like it. So in
a chain A~B~C with A unlike C, B goes for A and C stays; every removed document names a kept one, and no two kept ones
are known repeats. Rejected: keeping one document per component, which deletes C though nothing kept resembles it.

A document's rivals are those at most two edges away: a hot bucket joins its members only to a hub, and once the hub has
gone for a better document, they must still meet one another.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from llmray.data.minhash import I64
from llmray.data.near import Edges

MAX_RIVALS = 4096
"""Rivals that one document is compared with, the best first: a bound on what one huge cluster can cost."""


class Likeness(Protocol):
    """Documents that can be compared: by their shingles (`near.Shingled`) or their vectors (`semantic.Embedded`)."""

    def jaccard(self, left: I64, right: I64) -> NDArray[np.float64]:
        """How alike document `left[i]` and `right[i]` are, in [0, 1]."""


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
    everyone = np.arange(num_documents)
    ones = np.ones(len(edges.left), np.int8)
    half = sparse.coo_matrix((ones, (edges.left, edges.right)), shape=(num_documents, num_documents))
    graph = (half + half.T).tocsr()
    _, label = csgraph.connected_components(graph, directed=False)
    best = np.full(label.max() + 1 if num_documents else 0, num_documents, np.int64)
    np.minimum.at(best, label, everyone)
    kept_for = everyone.copy()
    similarity = np.ones(num_documents)
    decided = np.zeros(num_documents, bool)
    for document in np.flatnonzero(np.diff(graph.indptr)):
        if decided[document]:
            continue
        decided[document] = True
        rivals = _rivals(graph, int(document))
        rivals = rivals[~decided[rivals]][:MAX_RIVALS]
        if not len(rivals):
            continue
        likeness = documents.jaccard(np.full(len(rivals), document), rivals)
        gone = rivals[likeness >= threshold]
        kept_for[gone] = document
        similarity[gone] = likeness[likeness >= threshold]
        decided[gone] = True
    return Resolution(cluster=best[label], kept_for=kept_for, similarity=similarity)


def _rivals(graph: sparse.csr_matrix, document: int) -> I64:
    near = graph.indices[graph.indptr[document] : graph.indptr[document + 1]]
    each = max(16, MAX_RIVALS // len(near))
    far = [graph.indices[graph.indptr[other] : graph.indptr[other + 1]][:each] for other in near[:MAX_RIVALS]]
    rivals = np.unique(np.concatenate([near, *far])).astype(np.int64)
    return rivals[rivals != document]
