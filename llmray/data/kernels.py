"""Texts to shingles to MinHash buckets, compiled: one pass over a document while it lies in the first-level cache.

1. *Fold*: letters in lower case, the byte 0 for what is no part of a word. ASCII bytes fold by arithmetic, 64 at once;
   other code points by the table of `folding`; documents with one that has no entry there come in folded already.
2. *Words*: one bit a byte tells what is inside a word; the bits that differ from their neighbour are where words begin
   and end. So no branch depends on the text, where a loop over bytes mispredicts at the end of every word.
3. *Shingles*: a polynomial over n elements (hashes of words, or code points) rolls along, so n costs nothing.
4. *Minima* over K hashes. K is the inner loop, over numbers that lie side by side: it becomes vector code that keeps 4
   shingles in registers.

What the functions compute is stated in `minhash`, and as plain Python in the tests. All sums are modulo 2^64 and texts
are read as little-endian numbers (as is every machine that numba supports), so every machine finds the same numbers.
Shape legend: D documents, S shingles, K hashes, N bands.
"""

# ruff: noqa: PLR0917 (numba passes arrays one by one)

import numpy as np
from numpy.typing import NDArray

from llmray.data.compiled import affine32, count_ones, entry, inner, load64, trailing_zeros

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Int = int | np.int64

ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

_0, _1, _3, _7 = np.uint64(0), np.uint64(1), np.uint64(3), np.uint64(7)
_27, _30, _31, _32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_56, _63 = np.uint64(56), np.uint64(63)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
_HIGH_BITS = np.uint64(0x8080808080808080)
_GATHER = np.uint64(0x0102040810204080)
"""Times a word with only lowest bits of bytes set, this brings the eight bits together in the highest byte."""

_NOT_ASCII = 0x80
_EDGES = 4096
"""Edges of words that are collected before the words are hashed."""
_PAD = 96
"""Zero bytes behind a folded document: a block of 64, and the words that are read beyond it."""
_GROWTH = 3
"""Most bytes that a byte folds to (`folding`)."""
_LANES = 4
_CROWDED = 32
"""Hashes that begin with the same bits, from which on they may be far from where they belong."""


@entry
def needs_python(data: Bytes, offsets_D1: I64, starts: NDArray[np.int32]) -> I64:
    """Documents with a code point that the table of `folding` has no entry for."""
    found, num_found = np.empty(len(offsets_D1) - 1, np.int64), 0
    for document in range(len(offsets_D1) - 1):
        text = data[offsets_D1[document] : offsets_D1[document + 1]]
        at = _ascii_until(text, 0)
        while at < len(text):
            width, point = _decode(text, at)
            if width == 0 or point >= len(starts) - 1 or starts[point] == starts[point + 1]:
                found[num_found] = document
                num_found += 1
                break
            at = _ascii_until(text, at + width)
    return found[:num_found].copy()


@entry
def sketch(
    data: Bytes,
    offsets_D1: I64,
    plain_D: NDArray[np.bool_],
    starts: NDArray[np.int32],
    folded: Bytes,
    characters: bool,
    size: int,
    multipliers_K: NDArray[np.uint32],
    rows_per_band: int,
    bands_DN: U64,
    made_D: I64,
) -> None:
    """Names of buckets, where there are any, and numbers of shingles, written to the last two arguments.

    Args:
        data: UTF-8 of all texts.
        plain_D: texts that have been through `word_text`.
        starts, folded: the table of `folding`, which has an entry for whatever is in the other texts.
        characters: shingles of characters, not of words.
        size: elements in a shingle.
        multipliers_K: one a hash, filled up to a multiple of 32: the inner loop takes as many at once.
    """
    room, elements, edges = _scratch(offsets_D1, starts, characters)
    minima_K = np.empty(len(multipliers_K), np.uint32)
    power = _power(size)
    for document in range(len(plain_D)):
        text = data[offsets_D1[document] : offsets_D1[document + 1]]
        length = _fold(text, plain_D[document], starts, folded, room)
        made_D[document] = count = _shingles(room, length, characters, size, power, edges, elements)
        if count > 0:
            _minima(elements, count, multipliers_K, minima_K)
            _bands(minima_K, rows_per_band, bands_DN[document])


@entry
def shingles(
    data: Bytes,
    offsets_D1: I64,
    plain_D: NDArray[np.bool_],
    starts: NDArray[np.int32],
    folded: Bytes,
    characters: bool,
    size: int,
    distinct: bool,
    ends_D: I64,
) -> U64:
    """Shingles as they come, or distinct and sorted within each document; ends are written to the last argument."""
    room, elements, edges = _scratch(offsets_D1, starts, characters)
    spare = np.empty(len(elements), np.uint64)
    places = np.empty(2 * len(elements) + 2, np.int64)
    power = _power(size)
    found = np.empty(1 << 12, np.uint64)
    num_found: Int = 0
    for document in range(len(plain_D)):
        text = data[offsets_D1[document] : offsets_D1[document + 1]]
        length = _fold(text, plain_D[document], starts, folded, room)
        count = _shingles(room, length, characters, size, power, edges, elements)
        if distinct:
            count = _distinct(elements, count, spare, places)
        if num_found + count > len(found):
            grown = np.empty(2 * (num_found + count), np.uint64)
            grown[:num_found] = found[:num_found]
            found = grown
        found[num_found : num_found + count] = elements[:count]
        num_found += count
        ends_D[document] = num_found
    return found[:num_found].copy()


@inner
def mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection that spreads every bit over all."""
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@inner
def _power(size: int) -> np.uint64:
    power = _1
    for _ in range(size):
        power *= ODD
    return power


@inner
def _scratch(offsets_D1: I64, starts: NDArray[np.int32], characters: bool) -> tuple[Bytes, U64, I64]:
    """Room for a folded document, for its elements, and for edges of words."""
    longest = 0
    for document in range(len(offsets_D1) - 1):
        longest = max(longest, offsets_D1[document + 1] - offsets_D1[document])
    longest *= 1 if len(starts) == 1 else _GROWTH
    num_elements = longest if characters else longest >> 1
    return (
        np.empty(longest + _PAD, np.uint8),
        np.empty(num_elements + 1 + _LANES, np.uint64),
        np.empty(_EDGES + 2 * 64, np.int64),
    )


@inner
def _shingles(
    room: Bytes, length: Int, characters: bool, size: int, power: np.uint64, edges: I64, elements: U64
) -> Int:
    """Hashes of the shingles of a folded text as they come, in `elements`; how many."""
    room[length : length + _PAD] = 0
    count = _code_points(room, length, elements) if characters else _words(room, length, edges, elements)
    return _roll(elements, count, size, power)


@inner
def _fold(text: Bytes, plain: bool, starts: NDArray[np.int32], folded: Bytes, room: Bytes) -> Int:
    """Letters in lower case, the byte 0 for what is no part of a word; the number of bytes written."""
    if plain or _is_ascii(text):
        _fold_bytes(text, room)
        return len(text)
    at: Int = 0
    written: Int = 0
    while at < len(text):
        until = _ascii_until(text, at)
        _fold_bytes(text[at:until], room[written:])
        written += until - at
        at = until
        while at < len(text) and text[at] >= _NOT_ASCII:
            width, point = _decode(text, at)
            for place in range(starts[point], starts[point + 1]):
                room[written] = folded[place]
                written += 1
            at += width
    return written


@inner
def _ascii_until(text: Bytes, at: Int) -> Int:
    """Where the next byte above ASCII is; the end of the text where there is none."""
    while at + 8 <= len(text):
        high = load64(text, at) & _HIGH_BITS
        if high:
            return at + np.int64(trailing_zeros(high) >> _3)
        at += 8
    while at < len(text) and text[at] < _NOT_ASCII:
        at += 1
    return at


@inner
def _is_ascii(text: Bytes) -> np.bool_:
    seen = np.uint8(0)
    for byte in text:
        seen |= byte
    return seen < _NOT_ASCII


@inner
def _fold_bytes(text: Bytes, room: Bytes) -> None:
    """ASCII letters in lower case, 0 for what is no part of a word; bytes above ASCII stay."""
    for place in range(len(text)):
        byte = np.int32(text[place])
        low = byte | 0x20
        letter = (low >= 0x61) & (low <= 0x7A)
        inside = letter | ((byte >= 0x30) & (byte <= 0x39)) | (byte == 0x5F) | (byte >= 0x80)
        room[place] = np.uint8((byte | (np.int32(letter) << 5)) if inside else 0)


@inner
def _decode(text: Bytes, at: Int) -> tuple[int, Int]:
    """How many bytes the character at a place has, and its code point; (0, 0) for what is no UTF-8."""
    byte = np.int64(text[at])
    if byte < _NOT_ASCII:
        return 1, byte
    width = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2
    if byte < 0xC0 or at + width > len(text):
        return 0, 0
    point = byte & (0x7F >> width)
    for place in range(at + 1, at + width):
        point = point << 6 | np.int64(text[place]) & 0x3F
    return width, point


@inner
def _words(room: Bytes, length: Int, edges: I64, words: U64) -> Int:
    """Hashes of the words of a folded text; how many."""
    num_edges: Int = 0
    num_words: Int = 0
    before = _0
    num_blocks = (length >> 6) + 1
    for block in range(num_blocks):
        inside = _0
        for eight in range(8):
            letters = load64(room, (block << 6) + (eight << 3))
            # The high bit of each byte that is not 0, whatever its neighbours are.
            letters = (((letters & _LOW_BITS) + _LOW_BITS) | letters) & _HIGH_BITS
            inside |= (((letters >> _7) * _GATHER) >> _56) << np.uint64(8 * eight)
        change = inside ^ ((inside << _1) | before)
        before = inside >> _63
        at: Int = num_edges
        num_edges += np.int64(count_ones(change))
        while at < num_edges:
            for step in range(8):  # Eight at once, some for nothing: the end of the loop is then guessed right.
                edges[at + step] = (block << 6) + np.int64(trailing_zeros(change))
                change &= change - _1
            at += 8
        if num_edges >= _EDGES or block == num_blocks - 1:
            for word in range(num_edges >> 1):
                words[num_words + word] = _word(room, edges[2 * word], edges[2 * word + 1])
            num_words += num_edges >> 1
            if num_edges & 1:
                edges[0] = edges[num_edges - 1]
            num_edges = num_edges & 1
    return num_words


@inner
def _word(room: Bytes, at: int, end: int) -> np.uint64:
    """Hash of a word: its bytes, eight at a time as a number, mixed into what came before; at first its length."""
    value = np.uint64(end - at) * ODD
    while end - at > 8:
        value = mix(value ^ load64(room, at))
        at += 8
    return mix(value ^ (load64(room, at) & (_ALL >> np.uint64(64 - 8 * (end - at)))))


@inner
def _code_points(room: Bytes, length: Int, points: U64) -> int:
    """Code points of the words of a folded text, one space between words; how many."""
    count, at = 0, 0
    while at < length:
        if room[at] == 0:
            at += 1
            continue
        if at > 0 and room[at - 1] == 0 and count > 0:
            points[count] = np.uint64(0x20)
            count += 1
        width, point = _decode(room, at)
        points[count] = np.uint64(point)
        count += 1
        at += max(width, 1)
    return count


@inner
def _roll(elements: U64, count: Int, size: int, power: np.uint64) -> Int:
    """Elements to hashes of their n-grams, in place; how many. `power` is ODD to the power of `size`."""
    if count == 0:
        return 0
    first = min(count, size)
    value = _0
    for place in range(first):
        value = value * ODD + elements[place]
    salt = np.uint64(first) * _MIX_1
    leaving = elements[0]
    elements[0] = mix(value + salt)
    for place in range(first, count):
        value = value * ODD + (elements[place] - leaving * power)
        at = place - size + 1
        leaving = elements[at]
        elements[at] = mix(value + salt)
    return count - first + 1


@inner
def _minima(shingles: U64, count: Int, multipliers_K: NDArray[np.uint32], minima_K: NDArray[np.uint32]) -> None:
    """The least of low + multiplier · high (mod 2^32) over all shingles, where low and high are a shingle's halves."""
    minima_K[:] = np.uint32(0xFFFFFFFF)
    while count % _LANES:
        shingles[count] = shingles[count - 1]
        count += 1
    for at in range(0, count, _LANES):
        low_0, high_0 = np.uint32(shingles[at]), np.uint32(shingles[at] >> _32)
        low_1, high_1 = np.uint32(shingles[at + 1]), np.uint32(shingles[at + 1] >> _32)
        low_2, high_2 = np.uint32(shingles[at + 2]), np.uint32(shingles[at + 2] >> _32)
        low_3, high_3 = np.uint32(shingles[at + 3]), np.uint32(shingles[at + 3] >> _32)
        for k in range(len(multipliers_K)):
            one = min(affine32(low_0, multipliers_K[k], high_0), affine32(low_1, multipliers_K[k], high_1))
            two = min(affine32(low_2, multipliers_K[k], high_2), affine32(low_3, multipliers_K[k], high_3))
            minima_K[k] = min(minima_K[k], one, two)


@inner
def _bands(minima_K: NDArray[np.uint32], rows_per_band: int, bands_N: U64) -> None:
    for band in range(len(bands_N)):
        value = mix(np.uint64(band + 1))
        for row in range(band * rows_per_band, (band + 1) * rows_per_band):
            value = mix(value * ODD + np.uint64(minima_K[row]))
        bands_N[band] = value


@inner
def _distinct(values: U64, count: Int, spare: U64, places: I64) -> Int:
    """Sort hashes and leave out repeats, in place; how many are left.

    Hashes are evenly spread, so their highest bits say nearly where they belong, and the rest is a few steps each; only
    a text that says two things a thousand times each needs the wider gaps of Shell's sort.
    """
    if count == 0:
        return 0
    bits = 1
    while (1 << bits) < count:
        bits += 1
    shift = np.uint64(64 - bits)
    places[: (1 << bits) + 1] = 0
    for at in range(count):
        places[np.int64(values[at] >> shift) + 1] += 1
    most = 0
    for bucket in range(1 << bits):
        most = max(most, places[bucket + 1])
        places[bucket + 1] += places[bucket]
    for at in range(count):
        first_bits = np.int64(values[at] >> shift)
        spare[places[first_bits]] = values[at]
        places[first_bits] += 1
    gap = count >> 1 if most > _CROWDED else 1
    while gap:
        for at in range(gap, count):
            value = spare[at]
            place: Int = at
            while place >= gap and spare[place - gap] > value:
                spare[place] = spare[place - gap]
                place -= gap
            spare[place] = value
        gap = 1 if gap == 2 else gap * 5 // 11
    left = 0
    for at in range(count):
        if at == 0 or spare[at] != spare[at - 1]:
            values[left] = spare[at]
            left += 1
    return left
