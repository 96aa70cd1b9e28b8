"""Choose MinHash bands and rows from what a user can say: a threshold and a recall.

A pair of Jaccard similarity J shares at least one of b buckets of r hashes with probability 1 - (1 - J^r)^b (Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, 3.4.2). Given the wanted recall at the threshold, each r has its
smallest b; the fewest hashes win among those that leave unlike documents apart. Rejected: weighing false candidates
against missed pairs at the threshold, as datasketch does: candidates are verified, so a false one costs time and never
a document. What does cost is the background, the many pairs that share a phrase or two; hence the second condition.
"""

import math
from dataclasses import dataclass

from llmray.errors import ConfigError

_BACKGROUND = 0.25
"""Unlike documents are taken to be at most this fraction of the threshold alike."""
_BACKGROUND_RATE = 1 / 500
"""At most this share of pairs of unlike documents become candidates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Banding:
    num_bands: int
    """Buckets that each document falls into."""
    rows_per_band: int
    """Hashes that must agree for two documents to share a bucket."""

    @property
    def num_hashes(self) -> int:
        """Hashes a document needs."""
        return self.num_bands * self.rows_per_band

    def candidate_probability(self, jaccard: float) -> float:
        """Chance that a pair of this Jaccard similarity shares a bucket."""
        return 1.0 - (1.0 - jaccard**self.rows_per_band) ** self.num_bands


def choose_banding(*, threshold: float, recall: float, max_hashes: int = 256) -> Banding:
    """The banding with the fewest hashes that finds `recall` of the pairs at `threshold` and leaves unlike pairs apart.

    Raises:
        ConfigError: a value outside its range, or no banding of at most `max_hashes` hashes reaches that recall.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"dedup.threshold ({threshold}) must be above 0 and at most 1: try 0.8")
    if not 0 < recall < 1:
        raise ConfigError(f"dedup.recall ({recall}) must be between 0 and 1: try 0.99")
    reaching = [
        banding
        for rows in range(1, max_hashes + 1)
        if (banding := _smallest(rows, threshold, recall)) is not None and banding.num_hashes <= max_hashes
    ]
    if not reaching:
        raise ConfigError(
            f"dedup.recall ({recall}) cannot be reached at dedup.threshold ({threshold}) with {max_hashes} hashes: "
            "raise dedup.max_hashes or lower the recall"
        )
    apart = [banding for banding in reaching if _background(banding, threshold) <= _BACKGROUND_RATE]
    # With a low threshold nothing may keep the background apart: then the most selective banding is the best there is.
    return min(apart, key=lambda b: b.num_hashes) if apart else max(reaching, key=lambda b: b.rows_per_band)


def _smallest(rows: int, threshold: float, recall: float) -> Banding | None:
    in_one_band = threshold**rows
    if in_one_band >= 1.0:
        return Banding(num_bands=1, rows_per_band=rows)
    if in_one_band < 1e-9:
        return None
    bands = math.ceil(math.log(1.0 - recall) / math.log1p(-in_one_band))
    return Banding(num_bands=max(1, bands), rows_per_band=rows)


def _background(banding: Banding, threshold: float) -> float:
    return banding.candidate_probability(_BACKGROUND * threshold)
