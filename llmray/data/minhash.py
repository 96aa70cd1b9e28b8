"""Word n-gram shingles and MinHash signatures of many documents at once, in numpy.

Shingles are 64-bit hashes of n consecutive words; a document with fewer words is one shingle of all of them, and one
without words has none. The K minima of a signature are taken over 32-bit multiply-shift hashes (a·x + b) >> 32 with
random 64-bit a and b (Dietzfelbinger 1996), strongly universal in wrapping arithmetic; the affine map modulo 2^61 - 1
that MinHash code often copies is not, once it wraps. Shape legend: D documents, W words, S shingles, K hashes, N bands.

`shingle` and `signatures` are the seam for a faster kernel: same arguments, same results. Rejected: one-permutation
hashing, whose variance is largest for the short documents that we see most.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmray.data.banding import Banding
from llmray.data.normalize import word_text

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_CHUNK_SHINGLES = 1 << 15
"""Shingles hashed at once: their products stay in the second-level cache."""
_WORD_SEED = 0x6C6C6D726179
_SEPARATOR = 0
_ODD = np.uint64(0x9E3779B97F4A7C15)


def shingle(texts: Sequence[str], num_words: int, *, distinct: bool = True) -> tuple[U64, I64]:
    """Shingles of each text: each once and sorted, or as they come, which is all that a minimum needs.

    Args:
        texts: D texts, not normalised.
        num_words: words in a shingle.

    Returns:
        shingles_S: hashes of all texts, one text after another.
        offsets_D1: text d has `shingles_S[offsets_D1[d]:offsets_D1[d + 1]]`.
    """
    words_W, starts_D1 = _words(texts)
    num_docs = len(texts)
    counts_D = np.diff(starts_D1)
    made_D = np.where(counts_D == 0, 0, np.maximum(counts_D - num_words + 1, 1))
    if not made_D.sum():
        return np.zeros(0, np.uint64), np.zeros(num_docs + 1, np.int64)
    doc_S = np.repeat(np.arange(num_docs), made_D)
    first_S = np.arange(len(doc_S)) - np.repeat(np.cumsum(made_D) - made_D, made_D) + starts_D1[doc_S]
    hash_S = np.zeros(len(doc_S), np.uint64)
    for step in range(num_words):
        # Words beyond the end of a short document count as the hash 0, which no word has in practice.
        place_S = first_S + step
        inside_S = place_S < starts_D1[doc_S + 1]
        word_S = np.where(inside_S, words_W[np.minimum(place_S, len(words_W) - 1)], np.uint64(0))
        hash_S = _mix(hash_S * _ODD + word_S + np.uint64(step + 1))
    if not distinct:
        return hash_S, np.concatenate(([0], np.cumsum(made_D))).astype(np.int64)
    order = np.lexsort((hash_S, doc_S))
    hash_S, doc_S = hash_S[order], doc_S[order]
    fresh_S = np.ones(len(hash_S), bool)
    fresh_S[1:] = (hash_S[1:] != hash_S[:-1]) | (doc_S[1:] != doc_S[:-1])
    offsets_D1 = np.zeros(num_docs + 1, np.int64)
    np.cumsum(np.bincount(doc_S[fresh_S], minlength=num_docs), out=offsets_D1[1:])
    return hash_S[fresh_S], offsets_D1


def signatures(shingles_S: U64, offsets_D1: I64, num_hashes: int, seed: int) -> NDArray[np.uint32]:
    """MinHash signatures [D, K]; the row of a document without shingles is all ones."""
    num_docs = len(offsets_D1) - 1
    signatures_DK = np.full((num_docs, num_hashes), np.iinfo(np.uint32).max, np.uint32)
    generator = np.random.Generator(np.random.PCG64(seed))
    a_K = generator.integers(0, 2**64, num_hashes, np.uint64)
    b_K = generator.integers(0, 2**64, num_hashes, np.uint64)
    key_S = shingles_S >> np.uint64(32)
    full_D = np.flatnonzero(np.diff(offsets_D1))
    low = 0
    while low < len(full_D):
        # Whole documents up to a chunk; a longer one is a chunk by itself.
        start = offsets_D1[full_D[low]]
        high = max(low + 1, int(np.searchsorted(offsets_D1[full_D + 1], start + _CHUNK_SHINGLES, side="right")))
        docs = full_D[low:high]
        key = key_S[start : offsets_D1[docs[-1] + 1]]
        begins = offsets_D1[docs] - start
        product = np.empty_like(key)
        for k in range(num_hashes):
            np.multiply(key, a_K[k], out=product)
            np.add(product, b_K[k], out=product)
            # The shift keeps the order of the high words, so it can wait until after the minimum.
            signatures_DK[docs, k] = np.minimum.reduceat(product, begins) >> np.uint64(32)
        low = high
    return signatures_DK


def band_hashes(signatures_DK: NDArray[np.uint32], banding: Banding) -> U64:
    """One 64-bit bucket name per document and band [D, N]; buckets of different bands never meet."""
    num_docs = len(signatures_DK)
    rows_DNR = signatures_DK.reshape(num_docs, banding.num_bands, banding.rows_per_band).astype(np.uint64)
    hashes_DN = np.broadcast_to(_mix(np.arange(1, banding.num_bands + 1, dtype=np.uint64)), rows_DNR.shape[:2]).copy()
    for row in range(banding.rows_per_band):
        hashes_DN = _mix(hashes_DN * _ODD + rows_DNR[:, :, row])
    return hashes_DN


def _words(texts: Sequence[str]) -> tuple[U64, I64]:
    """Hashes of all words [W] and where each text's words start [D + 1]."""
    encoded = [word_text(text).encode("utf-8", "surrogatepass") for text in texts]
    # A separator after each text keeps the last word of one from running into the next.
    data = np.frombuffer(bytes([_SEPARATOR]).join([*encoded, b""]), np.uint8)
    ends_D = np.cumsum([len(text) + 1 for text in encoded], dtype=np.int64)
    inside = _IS_WORD[data]
    edges = np.flatnonzero(np.diff(np.concatenate(([0], inside.view(np.int8), [0]))))
    begin_W, end_W = edges[0::2], edges[1::2]
    starts_D1 = np.concatenate(([0], np.searchsorted(begin_W, ends_D))).astype(np.int64)
    if not len(begin_W):
        return np.zeros(0, np.uint64), starts_D1
    # A word's hash is the sum of T[byte] · M^place over its bytes, for a random table T and an odd M, modulo 2^64.
    begins = np.zeros(len(data), bool)
    begins[begin_W] = True
    inside_at = np.flatnonzero(inside)
    within = inside_at - begin_W[np.cumsum(begins)[inside_at] - 1]
    terms = np.zeros(len(data), np.uint64)
    terms[inside_at] = _TABLE[data[inside_at]] * _powers(int((end_W - begin_W).max()))[within]
    return _mix(np.add.reduceat(terms, begin_W) + (end_W - begin_W).astype(np.uint64)), starts_D1


def _powers(count: int) -> U64:
    powers = np.full(count, _ODD, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _mix(values: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection that spreads every bit over all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _word_bytes() -> NDArray[np.bool_]:
    letters = np.zeros(256, bool)
    letters[[ord(letter) for letter in "abcdefghijklmnopqrstuvwxyz0123456789_"]] = True
    # `word_text` leaves no separator above ASCII, so every byte of a longer UTF-8 sequence is part of a word.
    letters[128:] = True
    return letters


_IS_WORD = _word_bytes()
_TABLE: U64 = np.random.Generator(np.random.PCG64(_WORD_SEED)).integers(0, 2**64, 256, np.uint64)
