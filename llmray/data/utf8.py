"""Texts as one run of UTF-8 bytes, as compiled code reads them.

Lone surrogates, which a Python string may hold, are encoded as if they were characters, so that every text has bytes.
Shape legend: D documents.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Texts: TypeAlias = "Sequence[str] | pa.StringArray | pa.LargeStringArray | pa.ChunkedArray"
"""Texts of documents, not normalised. An Arrow array is read where it lies; a null in it counts as empty."""


def utf8(texts: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """UTF-8 of all texts (`Texts`), and where each begins and ends in it [D + 1]."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if isinstance(texts, pa.Array):
        texts = texts.fill_null("") if texts.null_count else texts
        _, offsets, values = texts.buffers()
        wide = np.int64 if pa.types.is_large_string(texts.type) else np.int32
        offsets_D1 = np.frombuffer(offsets, wide)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
        return fixed(np.frombuffer(values or b"", np.uint8)), offsets_D1
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets_D1 = np.concatenate(([0], np.cumsum([len(text) for text in encoded], dtype=np.int64))).astype(np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets_D1


def fixed(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same bytes, not to be written: kernels are compiled for the one or the other."""
    data = data.view()
    data.flags.writeable = False
    return data
