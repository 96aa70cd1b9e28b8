"""The embedding engine: texts to vectors of length one, by a sentence-transformers model on this machine.

It is a Serve application of its own, with the same weights and pooling as the curation's embedder, so that a retrieval
index and a running service agree. Texts are embedded in one thread, one request at a time: two would share the core. Who leaves
in the middle leaves the thread busy, and the next one waits for it.
Rejected: batching over requests (padding changes the last bits, and short texts take a millisecond or two).

Shapes: N texts, D dimensions.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmray import storage
from llmray.sentences import SentenceEncoder, minilm_folder
from llmray.serve.engine import RequestRefusedError


@dataclass(frozen=True, slots=True)
class Embedded:
    """What an embedding request gives."""

    vectors_ND: NDArray[np.float32]
    tokens: int
    """Tokens of all texts."""


class Embedder(Protocol):
    async def embed(self, texts: Sequence[str]) -> Embedded:
        """One vector a text.

        Raises:
            RequestRefusedError: a text is longer than the model reads.
            UnavailableError: the engine is not there.
        """
        ...


def open_embedder(uri: str) -> "EmbeddingEngine":
    """The engine of a model: `minilm`, or a folder.

    Raises:
        ConfigError: it is no sentence-transformers model that is known here.
    """
    return EmbeddingEngine(SentenceEncoder(minilm_folder() if uri == "minilm" else storage.local_copy(uri)))


class EmbeddingEngine:
    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    async def embed(self, texts: Sequence[str]) -> Embedded:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, texts)

    def _embed(self, texts: Sequence[str]) -> Embedded:
        counts = [self._encoder.count(text) for text in texts]
        for number, count in enumerate(counts):
            if count > self._encoder.max_tokens:
                raise RequestRefusedError(
                    f"text {number} has {count} tokens and the model reads {self._encoder.max_tokens}: cut it",
                    "input",
                    "context_length_exceeded",
                )
        vectors_ND = self._encoder(texts)
        length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return Embedded((vectors_ND / np.maximum(length_N1, 1e-12)).astype(np.float32), sum(counts))
