"""NF4 weights, packed as bitsandbytes packs them for CPUs, to bfloat16: numba, compiled at the first call and kept on disk.

A group of 32 bytes holds two neighbouring columns of 32 rows: byte `2 r + c` has row `r`'s column `c` in its low half
and row `r + 16`'s in its high half. Each row and block of columns has one scale, so sixteen products make a table, and the
rest is looking up. Rejected: bitsandbytes' own unpacking, which must bring the packing back into the order of the
checkpoint first (twenty times as long).
"""

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

log = logging.getLogger(__name__)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError as error:  # Numba's word for "no folder can be written".
        log.warning("the compiled kernel cannot be kept, so each process compiles it: set NUMBA_CACHE_DIR (%s)", error)
        return numba.njit(nogil=True)(function)


@_compiled
def unpack(packed: Any, scales: Any, code: Any, out: Any, pairs: int) -> None:
    """Fill `out` (N, K), bfloat16 as uint16, from `packed` (N/32, K/2, 32) and `scales` (K/(2 pairs), N), float32."""
    low = np.empty((16, 16), np.uint16)
    high = np.empty((16, 16), np.uint16)
    product = np.empty(1, np.float32)
    bits = product.view(np.uint32)
    for block in range(packed.shape[0]):
        top = block * 32
        for group in range(packed.shape[1] // pairs):
            for row in range(16):
                for index in range(16):
                    product[0] = code[index] * scales[group, top + row]
                    low[row, index] = (bits[0] + 0x7FFF + ((bits[0] >> 16) & 1)) >> 16  # rounds to even
                    product[0] = code[index] * scales[group, top + 16 + row]
                    high[row, index] = (bits[0] + 0x7FFF + ((bits[0] >> 16) & 1)) >> 16
            for row in range(16):
                for pair in range(group * pairs, (group + 1) * pairs):
                    first, second = packed[block, pair, 2 * row], packed[block, pair, 2 * row + 1]
                    out[top + row, 2 * pair] = low[row, first & 15]
                    out[top + row, 2 * pair + 1] = low[row, second & 15]
                    out[top + 16 + row, 2 * pair] = high[row, first >> 4]
                    out[top + 16 + row, 2 * pair + 1] = high[row, second >> 4]
