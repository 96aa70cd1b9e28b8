"""The normal form of exact repeats, compiled: one pass over the bytes of many texts, white space collapsed on the way.

A code point becomes what the table of `folding.normal_folding` says, in any company; a text with one that the table has
no entry for is left to `normalize.normalize`. The file stands alone, as `compiled` asks. Shape legend: D documents.
"""

# ruff: noqa: PLR0917 (numba passes arrays one by one)

import numpy as np
from numpy.typing import NDArray

from llmray.data.compiled import entry, inner

I64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Int = int | np.int64

_NOT_ASCII = 0x80
_BLANK = 0x20


@entry
def normal_forms(
    data: Bytes, offsets_D1: I64, ascii_256: Bytes, starts: NDArray[np.int32], folded: Bytes, room: Bytes
) -> I64:
    """Write the normal forms to `room`, one after another; the length of each, or -1 for a text that has none there.

    Args:
        data: UTF-8 of all texts.
        ascii_256: what each ASCII byte becomes.
        starts, folded: the table for other code points.
        room: a byte more than the longest result.
    """
    lengths_D = np.empty(len(offsets_D1) - 1, np.int64)
    begin: Int = 0
    for document in range(len(lengths_D)):
        text = data[offsets_D1[document] : offsets_D1[document + 1]]
        lengths_D[document] = _normal_form(text, ascii_256, starts, folded, room[begin:])
        begin += max(0, lengths_D[document])
    return lengths_D


@inner
def _normal_form(text: Bytes, ascii_256: Bytes, starts: NDArray[np.int32], folded: Bytes, room: Bytes) -> Int:
    at: Int = 0
    written: Int = 0
    blank = True  # A byte is always written; the next goes over it where it is a blank behind a blank or the beginning.
    while at < len(text):
        first = np.int64(text[at])
        if first < _NOT_ASCII:
            byte = ascii_256[first]
            room[written] = byte
            written += not (blank & (byte == _BLANK))
            blank = byte == _BLANK
            at += 1
            continue
        width = 4 if first >= 0xF0 else 3 if first >= 0xE0 else 2
        if first < 0xC0 or at + width > len(text):
            return -1
        point = first & (0x7F >> width)
        for place in range(at + 1, at + width):
            point = point << 6 | np.int64(text[place]) & 0x3F
        if point >= len(starts) - 1 or starts[point] == starts[point + 1]:
            return -1
        for place in range(starts[point], starts[point + 1]):
            byte = folded[place]
            room[written] = byte
            written += not (blank & (byte == _BLANK))
            blank = byte == _BLANK
        at += width
    return written - 1 if blank and written else written
