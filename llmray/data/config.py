"""What a user can say about curation: one frozen dataclass, and nothing else, decides what a snapshot holds.

Worker counts and block sizes are not here: they must not change a byte of the result.
"""

from dataclasses import dataclass, field
from typing import Literal

from llmray.data.banding import Banding, choose_banding
from llmray.data.boilerplate import Boilerplate
from llmray.data.contamination import Contamination
from llmray.data.features import Statistics
from llmray.data.likelihood import Unigram, WordOrder
from llmray.data.minhash import Shingling
from llmray.data.neighbours import EmbeddingOutliers
from llmray.data.normalize import Normalization
from llmray.data.readers.reading import Reading
from llmray.data.rows import Row, joined_turns
from llmray.data.rules import Outliers
from llmray.data.semantic import Semantic
from llmray.errors import ConfigError

CODE = {"code": True}
"""`module:attribute` in such a field counts in cache keys with its code."""
KEEP = ("quality", "length", "source")
"""What `keep` can name."""
SECOND_LOOKS = ("unigram", "word_order", "embedding_outlier")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dedup:
    """What counts as a repeat."""

    exact: bool = True
    """Remove rows that say the same after normalisation."""
    exact_by: Literal["prompt", "response", "conversation"] = "conversation"
    """What makes conversations and preferences exact repeats: what is asked, what is answered (or chosen), or all."""
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
    shingling: Shingling = field(default_factory=Shingling)
    """What rows are compared by."""
    messages_by: Literal["response", "conversation"] = "response"
    """What makes conversations near repeats: what the assistant says, or all that is said."""

    def __post_init__(self) -> None:
        if self.max_hashes < 1:
            raise ConfigError(f"dedup.max_hashes ({self.max_hashes}) must be 1 or more: try 256")
        self.banding()

    def banding(self) -> Banding:
        """The bands and rows that reach the recall."""
        return choose_banding(threshold=self.threshold, recall=self.recall, max_hashes=self.max_hashes)

    def exact_text(self, row: Row) -> str:
        """What of a row is compared for exact repeats; nothing to compare ("") stands for no sign, so all is compared.

        Rows with choices differ by their choices: those are always compared whole.
        """
        if row.kind in ("text", "choice") or self.exact_by == "conversation":
            return row.whole
        if self.exact_by == "response":
            return row.answer if row.answer.strip() else row.whole
        asked = row.prompt if row.shape == "preference" else _asked(row)
        return asked if asked and asked.strip() else row.whole

    def near_text(self, row: Row) -> str | None:
        """What of a row is compared for near repeats; None where only exact repeats count.

        Rows with choices differ by what they ask, in a word or two. An answer of fewer words than a shingle ("Yes.") is
        no sign that two conversations are one: those are compared with their questions.
        """
        if row.kind == "choice":
            return None
        if row.kind == "messages" and self.messages_by == "response" and self._fills_a_shingle(row.answer):
            return row.answer
        return row.whole

    def _fills_a_shingle(self, text: str) -> bool:
        return len(text.split() if self.shingling.unit == "word" else text) >= self.shingling.size


def _asked(row: Row) -> str:
    """The turns before the last answer, roles and contents kept apart as in `Row.whole`."""
    turns = row.messages or ()
    last = max((place for place, (role, _) in enumerate(turns) if role == "assistant"), default=len(turns))
    if not any(content.strip() for _, content in turns[:last]):
        return ""
    return joined_turns(turns[:last])


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """Settings of a curation."""

    reading: Reading = field(default_factory=Reading)
    """How files become rows, where their names do not say it all."""
    dedup: Dedup = field(default_factory=Dedup)
    """Exact and near repeats."""
    outliers: Outliers = field(default_factory=Outliers)
    """Rules for single rows, and their limits."""
    keep: tuple[str, ...] = ("quality", "length", "source")
    """Which of several copies stays, the first that tells them apart deciding: the one of higher quality, the longer,
    the one from the better source; then the smaller content id. Never the one that came first."""
    quality: str = field(default="", metadata=CODE)
    """`module:attribute` of a function of a row that gives its quality (more is better); none by default."""
    statistics: Statistics = field(default_factory=Statistics)
    """Measures of single texts whose usual values are learned from the data."""
    second_look: tuple[str, ...] = field(default=(), metadata=CODE)
    """Measures that must see all of the data first, with usual values learned too: unigram, word_order,
    embedding_outlier, or `module:attribute` of a `llmray.data.corpus.CorpusMeasure`."""
    unigram: Unigram = field(default_factory=Unigram)
    """How likely a text's words are."""
    word_order: WordOrder = field(default_factory=WordOrder)
    """How likely the order of its words is."""
    embedding_outlier: EmbeddingOutliers = field(default_factory=EmbeddingOutliers)
    """How far a text lies from all others."""
    boilerplate: Boilerplate = field(default_factory=Boilerplate)
    """Lines and paragraphs that many texts share."""
    semantic: Semantic = field(default_factory=Semantic)
    """Rows that mean the same, looked for after near repeats."""
    contamination: Contamination = field(default_factory=Contamination)
    """Evaluation sets that must not be in the data."""
    source_priority: tuple[str, ...] = ()
    """Patterns of sources, best first (`*curated*`), for `keep`."""
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
        if wrong := [one for one in self.keep if one not in KEEP]:
            raise ConfigError(f"keep has {wrong[0]!r}: choose among {', '.join(KEEP)}")
        if len(set(self.keep)) < len(self.keep):
            raise ConfigError(f"keep ({', '.join(self.keep)}) names one thing twice: name each once")
        if self.quality and ":" not in self.quality:
            raise ConfigError(f"quality ({self.quality}) must be module:attribute, such as my_rules:score")
        for name in self.second_look:
            if ":" not in name and name not in SECOND_LOOKS:
                raise ConfigError(
                    f"second_look: no measure is called {name!r}: choose among {', '.join(SECOND_LOOKS)}, or write "
                    "module:attribute"
                )
        if self.examples < 0:
            raise ConfigError(f"examples ({self.examples}) must be zero or more")
