"""Measures that need the whole corpus before they can judge one text: what they ask of the flow, and how they sample.

Each chunk is surveyed, the surveys are merged and fitted in one task, and each chunk is scored against the model. The
result may depend on the set of rows and on nothing else: not on how it was cut into chunks, nor on their order, nor on
the number of threads. Three habits see to that. Surveys hold integers, whose sums have no order. A sample is the
documents whose ids have the smallest digests, which is the same set however one arrives at it, and it is sorted by
digest before anything is computed with floats. And what is summed over a text is summed in integers of a fixed point.

A text that was surveyed must not vouch for itself: each measure leaves the text's own share out when it scores it.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmray.data.minhash import I64
from llmray.data.robust import Axis

SPARE = 6
"""Standard deviations by which a chunk's sample is taken larger than its share: too few in 1 of 10^9 corpora."""
Codes = NDArray[Any]


class CorpusMeasure(Protocol):
    """A measure of texts against their corpus; `Survey` and `Model` are its own, and both pickle."""

    @property
    def name(self) -> str:
        """The name of the rule."""

    @property
    def axis(self) -> Axis:
        """How limits are learned from the scores."""

    def survey(self, texts: Sequence[str], ids: Sequence[bytes], *, total: int | None = None) -> Any:
        """What the model needs to know of these texts.

        Args:
            texts: texts of a chunk, or of a part of one.
            ids: content ids; texts with one id are one document.
            total: different documents that are surveyed in all chunks, where known: then a chunk keeps no more than its
                share of the sample. The same for every chunk, or the result depends on the chunks.
        """

    def merge(self, surveys: Sequence[Any]) -> Any:
        """One survey of all; any order and any grouping give the same."""

    def fit(self, surveys: Sequence[Any]) -> Any:
        """The model."""

    def score(self, texts: Sequence[str], ids: Sequence[bytes], model: Any) -> NDArray[np.float64]:
        """A value for each text, from the text, its id and the model alone [N]; NaN where the measure does not apply."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """Documents of a sample, in the order of their keys, each with a run of codes."""

    keys: tuple[bytes, ...]
    """Digests of the ids, ascending, none twice [D]."""
    codes: Codes
    """Codes of all documents, one after another [C]."""
    offsets: I64
    """Document d has `codes[offsets[d]:offsets[d + 1]]` [D + 1]."""


def key_of(document_id: bytes) -> bytes:
    """The digest that decides whether a document is in the sample; unrelated to the digests that split a snapshot."""
    return hashlib.blake2b(document_id, digest_size=16, person=b"llmray sample").digest()


def sample(
    texts: Sequence[str],
    ids: Sequence[bytes],
    most: int,
    encode: Callable[[Sequence[str]], tuple[Codes, I64]],
    *,
    total: int | None = None,
) -> Sampled:
    """The chunk's documents that may belong to the corpus's sample of `most`.

    Args:
        texts: N texts.
        ids: their content ids.
        most: documents of the whole sample.
        encode: codes and offsets of some texts; only those in the sample are encoded.
        total: different documents of all chunks, where known: a chunk then leaves out documents that will not be in the
            sample, so that the surveys of a thousand chunks hold little more than one sample. With too large a number
            the sample is too small.
    """
    keys = [key_of(document_id) for document_id in ids]
    places = {key: place for place, key in enumerate(keys)}
    bound = _bound(most, total)
    chosen = sorted(key for key in places if bound is None or key < bound)[:most]
    codes, offsets = encode([texts[places[key]] for key in chosen])
    return Sampled(keys=tuple(chosen), codes=codes, offsets=offsets)


def merge_samples(samples: Sequence[Sampled], most: int) -> Sampled:
    """The `most` documents with the smallest keys."""
    assert samples, "there is nothing to merge"
    where = {key: (number, place) for number, part in enumerate(samples) for place, key in enumerate(part.keys)}
    chosen = sorted(where)[:most]
    runs = []
    for key in chosen:
        number, place = where[key]
        offsets = samples[number].offsets
        runs.append(samples[number].codes[offsets[place] : offsets[place + 1]])
    return Sampled(
        keys=tuple(chosen),
        codes=np.concatenate([samples[0].codes[:0], *runs]),
        offsets=np.concatenate(([0], np.cumsum([len(run) for run in runs]))).astype(np.int64),
    )


def places_of(keys: Sequence[bytes], ids: Sequence[bytes]) -> I64:
    """Where in the sample each document is; -1 where it is not in it."""
    place = {key: number for number, key in enumerate(keys)}
    return np.array([place.get(key_of(document_id), -1) for document_id in ids], np.int64)


def _bound(most: int, total: int | None) -> bytes | None:
    """The first key that no document of the sample can have."""
    if total is None or total <= most + SPARE * math.sqrt(most):
        return None
    return int((most + SPARE * math.sqrt(most)) / total * 2**128).to_bytes(16, "big")
