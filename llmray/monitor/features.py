"""How strange a message is: its distance to the nearest of the usual ones.

A message becomes a bag of hashed words and character n-grams (feature hashing with signs: Weinberger et al. 2009),
which needs no model, no vocabulary and no download, and sees topic, language and spelling alike. Its score is the mean
cosine distance to the k nearest reference messages. Rejected: an embedding model (a second model to serve, to version
and to watch), and the distance to the mean, which calls every rare but usual topic strange.

Shapes: N messages, M reference messages, D dimensions.
"""

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmray.errors import InputError

DIMS = 2048
"""Buckets; a message has some 200 features."""
_MAX_CHARS = 2000
_NGRAMS = (3, 4)
Vectors = NDArray[np.float32]


def vectors(texts: Sequence[str], *, dims: int = DIMS) -> Vectors:
    """Feature vectors of length one, shape (N, D), float32; of length zero for a text without a letter."""
    vectors_ND = np.zeros((len(texts), dims), dtype=np.float32)
    for row, text in enumerate(texts):
        counts = Counter(_features(text))
        if not counts:
            continue
        hashes = np.fromiter((zlib.crc32(feature.encode()) for feature in counts), dtype=np.uint32, count=len(counts))
        values = 1.0 + np.log(np.fromiter(counts.values(), dtype=np.float32, count=len(counts)))
        signs = np.where(hashes >> 31, 1.0, -1.0)
        np.add.at(vectors_ND[row], (hashes & 0x7FFFFFFF) % dims, (signs * values).astype(np.float32))
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.divide(vectors_ND, norms_N1, out=vectors_ND, where=norms_N1 > 0)


class Nonconformity:
    """The score of a message against reference messages; fixed once made, so that scores stay comparable."""

    def __init__(self, reference: Sequence[str], *, neighbours: int = 5, dims: int = DIMS) -> None:
        """Keep the reference's vectors.

        Raises:
            InputError: fewer reference messages than neighbours.
        """
        if len(reference) < neighbours:
            raise InputError(f"a monitor needs at least {neighbours} reference messages, got {len(reference)}")
        self._neighbours = neighbours
        self._dims = dims
        self._reference_MD = vectors(reference, dims=dims)

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Mean cosine distance to the k nearest, in [0, 2]; higher is stranger."""
        similarity_NM = vectors(texts, dims=self._dims) @ self._reference_MD.T
        nearest_NK = np.partition(similarity_NM, -self._neighbours, axis=1)[:, -self._neighbours :]
        return [float(score) for score in 1.0 - nearest_NK.mean(axis=1, dtype=np.float64)]


def _features(text: str) -> list[str]:
    words = text[:_MAX_CHARS].lower().split()
    line = f" {' '.join(words)} "
    grams = [line[start : start + size] for size in _NGRAMS for start in range(len(line) - size + 1)] if words else []
    return [f"w:{word}" for word in words] + grams
