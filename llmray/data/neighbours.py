"""How far a text lies from its nearest neighbours in the corpus: what is about something else, or in another language.

By default a text is a bag of hashed words, weighted by TF-IDF, at length one, and projected on the strongest directions
of a sample (latent semantic analysis; Deerwester et al. 1990), which needs no model and no download. What a text has in
common with none of these directions is lost, and with it the text's likeness to any other: so the projection is not
stretched to length one again. Or any embedder makes the vectors (see `embedding`). The score is the distance to the k-th
nearest text of the sample (Ramaswamy, Rastogi and Shim 2000), the text itself left out, where k is a share of the
sample: with the k = 5 of the textbooks a hundred texts of one kind of junk keep one another company. In
`benchmarks/curation_outliers.py` that and the stretching are the difference between finding nothing and finding base64,
mojibake and other languages. The distance is -log of the cosine, which grows alike from each halving: 1 - cosine ends
at 1, some three MADs above its median, and no learned limit lies below its end. MiniLM sees what a text is about and
not how it is written: there, with k = 2%, it finds Shakespeare among documentation (AUPRC 0.92, TF-IDF 0.07) and no
base64 or mojibake (0.03 and 0.06, TF-IDF 1.00 and 0.89); it takes 66 ms a text. Rejected: the distance to the mean (calls every rare but usual topic strange), and
isolation forests on embeddings (every axis alone says little).

The same bits come out however texts are cut into batches: a text's projection sums its own words in their order, its
vector is snapped to a grid on which products are exact (see `embedding.snap`), and the projection is fitted without
BLAS, whose sums depend on threads: sparse products, and Gram matrices that are sparse products too.

Shapes: N texts, S texts of the sample, V buckets, K dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llmray.data import embedding
from llmray.data.corpus import Codes, Sampled, merge_samples, places_of, sample
from llmray.data.embedding import GRID, Vectors
from llmray.data.minhash import I64, WORDS, shingle_lists
from llmray.data.robust import Axis
from llmray.errors import ConfigError

TFIDF = "tfidf"
_BUCKETS = 1 << 16
_OVERSAMPLED = 10
"""Directions followed beyond those that are kept (Halko, Martinsson and Tropp 2011, 4.2)."""
_ROUNDS = 6
_LEAST = 1e-4
"""Cosines below this are grid noise: the distance of what has nothing in common is 9.2."""
_BLOCK = 256
"""Texts compared with the sample at once: some 20 MB of similarities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbourhood:
    """A fitted sample."""

    keys: tuple[bytes, ...]
    """Documents of the sample, as `corpus.key_of` names them."""
    vectors: Vectors
    """Their snapped vectors [S, K]."""
    idf: NDArray[np.float64] | None
    """Inverse document frequency of each bucket [V]; None where an embedder makes the vectors."""
    directions: NDArray[np.float64] | None
    """Projection of each bucket [V, K]; None likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingOutliers:
    """-log of the cosine to the k-th nearest text of a sample; NaN for a text without words."""

    embedding: str = field(default=TFIDF, metadata={"code": True})
    """`tfidf`, `minilm`, the folder of a sentence-transformers model, or `module:attribute` from texts to an array."""
    sample: int = 20_000
    """Documents that texts are compared with."""
    group: float = 0.02
    """How many texts of a kind make it usual, as a share of the sample: that nearest neighbour is the one that counts."""
    dims: int = 64
    """Directions that TF-IDF is projected on."""
    max_words: int = 1000
    """Words of a text that TF-IDF looks at."""
    mads: float = 4.0
    """Scaled MADs above the median from which on a text is far from all; 4 loses 0.05% of documentation."""

    def __post_init__(self) -> None:
        if self.mads <= 0:
            raise ConfigError(f"embedding_outliers.mads ({self.mads}) must be above 0: try 4")
        if not 0 < self.group < 1:
            raise ConfigError(f"embedding_outliers.group ({self.group}) must be above 0 and below 1: try 0.02")
        if self.sample < 1 or self.dims < 1 or self.max_words < 1:
            raise ConfigError("embedding_outliers.sample, .dims and .max_words must be 1 or more")

    @property
    def name(self) -> str:
        """The name of the rule; both may be asked for, since they find different things."""
        return "embedding_outlier" if self.embedding == TFIDF else "sentence_outlier"

    @property
    def axis(self) -> Axis:
        """Only what is far away is unusual."""
        return Axis(mads=self.mads, side="high")

    def survey(self, texts: Sequence[str], ids: Sequence[bytes], *, total: int | None = None) -> Sampled:
        """Words, or vectors, of the documents that may be in the sample."""
        return sample(texts, ids, self.sample, self._encode, total=total)

    def merge(self, surveys: Sequence[Sampled]) -> Sampled:
        """The sample."""
        return merge_samples(surveys, self.sample)

    def fit(self, surveys: Sequence[Sampled]) -> Neighbourhood:
        """The sample's vectors, and for TF-IDF the projection that makes them."""
        merged = self.merge(surveys)
        if self.embedding != TFIDF:
            vectors_SK = _stacked(merged.codes, len(merged.keys))
            return Neighbourhood(keys=merged.keys, vectors=vectors_SK, idf=None, directions=None)
        counts_SV = _term_counts(merged.codes, merged.offsets)
        documents_V = np.bincount(counts_SV.indices, minlength=_BUCKETS)
        idf_V = np.log((1 + len(merged.keys)) / (1 + documents_V)) + 1
        rows_SV = _unit_rows(counts_SV, idf_V)
        directions_VK = _directions(rows_SV, self.dims)
        vectors_SK = embedding.on_grid(rows_SV @ directions_VK)
        return Neighbourhood(keys=merged.keys, vectors=vectors_SK, idf=idf_V, directions=directions_VK)

    def score(self, texts: Sequence[str], ids: Sequence[bytes], model: Neighbourhood) -> NDArray[np.float64]:
        """Distances in [0, 9.21]; NaN for a text without words, and for all where the sample is too small [N]."""
        codes, offsets_N1 = self._encode(texts)
        if model.idf is None or model.directions is None:
            vectors_NK = _stacked(codes, len(texts))
            empty_N = ~vectors_NK.any(axis=1)
        else:
            rows_NV = _unit_rows(_term_counts(codes, offsets_N1), model.idf)
            vectors_NK = embedding.on_grid(rows_NV @ model.directions)
            empty_N = np.diff(offsets_N1) == 0
        nearest = max(1, round(self.group * len(model.keys)))
        distances_N = _distances(vectors_NK, places_of(model.keys, ids), model.vectors, nearest)
        return np.where(empty_N, np.nan, distances_N)

    def _encode(self, texts: Sequence[str]) -> tuple[Codes, I64]:
        """Buckets of a text's words, or the text's vector in steps, in two bytes each."""
        if self.embedding == TFIDF:
            return _buckets(texts, self.max_words)
        vectors_NK = embedding.embed(embedding.load(self.embedding), texts)
        width = vectors_NK.shape[1]
        return vectors_NK.astype(np.int16).ravel(), np.arange(len(texts) + 1, dtype=np.int64) * width


def _stacked(codes: Codes, num: int) -> Vectors:
    return codes.reshape(num, len(codes) // max(1, num)).astype(np.float32)


def _distances(vectors_NK: Vectors, places_N: I64, sample_SK: Vectors, nearest: int) -> NDArray[np.float64]:
    """Distance of each text to the `nearest`-th of the sample, itself left out [N]."""
    distances_N = np.full(len(vectors_NK), np.nan)
    if len(sample_SK) <= nearest:
        return distances_N
    sample_KS = np.ascontiguousarray(sample_SK.T)
    for low in range(0, len(vectors_NK), _BLOCK):
        block = slice(low, low + _BLOCK)
        product_NS = vectors_NK[block] @ sample_KS
        inside = np.flatnonzero(places_N[block] >= 0)
        product_NS[inside, places_N[block][inside]] = -np.inf
        product_N = np.partition(product_NS, -nearest, axis=1)[:, -nearest].astype(np.float64)
        # The grid makes some vectors a little longer than one; rounding keeps the last bit of a logarithm out of it.
        distances_N[block] = np.round(-np.log(np.clip(product_N / GRID**2, _LEAST, 1.0)), 9) + 0.0
    return distances_N


def _buckets(texts: Sequence[str], max_words: int) -> tuple[NDArray[np.uint16], I64]:
    hashes_W, offsets_N1 = shingle_lists(texts, WORDS)
    lengths_N = np.diff(offsets_N1)
    place_W = np.arange(len(hashes_W)) - np.repeat(offsets_N1[:-1], lengths_N)
    kept_N = np.minimum(lengths_N, max_words)
    codes = (hashes_W >> np.uint64(48)).astype(np.uint16)[place_W < max_words]
    return codes, np.concatenate(([0], np.cumsum(kept_N))).astype(np.int64)


def _term_counts(codes: Codes, offsets_N1: I64) -> sparse.csr_matrix:
    """1 + log(count) of each text's buckets, ascending within a text [N, V]."""
    num_texts = len(offsets_N1) - 1
    doc_W = np.repeat(np.arange(num_texts), np.diff(offsets_N1))
    both, count = np.unique(doc_W * _BUCKETS + codes.astype(np.int64), return_counts=True)
    indptr = np.searchsorted(both, np.arange(num_texts + 1) * _BUCKETS)
    return sparse.csr_matrix((1 + np.log(count), both % _BUCKETS, indptr), shape=(num_texts, _BUCKETS))


def _unit_rows(counts_SV: sparse.csr_matrix, idf_V: NDArray[np.float64]) -> sparse.csr_matrix:
    """TF-IDF rows of length one, so that a long text has no more say in the directions than a short one."""
    weighted = counts_SV @ sparse.diags_array(idf_V)
    squares_S = np.asarray(weighted.multiply(weighted) @ np.ones(_BUCKETS))
    return sparse.csr_matrix(sparse.diags_array(1 / np.sqrt(np.where(squares_S > 0, squares_S, 1.0))) @ weighted)


def _directions(rows_SV: sparse.csr_matrix, dims: int) -> NDArray[np.float64]:
    """The `dims` strongest right singular directions, by subspace iteration [V, K]; zeros beyond the rank."""
    columns_VS = sparse.csr_matrix(rows_SV.T)
    signs = np.random.Generator(np.random.PCG64(0)).integers(0, 2, (_BUCKETS, dims + _OVERSAMPLED))
    basis_VK = signs * 2.0 - 1.0
    for _ in range(_ROUNDS):
        images_SK = rows_SV @ basis_VK
        basis_VK = columns_VS @ _orthonormal(images_SK)
    values, turns = _decomposed(basis_VK)
    strongest = np.argsort(-values, kind="stable")[:dims]
    scale = _inverse_roots(values[strongest], 1e-10)
    directions_VK = _product(basis_VK, turns[:, strongest] * scale)
    # A direction and its opposite are equally good: let the largest entry be positive.
    largest = np.abs(directions_VK).argmax(axis=0)
    return directions_VK * np.where(directions_VK[largest, np.arange(len(strongest))] < 0, -1.0, 1.0)


def _orthonormal(matrix_SK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal columns with the same span; a direction that is lost in rounding becomes zero."""
    values, turns = _decomposed(matrix_SK)
    return _product(matrix_SK, turns * _inverse_roots(values, 1e-12))


def _inverse_roots(values: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """One over the root; 0 for a value that is nothing beside the largest."""
    usable = values > values.max(initial=0.0) * least
    return np.where(usable, 1.0 / np.sqrt(np.where(usable, values, 1.0)), 0.0)


def _decomposed(matrix_SK: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Eigenvalues and eigenvectors of the Gram matrix."""
    gram_KK = sparse.csr_matrix(matrix_SK.T) @ matrix_SK
    values, turns = np.linalg.eigh((gram_KK + gram_KK.T) / 2)
    return values, turns


def _product(left: NDArray[Any], right_KK: NDArray[Any]) -> NDArray[np.float64]:
    """A matrix product whose sums have one order, however many threads BLAS has."""
    return sparse.csr_matrix(left) @ right_KK
