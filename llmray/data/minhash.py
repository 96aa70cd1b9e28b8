"""Shingles and MinHash buckets of many documents at once: what is computed, and why; `kernels` says how.

Elements of a text are its words or its characters (`Shingling`), as `word_text` leaves them. A shingle is a 64-bit hash
of n consecutive elements; a text with fewer is one shingle of all of them, and one without elements has none. A word's
hash mixes its bytes eight at a time by a bijection, so words of up to eight bytes never collide; a shingle is a mixed
polynomial over its elements modulo 2^64.

The K minima of a signature are taken over h_k = low + c_k · high modulo 2^32, where low and high are the halves of a
shingle and c_k is random: double hashing (Kirsch and Mitzenmacher 2006). Shingles are mixed, so low and high count as
independent and uniform; then each h_k orders any set of shingles at random, which is what makes two minima agree with
probability J, and two functions h_k and h_l are exactly independent but for as many low bits as c_k - c_l has factors
of two, so the K trials have the variance of K independent ones. It costs a multiplication of 32 bits. Rejected: the
multiply-shift family over 64 bits, strongly universal (Dietzfelbinger 1996), for a third of the speed and a promise
about pairs of keys, where MinHash needs one about all orders; the affine map modulo 2^61 - 1 of many MinHash codes,
which is not even that once it wraps; one-permutation hashing, whose variance is largest for the short documents that we
see most.

All is a function of the text and the seed alone: no machine, library version or neighbour in a batch has a part in it.
Shape legend: D documents, S shingles, K hashes, N bands.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmray.data import kernels
from llmray.data.banding import Banding
from llmray.data.folding import NOTHING, folding
from llmray.data.normalize import word_text
from llmray.data.utf8 import Texts, fixed, utf8
from llmray.errors import ConfigError

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_MAX_SIZE = 100
_HASHES_AT_ONCE = 32
_TEXTS_AT_ONCE = 512
"""Texts that are encoded before they are read: no more than a cache holds."""
_NOT_ASCII = 0x80


@dataclass(frozen=True, kw_only=True, slots=True)
class Shingling:
    """What documents are compared by."""

    unit: Literal["word", "character"] = "word"
    """Words; or characters, for which a space stands between words, and none in scripts that have none."""
    size: int = 5
    """Words or characters in a shingle."""

    def __post_init__(self) -> None:
        if self.unit not in ("word", "character"):
            raise ConfigError(f"shingling.unit ({self.unit!r}) must be 'word' or 'character'")
        if not 1 <= self.size <= _MAX_SIZE:
            raise ConfigError(f"shingling.size ({self.size}) must be from 1 to {_MAX_SIZE}: try 5")


WORDS = Shingling(size=1)
"""Single words."""


def sketch(texts: Texts, shingling: Shingling, banding: Banding, seed: int) -> tuple[U64, I64]:
    """MinHash buckets of each text.

    Returns:
        bands_DN: a 64-bit name of a bucket for each band; buckets of different bands never meet. Zeros where a text has
            no shingles: such a text is like nothing.
        num_shingles_D: shingles as they come, repeats and all.
    """
    bands_DN = np.zeros((len(texts), banding.num_bands), np.uint64)
    num_shingles_D = np.zeros(len(texts), np.int64)
    multipliers_K = _multipliers(banding.num_hashes, seed)
    for low in range(0, len(texts), _TEXTS_AT_ONCE):
        part = slice(low, low + _TEXTS_AT_ONCE)
        kernels.sketch(
            *_inputs(texts[part], shingling),
            multipliers_K,
            banding.rows_per_band,
            bands_DN[part],
            num_shingles_D[part],
        )
    return bands_DN, num_shingles_D


def shingle_sets(texts: Texts, shingling: Shingling) -> tuple[U64, I64]:
    """Distinct shingles of each text, for exact comparison.

    Returns:
        shingles_S: hashes, sorted within each text, one text after another.
        offsets_D1: text d has `shingles_S[offsets_D1[d]:offsets_D1[d + 1]]`.
    """
    return _shingles(texts, shingling, distinct=True)


def shingle_lists(texts: Texts, shingling: Shingling) -> tuple[U64, I64]:
    """The same as they come, repeats and all: for a size of 1, the words of each text."""
    return _shingles(texts, shingling, distinct=False)


def _shingles(texts: Texts, shingling: Shingling, *, distinct: bool) -> tuple[U64, I64]:
    offsets_D1 = np.zeros(len(texts) + 1, np.int64)
    shingles_S = kernels.shingles(*_inputs(texts, shingling), distinct, offsets_D1[1:])
    return shingles_S, offsets_D1


def _multipliers(num_hashes: int, seed: int) -> NDArray[np.uint32]:
    """c_k: the high half of the k-th number of splitmix64 from a state that the seed gives; filled up with repeats."""
    state = mix_all(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
    numbers = mix_all(state + kernels.ODD * np.arange(1, num_hashes + 1, dtype=np.uint64))
    filled = np.resize(numbers, -(-num_hashes // _HASHES_AT_ONCE) * _HASHES_AT_ONCE)
    return (filled >> np.uint64(32)).astype(np.uint32)


def mix_all(values: U64) -> U64:
    """The finaliser of splitmix64, a bijection that spreads every bit over all (`kernels.mix`), of each value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _inputs(
    texts: Texts, shingling: Shingling
) -> tuple[Bytes, I64, NDArray[np.bool_], NDArray[np.int32], Bytes, bool, int]:
    """What the kernels take: UTF-8, offsets, which texts are folded already, the table to fold the others by."""
    data, offsets_D1 = utf8(texts)
    plain_D = np.zeros(len(texts), bool)
    spaced = shingling.unit == "word"
    table = NOTHING
    if len(used := data[offsets_D1[0] : offsets_D1[-1]]) and used.max() >= _NOT_ASCII:
        table = folding(spaced=spaced)
        hard = kernels.needs_python(data, offsets_D1, table.starts)
        if len(hard):
            data, offsets_D1 = _folded_by_python(data, offsets_D1, hard, spaced=spaced)
            plain_D[hard] = True
    return data, offsets_D1, plain_D, table.starts, table.data, not spaced, shingling.size


def _folded_by_python(data: Bytes, offsets_D1: I64, hard: I64, *, spaced: bool) -> tuple[Bytes, I64]:
    pieces, lengths_D, done = [], np.diff(offsets_D1), int(offsets_D1[0])
    for document in hard.tolist():
        begin, end = int(offsets_D1[document]), int(offsets_D1[document + 1])
        text = data[begin:end].tobytes().decode("utf-8", "surrogatepass")
        encoded = word_text(text, spaced=spaced).encode("utf-8", "surrogatepass")
        pieces += [data[done:begin], np.frombuffer(encoded, np.uint8)]
        lengths_D[document], done = len(encoded), end
    pieces.append(data[done : int(offsets_D1[-1])])
    return fixed(np.concatenate(pieces)), np.concatenate(([0], np.cumsum(lengths_D))).astype(np.int64)
