"""Exact repeats: rows whose normalised content is the same.

The key is a 128-bit digest of the normalised content and the row's kind, so that a text never repeats a conversation.
Which copy stays is decided by rank, best first, never by arrival. Rejected: comparing 64-bit hashes without
verification; at a billion rows some would collide, and a collision here deletes a document.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmray.data import normal_kernels
from llmray.data.folding import MOST_GROWTH, NOTHING, normal_folding
from llmray.data.normalize import Normalization, normalize
from llmray.data.utf8 import Texts, utf8

KEY_BYTES = 16

_PLAIN = Normalization()
_SPACES = b"\t\n\v\f\r\x1c\x1d\x1e\x1f"
_CAPITALS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ASCII = np.frombuffer(bytes.maketrans(_CAPITALS + _SPACES, _CAPITALS.lower() + b" " * len(_SPACES)), np.uint8)
"""ASCII: capitals to small letters, and all that `str.split` takes for white space to a blank."""
_NOT_ASCII = 0x80
_TEXTS_AT_ONCE = 512


def exact_key(kind: str, text: str, rules: Normalization) -> bytes:
    """128-bit name of what a row says once the stated differences are taken away."""
    return _key(kind, normalize(text, rules).encode("utf-8", "surrogatepass"))


def exact_keys(kinds: Sequence[str], texts: Texts, rules: Normalization) -> list[bytes]:
    """The same of many rows, several times as fast where all differences are taken away."""
    if rules == _PLAIN:
        return list(map(_key, kinds, _normal_forms(texts)))
    said = texts if isinstance(texts, Sequence) else texts.fill_null("").to_pylist()
    return [exact_key(kind, text, rules) for kind, text in zip(kinds, said, strict=True)]


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


def _key(kind: str, said: bytes | memoryview) -> bytes:
    state = hashlib.blake2b(kind.encode() + b"\x1c", digest_size=KEY_BYTES)
    state.update(said)
    return state.digest()


def _normal_forms(texts: Texts) -> Iterator[bytes | memoryview]:
    """What `normalize` makes of each text with all its rules, in UTF-8."""
    for low in range(0, len(texts), _TEXTS_AT_ONCE):
        data, offsets_D1 = utf8(texts[low : low + _TEXTS_AT_ONCE])
        begin, end = int(offsets_D1[0]), int(offsets_D1[-1])
        foreign = end > begin and data[begin:end].max() >= _NOT_ASCII
        table = normal_folding() if foreign else NOTHING
        room = np.empty((MOST_GROWTH if foreign else 1) * (end - begin) + 1, np.uint8)
        lengths_D = normal_kernels.normal_forms(data, offsets_D1, _ASCII, table.starts, table.data, room)
        said, at = room.data, 0
        for document, length in enumerate(lengths_D.tolist()):
            if length < 0:
                text = data[offsets_D1[document] : offsets_D1[document + 1]].tobytes()
                plain = normalize(text.decode("utf-8", "surrogatepass"), _PLAIN)
                yield plain.encode("utf-8", "surrogatepass")
                continue
            yield said[at : at + length]
            at += length
