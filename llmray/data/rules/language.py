"""In which language a row is written: py3langid, whose model comes with its wheel (BSD).

The value is the probability that the text is in one of the languages to keep, so that Norwegian taken for Danish is no
loss to somebody who keeps both. Only the beginning is looked at: on translated program messages of 39 languages, 60
texts each (which the model's makers may have trained on), 100 characters named 99.2% right and 300 99.9%, in 0.2 ms.
Short texts and those of figures are passed over, since a guess is all there is: of 40 characters one text in thirteen
is named wrong, and by the number of characters instead of letters 40 worked answers of GSM8K were no English. A
document's change of language after its beginning is not seen.

Rejected: pycld2, ten times faster and wrong more often on the same texts (96.2% and 99.2% right, and of 60 English texts
of 1,500 characters 9 lost); lingua, six times slower; fastText's models, which have to be downloaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmray.data.rows import Row
from llmray.data.rules.rule import Rule
from llmray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """Which languages pass."""

    keep: tuple[str, ...] = ("en",)
    """Languages to keep (ISO 639-1)."""
    min_confidence: float = 0.1
    """Smallest probability that a row is in one of them."""
    min_letters: int = 100
    """Fewest letters, in what is looked at, of a row whose language is measured."""
    max_characters: int = 300
    """Characters from the beginning that are looked at."""

    def __post_init__(self) -> None:
        if not self.keep:
            raise ConfigError("language.keep must name a language: try [en]")
        if not 0 < self.min_confidence <= 1:
            raise ConfigError(f"language.min_confidence ({self.min_confidence}) must be above 0 and at most 1: try 0.1")
        if not 0 < self.min_letters <= self.max_characters:
            raise ConfigError(
                f"language.min_letters ({self.min_letters}) must be above 0 and at most language.max_characters "
                f"({self.max_characters})"
            )


def rule(config: Language) -> Rule:
    """The rule for rows of every shape: what a model would learn to write is measured.

    Raises:
        ConfigError: py3langid is not installed, or does not know a language to keep.
    """
    unknown = [code for code in config.keep if code not in identifier().labels]
    if unknown:
        raise ConfigError(
            f"language.keep: {', '.join(unknown)} is not known: choose among {', '.join(sorted(identifier().labels))}"
        )
    return Rule(
        name="language",
        measure=_measure(config),
        low=config.min_confidence,
        why=f"probability that it is {' or '.join(config.keep)}",
    )


def probabilities(text: str) -> dict[str, float]:
    """How likely each language is, the likeliest first, rounded so that the last bits of an exponential do not count."""
    return {code: round(float(share), 6) for code, share in identifier().rank(text)}


@lru_cache(maxsize=1)
def identifier() -> Any:
    """The model, loaded once a process.

    A sum's last bits depend on the number of threads; in the model's 32 bits they reach the fifth digit of a
    probability. So what is looked up in its tables is widened to 64 bits, and not the tables, which would be 110 MB.

    Raises:
        ConfigError: py3langid is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError('the rule "language" needs py3langid: pip install "llmray[curate]"') from error
    published = LanguageIdentifier.from_model_file(MODEL_FILE)
    return LanguageIdentifier(
        _Widened(published.nb_ptc),
        published.nb_pc.astype(np.float64),
        published.nb_classes,
        published.tk_nextmove,
        published.tk_output,
        norm_probs=True,
        tk_row=published.tk_row,
    )


class _Widened:
    """A table that gives 64-bit rows."""

    def __init__(self, table: NDArray[np.floating[Any]]) -> None:
        self.table = table

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        return self.table[rows].astype(np.float64)


def _measure(config: Language) -> Callable[[Row], float | None]:
    def measure(row: Row) -> float | None:
        beginning = row.answer.strip()[: config.max_characters]
        if sum(map(str.isalpha, beginning)) < config.min_letters:
            return None
        found = probabilities(beginning)
        return sum(found[code] for code in config.keep)

    return measure
