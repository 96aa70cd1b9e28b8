"""What a user can say about curation: one frozen dataclass, and nothing else, decides what a snapshot holds.

Worker counts and block sizes are not here: they must not change a byte of the result.
"""

from dataclasses import dataclass, field
from typing import Literal

from llmray.data.banding import Banding, choose_banding
from llmray.data.minhash import Shingling
from llmray.data.normalize import Normalization
from llmray.data.rows import Row
from llmray.data.rules import Outliers
from llmray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Dedup:
    """What counts as a repeat."""

    exact: bool = True
    """Remove rows that say the same after normalisation."""
    normalization: Normalization = field(default_factory=Normalization)
    """Differences that do not matter to exact repeats."""
    near: bool = True
    """Remove rows whose words are nearly the same."""
    threshold: float = 0.8
    """Jaccard similarity of word shingles from which on two rows are near repeats."""
    recall: float = 0.99
    """Share of the pairs at the threshold that must be found."""
    max_hashes: int = 256
    """Most MinHash values a row may cost."""
    shingle_words: int = 5
    """Words in a shingle."""
    messages_by: Literal["response", "conversation"] = "response"
    """What makes conversations near repeats: what the assistant says, or all that is said."""

    def __post_init__(self) -> None:
        if self.shingle_words < 1:
            raise ConfigError(f"dedup.shingle_words ({self.shingle_words}) must be 1 or more: try 5")
        if self.max_hashes < 1:
            raise ConfigError(f"dedup.max_hashes ({self.max_hashes}) must be 1 or more: try 256")
        self.banding()

    def banding(self) -> Banding:
        """The bands and rows that reach the recall."""
        return choose_banding(threshold=self.threshold, recall=self.recall, max_hashes=self.max_hashes)

    def shingling(self) -> Shingling:
        """What rows are compared by."""
        return Shingling(size=self.shingle_words)

    def near_text(self, row: Row) -> str | None:
        """What of a row is compared for near repeats; None where only exact repeats count.

        Rows with choices differ by what they ask, in a word or two. An answer of fewer words than a shingle ("Yes.") is
        no sign that two conversations are one: those are compared with their questions.
        """
        if row.kind == "choice":
            return None
        if row.kind == "messages" and self.messages_by == "response" and len(row.answer.split()) >= self.shingle_words:
            return row.answer
        return row.whole


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """Settings of a curation."""

    dedup: Dedup = field(default_factory=Dedup)
    """Exact and near repeats."""
    outliers: Outliers = field(default_factory=Outliers)
    """Rules for single rows, and their limits."""
    source_priority: tuple[str, ...] = ()
    """Patterns of sources, best first (`*curated*`): among repeats of equal length the better source's copy stays."""
    heldout_fraction: float = 0.1
    """Share of groups that is held out, decided by the digest of the group, or of the row where it has none."""
    validation_fraction: float = 0.1
    """Share of groups kept for choices made before the last evaluation: early stopping, tuning, usual traffic."""
    rows_per_part: int = 20_000
    """Rows in each Parquet file of the snapshot."""
    examples: int = 3
    """Examples of each reason in the report."""
    seed: int = 0
    """Seed of the MinHash functions."""

    def __post_init__(self) -> None:
        if not 0 <= self.heldout_fraction < 1:
            raise ConfigError(f"heldout_fraction ({self.heldout_fraction}) must be at least 0 and below 1: try 0.1")
        if not 0 <= self.validation_fraction < 1 - self.heldout_fraction:
            raise ConfigError(
                f"validation_fraction ({self.validation_fraction}) and heldout_fraction ({self.heldout_fraction}) "
                f"must leave something to train on: try 0.1 each"
            )
        if self.rows_per_part < 1:
            raise ConfigError(f"rows_per_part ({self.rows_per_part}) must be 1 or more: try 20000")
        if self.examples < 0:
            raise ConfigError(f"examples ({self.examples}) must be zero or more")
