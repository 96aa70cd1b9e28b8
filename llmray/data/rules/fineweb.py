"""The rules of FineWeb: Penedo et al. 2024 (arXiv 2406.17557), section 3.6.

Three filters survived the paper's ablations: too few lines that end in punctuation (≤ 0.12), too many characters in
duplicated lines (≥ 0.1) and too many lines shorter than 30 characters (≥ 0.67); a value at the limit goes, so these
limits are exclusive. The released code has a tenth of the paper's share of duplicated characters (0.01) and a fourth
filter, line breaks per word (> 0.3), that the paper does not name; the paper's figure is the default here, and the
fourth is there. datatrove calls a line of exactly 30 characters short; by the paper's words it is not.

Lines count where something is in them and without white space at their ends. The rules judge documents, and pass over
conversations and preferences, whose lines are short by nature.
"""

from dataclasses import dataclass
from functools import partial

from llmray.data.rules.document import Document, of_documents, share
from llmray.data.rules.gopher import duplicate_line_characters
from llmray.data.rules.rule import Rule

_MARKS = (".", "!", "?", '"', "'", "”", "’", "…", "。", "！", "？", "」")


@dataclass(frozen=True, kw_only=True, slots=True)
class FineWeb:
    """Limits of FineWeb's rules, as in the paper."""

    min_punctuated_lines: float = 0.12
    """A share of lines that end with punctuation that is this small, or smaller, fails."""
    max_duplicate_line_characters: float = 0.1
    """A share of characters in lines that repeat an earlier one that is this large, or larger, fails."""
    max_short_lines: float = 0.67
    """A share of short lines that is this large, or larger, fails."""
    short_line_characters: int = 30
    """Fewest characters of a line that is not short."""
    max_newlines: float = 0.3
    """Most line breaks per word (released code only)."""


def rules(config: FineWeb) -> list[Rule]:
    """All of FineWeb's rules."""
    return [
        Rule(
            name="fineweb_line_punctuation",
            measure=punctuated_lines,
            low=config.min_punctuated_lines,
            exclusive=True,
            why="share of lines that end with punctuation",
        ),
        Rule(
            name="fineweb_duplicate_line_characters",
            measure=duplicate_line_characters,
            high=config.max_duplicate_line_characters,
            exclusive=True,
            why="share of characters in lines that repeat an earlier one",
        ),
        Rule(
            name="fineweb_short_lines",
            measure=partial(short_lines, min_characters=config.short_line_characters),
            high=config.max_short_lines,
            exclusive=True,
            why=f"share of lines shorter than {config.short_line_characters} characters",
        ),
        Rule(name="fineweb_newlines", measure=newlines, high=config.max_newlines, why="line breaks per word"),
    ]


@of_documents
def punctuated_lines(document: Document) -> float:
    """Share of lines that end with a full stop, exclamation mark, question mark or quotation mark."""
    return share((line.endswith(_MARKS) for line in document.lines), document.lines)


@of_documents
def short_lines(document: Document, min_characters: int) -> float:
    """Share of lines with fewer characters than that."""
    return share((len(line) < min_characters for line in document.lines), document.lines)


@of_documents
def newlines(document: Document) -> float:
    """Line breaks per word."""
    return document.text.count("\n") / max(1, len(document.words))


NAMES = tuple(rule.name for rule in rules(FineWeb()))
