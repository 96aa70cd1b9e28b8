"""Exact repeats: rows whose normalised content is the same.

The key is a 128-bit digest of the normalised whole row and its kind, so that a text never repeats a conversation. Which
copy stays is decided by rank, best first, never by arrival. Rejected: comparing 64-bit hashes without verification; at
a billion rows some would collide, and a collision here deletes a document.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from llmray.data.normalize import Normalization, normalize
from llmray.data.rows import Row

KEY_BYTES = 16


def exact_key(row: Row, rules: Normalization) -> bytes:
    """128-bit name of what the row says once the stated differences are taken away."""
    content = f"{row.kind}\x1c{normalize(row.whole, rules)}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def first_of_each(keys: NDArray[np.bytes_] | NDArray[np.void], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row, the index of the best-ranked row with the same key: its own where there is no better.

    Args:
        keys: one key a row [D].
        rank: a permutation of 0..D-1 [D]; the lower, the better.
    """
    if not len(keys):
        return np.zeros(0, np.int64)
    _, label = np.unique(keys, return_inverse=True)
    best = np.full(label.max() + 1, len(keys), np.int64)
    np.minimum.at(best, label, rank)
    by_rank = np.empty(len(rank), np.int64)
    by_rank[rank] = np.arange(len(rank))
    return by_rank[best[label]]
