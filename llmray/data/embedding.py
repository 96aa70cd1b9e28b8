"""Texts to vectors of length one, by a model that is already on this machine, and similarities exact to the bit.

An embedder is any callable from texts to an array [N, D]: `module:attribute`, the folder of a sentence-transformers
model, or `minilm`, the all-MiniLM-L6-v2 that the extra of that name installs (`llmray.sentences` runs both).

Cosines are compared with thresholds, so they too must not depend on block shapes or threads, as the float sums of a
matrix product do. `snap` puts unit vectors on a grid of 1/4000: every product and partial sum of two such vectors is
then an integer below 2^24, which float32 holds exactly, so any order of summation gives the same bits at full speed.
Rejected: rounding the similarities, which only moves the borders at which two runs differ.

Shapes: N texts, D dimensions, T tokens.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmray import storage
from llmray.code_names import is_code_name, load_named
from llmray.errors import ConfigError, InputError
from llmray.sentences import SentenceEncoder, minilm_folder

GRID = 4000
"""Steps from 0 to 1. Rounding adds at most sqrt(D)/2 to a length; (4000 + sqrt(D)/2)^2 < 2^24 up to 36,000 dimensions."""
MAX_DIMS = 36_000
MINILM = "minilm"
Embed = Callable[[Sequence[str]], NDArray[Any]]
Vectors = NDArray[np.float32]


def load(name: str) -> Embed:
    """The embedder called `minilm`, at `module:attribute`, or in a folder; loaded once a process.

    Raises:
        ConfigError: it cannot be loaded, or the folder holds a model of another make.
        NotFoundError: there is no such folder.
    """
    return _load(name, storage.stamps(model_files(name)))


def model_files(name: str) -> list[str]:
    """The files of the model that an embedder's name stands for; none where it is no folder.

    Raises:
        NotFoundError: there is no such folder.
    """
    return [] if name == MINILM or is_code_name(name) else storage.expand([name])


@lru_cache(maxsize=2)
def _load(name: str, stamps: tuple[str, ...]) -> Embed:  # noqa: ARG001  (a model that changed is another)
    if name == MINILM:
        return SentenceEncoder(minilm_folder())
    if is_code_name(name):
        found: Embed = load_named(name, "embedding")
        if not callable(found):
            raise ConfigError(f"embedding: {name} is a {type(found).__name__}: make it a function of texts")
        return found
    return SentenceEncoder(storage.local_copy(name))


def embed(embedder: Embed, texts: Sequence[str]) -> Vectors:
    """Snapped vectors of texts [N, D].

    Raises:
        InputError: the embedder gives anything but one finite vector a text.
    """
    if not len(texts):
        return np.zeros((0, 0), np.float32)
    vectors_ND = np.asarray(embedder(texts))
    if vectors_ND.ndim != 2 or len(vectors_ND) != len(texts) or not np.issubdtype(vectors_ND.dtype, np.number):
        raise InputError(
            f"the embedder gave {vectors_ND.dtype} of shape {vectors_ND.shape} for {len(texts)} texts: "
            "it must return numbers of shape (texts, dimensions)"
        )
    if not np.isfinite(vectors_ND).all():
        raise InputError("the embedder gave a vector with NaN or an infinity")
    return snap(vectors_ND)


def snap(vectors_ND: NDArray[Any]) -> Vectors:
    """Vectors at length one, on the grid; a vector of length zero stays zero."""
    exact_ND = np.ascontiguousarray(vectors_ND, np.float64)
    length_N1 = np.sqrt(np.square(exact_ND).sum(axis=1, keepdims=True))
    return on_grid(np.divide(exact_ND, length_N1, out=np.zeros_like(exact_ND), where=length_N1 > 0))


def on_grid(vectors_ND: NDArray[np.float64]) -> Vectors:
    """Vectors of length one at most in steps of 1/4000, as whole numbers of steps."""
    assert vectors_ND.shape[1] <= MAX_DIMS, "more dimensions than float32 sums exactly"
    return np.rint(vectors_ND * GRID).astype(np.float32)


def lengths(snapped_ND: Vectors) -> NDArray[np.float64]:
    """Lengths of snapped vectors, in steps; 1 for a vector of zeros, so that its cosines are zero [N]."""
    squares_N = np.square(snapped_ND, dtype=np.float64).sum(axis=1)
    return np.sqrt(np.where(squares_N > 0, squares_N, 1.0))
