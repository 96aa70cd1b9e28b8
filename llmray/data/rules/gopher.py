"""The rules of Gopher: Rae et al. 2021 (arXiv 2112.11446), appendix A1.1 and table A1.

They judge documents and pass over conversations and preferences: a worked answer to a word problem ends in "#### 72",
and the symbol rule would remove two such rows in five for nothing. The paper leaves details open; here words are what
stands between white space, lines and paragraphs count where something is in them, and shares of characters are shares
of the characters of words (n-grams) or of lines or paragraphs, so that indentation never counts. The n-gram rules
apply from 50 words on, the paper's own minimum, since every short text repeats itself.

A part is a duplicate where it repeats an earlier one: the first copy is what one would keep. All words that lie in
some repeated n-gram count, once each. datatrove 0.10 differs in four ways: its words are tokens of a linguistic
tokeniser, shares of characters are of the whole text, the n-grams of one repeated passage are counted greedily without
overlap (10 words of a passage of 13 for 5-grams, where 13 are counted here), and stop words count by occurrence, so
that "the the" passes; the paper asks for two different ones.
"""

import re
import string
from dataclasses import dataclass
from functools import partial

from llmray.data.rules.document import Document, duplicates, of_documents, share
from llmray.data.rules.rule import Rule
from llmray.errors import ConfigError

_ELLIPSES = ("...", "…")
_BULLET = re.compile(r"[•‣⁃◦▪▫■□●○◆·]|[-*+–—]\s")
_EDGES = string.punctuation + "“”‘’«»…–—"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gopher:
    """Limits of Gopher's rules, as published."""

    min_words: int = 50
    """Fewest words of a document."""
    max_words: int = 100_000
    """Most words of a document."""
    min_mean_word_length: float = 3.0
    """Smallest mean length of a word, in characters."""
    max_mean_word_length: float = 10.0
    """Largest mean length of a word, in characters."""
    max_symbol_ratio: float = 0.1
    """Most hash signs, and most ellipses, per word."""
    max_bullet_lines: float = 0.9
    """Largest share of lines that start with a bullet."""
    max_ellipsis_lines: float = 0.3
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: float = 0.8
    """Smallest share of words with a letter in them."""
    min_stop_words: int = 2
    """Fewest different stop words."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words that prose can hardly do without, in lower case."""
    max_duplicate_lines: float = 0.3
    """Largest share of lines that repeat an earlier one."""
    max_duplicate_paragraphs: float = 0.3
    """Largest share of paragraphs that repeat an earlier one."""
    max_duplicate_line_characters: float = 0.2
    """Largest share of characters in lines that repeat an earlier one."""
    max_duplicate_paragraph_characters: float = 0.2
    """Largest share of characters in paragraphs that repeat an earlier one."""
    max_top_2gram: float = 0.2
    """Largest share of characters in the commonest two words in a row."""
    max_top_3gram: float = 0.18
    """The same for three words."""
    max_top_4gram: float = 0.16
    """The same for four words."""
    max_duplicate_5gram: float = 0.15
    """Largest share of characters in five words in a row that repeat earlier ones."""
    max_duplicate_6gram: float = 0.14
    """The same for six words."""
    max_duplicate_7gram: float = 0.13
    """The same for seven words."""
    max_duplicate_8gram: float = 0.12
    """The same for eight words."""
    max_duplicate_9gram: float = 0.11
    """The same for nine words."""
    max_duplicate_10gram: float = 0.1
    """The same for ten words."""
    min_ngram_words: int = 50
    """Fewest words of a document whose n-grams are measured."""

    def __post_init__(self) -> None:
        for what in ("words", "mean_word_length"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if not 0 <= low <= high:
                raise ConfigError(
                    f"gopher.min_{what} ({low}) must be at least 0 and at most gopher.max_{what} ({high})"
                )
        if any(word != word.lower() for word in self.stop_words):
            raise ConfigError("gopher.stop_words must be in lower case")


def quality_rules(config: Gopher) -> list[Rule]:
    """Appendix A1.1: what does not look like prose."""
    stops = partial(stop_words, among=frozenset(config.stop_words))
    return [
        Rule(name="gopher_word_count", measure=word_count, low=config.min_words, high=config.max_words, why="words"),
        Rule(
            name="gopher_mean_word_length",
            measure=mean_word_length,
            low=config.min_mean_word_length,
            high=config.max_mean_word_length,
            why="characters of a word, on average",
        ),
        Rule(
            name="gopher_symbol_ratio",
            measure=symbol_ratio,
            high=config.max_symbol_ratio,
            why="hash signs or ellipses per word",
        ),
        Rule(
            name="gopher_bullet_lines",
            measure=bullet_lines,
            high=config.max_bullet_lines,
            why="share of lines that start with a bullet",
        ),
        Rule(
            name="gopher_ellipsis_lines",
            measure=ellipsis_lines,
            high=config.max_ellipsis_lines,
            why="share of lines that end with an ellipsis",
        ),
        Rule(
            name="gopher_alphabetic_words",
            measure=alphabetic_words,
            low=config.min_alphabetic_words,
            why="share of words with a letter",
        ),
        Rule(name="gopher_stop_words", measure=stops, low=config.min_stop_words, why="different stop words"),
    ]


def repetition_rules(config: Gopher) -> list[Rule]:
    """Table A1: what repeats itself."""
    lines = [
        Rule(
            name=f"gopher_{what}",
            measure=measure,
            high=getattr(config, f"max_{what}"),
            why=f"share of {of} that repeat an earlier one",
        )
        for what, measure, of in (
            ("duplicate_lines", duplicate_lines, "lines"),
            ("duplicate_paragraphs", duplicate_paragraphs, "paragraphs"),
            ("duplicate_line_characters", duplicate_line_characters, "characters in lines"),
            ("duplicate_paragraph_characters", duplicate_paragraph_characters, "characters in paragraphs"),
        )
    ]
    tops = [
        Rule(
            name=f"gopher_top_{size}gram",
            measure=partial(top_ngram, size=size, min_words=config.min_ngram_words),
            high=getattr(config, f"max_top_{size}gram"),
            why=f"share of characters in the commonest {size} words",
        )
        for size in (2, 3, 4)
    ]
    repeats = [
        Rule(
            name=f"gopher_duplicate_{size}gram",
            measure=partial(duplicate_ngrams, size=size, min_words=config.min_ngram_words),
            high=getattr(config, f"max_duplicate_{size}gram"),
            why=f"share of characters in {size} words that came before",
        )
        for size in range(5, 11)
    ]
    return lines + tops + repeats


@of_documents
def word_count(document: Document) -> float:
    """Words of a document."""
    return len(document.words)


@of_documents
def mean_word_length(document: Document) -> float:
    """Characters of a word, on average; 0 where there is none."""
    return document.character_ends[-1] / max(1, len(document.words))


@of_documents
def symbol_ratio(document: Document) -> float:
    """Hash signs, or ellipses, whichever are more, per word."""
    ellipses = sum(map(document.text.count, _ELLIPSES))
    return max(document.text.count("#"), ellipses) / max(1, len(document.words))


@of_documents
def bullet_lines(document: Document) -> float:
    """Share of lines that start with a bullet: a round or square dot, or a dash or star that white space follows."""
    return share(map(_BULLET.match, document.lines), document.lines)


@of_documents
def ellipsis_lines(document: Document) -> float:
    """Share of lines that end with three dots or the character for them."""
    return share((line.endswith(_ELLIPSES) for line in document.lines), document.lines)


@of_documents
def alphabetic_words(document: Document) -> float:
    """Share of words with a letter of any script; 0 where there are no words."""
    alphabetic = sum(
        len(places)
        for word, places in document.places.items()
        if word[0].isalpha() or word.isalpha() or any(map(str.isalpha, word))
    )
    return alphabetic / max(1, len(document.words))


@of_documents
def stop_words(document: Document, among: frozenset[str]) -> float:
    """How many different ones of some words are in the text, whatever their case and punctuation."""
    words = set(document.lowered.split())
    missing = among - words
    if not missing:
        return len(among)
    return len(among) - len(missing.difference(word.strip(_EDGES) for word in words))


@of_documents
def duplicate_lines(document: Document) -> float:
    """Share of lines that repeat an earlier one."""
    return duplicates(document.lines)[0] / max(1, len(document.lines))


@of_documents
def duplicate_paragraphs(document: Document) -> float:
    """Share of paragraphs that repeat an earlier one."""
    return duplicates(document.paragraphs)[0] / max(1, len(document.paragraphs))


@of_documents
def duplicate_line_characters(document: Document) -> float:
    """Share of the characters of lines that are in lines that repeat an earlier one."""
    repeated = duplicates(document.lines)[1]
    return repeated / sum(map(len, document.lines)) if repeated else 0.0


@of_documents
def duplicate_paragraph_characters(document: Document) -> float:
    """Share of the characters of paragraphs that are in paragraphs that repeat an earlier one."""
    repeated = duplicates(document.paragraphs)[1]
    return repeated / sum(map(len, document.paragraphs)) if repeated else 0.0


@of_documents
def top_ngram(document: Document, size: int, min_words: int = 50) -> float | None:
    """Share of a document's characters in its commonest n-gram, where that comes up twice; None below `min_words`."""
    if len(document.words) < min_words:
        return None
    groups = document.repeated(size)
    if not groups:
        return 0.0
    ends = document.character_ends
    times = max(map(len, groups))
    # The longest of the commonest: ties must not depend on the order of words.
    longest = max(ends[places[0] + size] - ends[places[0]] for places in groups if len(places) == times)
    return min(1.0, times * longest / ends[-1])


@of_documents
def duplicate_ngrams(document: Document, size: int, min_words: int = 50) -> float | None:
    """Share of a document's characters in n-grams that repeat an earlier one, each once; None below `min_words`."""
    if len(document.words) < min_words:
        return None
    ends = document.character_ends
    covered = reached = 0
    for at in sorted(place for places in document.repeated(size) for place in places[1:]):
        covered += ends[at + size] - ends[max(at, reached)]
        reached = at + size
    return covered / ends[-1]


QUALITY = tuple(rule.name for rule in quality_rules(Gopher()))
REPETITION = tuple(rule.name for rule in repetition_rules(Gopher()))
