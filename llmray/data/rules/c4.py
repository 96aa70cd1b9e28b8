"""The rules of C4: Raffel et al. 2020 (JMLR 21, section 2.2), as rules for rows.

C4 drops pages with a placeholder or a curly bracket and pages with fewer than three sentences; from the others it
drops lines: those without a mark at the end, with fewer than five words, that mention JavaScript, or (in its released
code only, as are the phrases here) with a phrase of a cookie or privacy policy. A rule judges rows and changes none,
so each line rule measures the share of lines that would go, and its limit is ours: a page goes that would lose more
than half of its lines. Sentences are counted in the lines that would stay, as in C4. Where a text is meant to be
cleaned line by line, `kept_lines` says which lines stay.

Two wordings of the paper go round: three sentences and five words a line, as in the released code and here, and five
sentences and three words, as datatrove has by default. Sentences are counted by their ends (a mark that white
space follows), not by a trained tokeniser: "Mr. Fox ran." counts as two. The list of bad words is not part of this:
it is no definition but a file to fetch. They judge documents, and pass over conversations and preferences.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from llmray.data.rules.document import Document, of_documents, share
from llmray.data.rules.rule import Rule
from llmray.errors import ConfigError

_MARKS = (".", "?", "!", '"', "”")
_ELLIPSES = ("...", "…")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class C4:
    """Limits of C4's rules: those of pages as published, those of shares of lines our own."""

    min_sentences: int = 3
    """Fewest sentences in the lines that would stay."""
    min_line_words: int = 5
    """Fewest words of a line that would stay."""
    max_unterminated_lines: float = 0.5
    """Largest share of lines without a full stop, question mark, exclamation mark or end quotation mark at the end."""
    max_short_lines: float = 0.5
    """Largest share of lines with fewer than `min_line_words` words."""
    max_javascript_lines: float = 0.5
    """Largest share of lines that mention JavaScript."""
    max_policy_lines: float = 0.5
    """Largest share of lines with a phrase of a cookie or privacy policy."""
    policy_phrases: tuple[str, ...] = (
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    """Phrases of such policies, in lower case."""

    def __post_init__(self) -> None:
        if any(phrase != phrase.lower() for phrase in self.policy_phrases):
            raise ConfigError("c4.policy_phrases must be in lower case")


def rules(config: C4) -> list[Rule]:
    """All of C4's rules."""
    return [
        Rule(
            name="c4_terminal_punctuation",
            measure=unterminated_lines,
            high=config.max_unterminated_lines,
            why="share of lines with no mark at the end",
        ),
        Rule(
            name="c4_short_lines",
            measure=partial(short_lines, min_words=config.min_line_words),
            high=config.max_short_lines,
            why=f"share of lines with fewer than {config.min_line_words} words",
        ),
        Rule(
            name="c4_sentences",
            measure=partial(sentences, config=config),
            low=config.min_sentences,
            why="sentences in the lines that C4 would keep",
        ),
        Rule(
            name="c4_javascript",
            measure=partial(lines_with, phrases=("javascript",)),
            high=config.max_javascript_lines,
            why="share of lines that mention JavaScript",
        ),
        Rule(
            name="c4_policy",
            measure=partial(lines_with, phrases=config.policy_phrases),
            high=config.max_policy_lines,
            why="share of lines with a phrase of a policy",
        ),
        Rule(name="c4_lorem_ipsum", measure=lorem_ipsum, high=0, why="placeholder text"),
        Rule(name="c4_curly_bracket", measure=curly_brackets, high=0, why="curly brackets"),
    ]


@of_documents
def unterminated_lines(document: Document) -> float:
    """Share of lines that do not end in a mark; an ellipsis is none."""
    return share((not _terminated(line) for line in document.lines), document.lines)


@of_documents
def short_lines(document: Document, min_words: int) -> float:
    """Share of lines with fewer words than that."""
    return share((len(line.split()) < min_words for line in document.lines), document.lines)


@of_documents
def lines_with(document: Document, phrases: Sequence[str]) -> float:
    """Share of lines with one of some phrases, which are in lower case."""
    if not _has(document.lowered, phrases):
        return 0.0
    return share((_has(line.lower(), phrases) for line in document.lines), document.lines)


@of_documents
def sentences(document: Document, config: C4) -> float:
    """Sentences in the lines that C4 would keep."""
    return sum(max(1, len(_SENTENCE_END.findall(line))) for line in kept_lines(document, config))


@of_documents
def lorem_ipsum(document: Document) -> float:
    """How often the placeholder comes up."""
    return document.lowered.count("lorem ipsum")


@of_documents
def curly_brackets(document: Document) -> float:
    """How many opening and closing curly brackets there are."""
    return document.text.count("{") + document.text.count("}")


def kept_lines(document: Document, config: C4) -> list[str]:
    """The lines that C4 would keep of a page that it keeps."""
    unwanted = ("javascript", *config.policy_phrases)
    clean = not _has(document.lowered, unwanted)
    return [
        line
        for line in document.lines
        if _terminated(line)
        and len(line.split()) >= config.min_line_words
        and (clean or not _has(line.lower(), unwanted))
    ]


def _terminated(line: str) -> bool:
    return line.endswith(_MARKS) and not line.endswith(_ELLIPSES)


def _has(lowered: str, phrases: Sequence[str]) -> bool:
    return any(phrase in lowered for phrase in phrases)


NAMES = tuple(rule.name for rule in rules(C4()))
