"""Exact repeats: rows whose normalised content is the same.

The key is a 128-bit digest of the normalised content and the row's kind, so that a text never repeats a conversation.
Which copy stays is decided by rank, best first, never by arrival. Rejected: comparing 64-bit hashes without
verification; at a billion rows some would collide, and a collision here deletes a document.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from llmray.data.normalize import Normalization, normalize

KEY_BYTES = 16

_PLAIN = Normalization()
_SPACES = b"\t\n\v\f\r\x1c\x1d\x1e\x1f"
_FOLD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ" + _SPACES, b"abcdefghijklmnopqrstuvwxyz" + b" " * len(_SPACES))
"""ASCII: capitals to small letters, and all that `str.split` takes for white space to a blank."""


def exact_key(kind: str, text: str, rules: Normalization) -> bytes:
    """128-bit name of what a row says once the stated differences are taken away."""
    if rules == _PLAIN and text.isascii():
        said = _normal_ascii(text)
    else:
        said = normalize(text, rules).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(b"%b\x1c%b" % (kind.encode(), said), digest_size=KEY_BYTES).digest()


def halves(keys_RB: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first 16 bytes of each key or id as two numbers that sort as the bytes do."""
    words = np.ascontiguousarray(keys_RB[:, :16]).view(">u8").astype(np.uint64)
    return words[:, 0], words[:, 1]


def first_of_each(keys: tuple[NDArray[np.uint64], NDArray[np.uint64]], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row, the index of the best-ranked row with the same key: its own where there is no better.

    Args:
        keys: one key a row, as two numbers [D], [D].
        rank: different numbers [D]; the lower, the better.
    """
    high, low = keys
    order = np.lexsort((rank, low, high))
    if not len(order):
        return np.zeros(0, np.int64)
    fresh = np.ones(len(order), bool)
    fresh[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(fresh)[np.cumsum(fresh) - 1]]
    return first


def _normal_ascii(text: str) -> bytes:
    """What `normalize` makes of ASCII text with all its rules, several times as fast."""
    said = text.encode().translate(_FOLD)
    while b"  " in said:
        said = said.replace(b"  ", b" ")
    return said.strip(b" ")
