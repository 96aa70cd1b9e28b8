"""Which rules judge a row, by name or group, and where their limits lie.

A group stands for all of its rules (`gopher`, `gopher_quality`, `gopher_repetition`, `c4`, `fineweb`). The default
takes of the published rules only those that hold for short texts too: Gopher's fewest 50 words, or C4's three
sentences, would remove most rows of an instruction set.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from llmray.code_names import load_named
from llmray.data.rules import c4, fineweb, gopher, language, own, personal
from llmray.data.rules.c4 import C4
from llmray.data.rules.fineweb import FineWeb
from llmray.data.rules.gopher import Gopher
from llmray.data.rules.language import Language
from llmray.data.rules.personal import Personal
from llmray.data.rules.rule import Rule
from llmray.errors import ConfigError

GROUPS: dict[str, tuple[str, ...]] = {
    "gopher": (*gopher.QUALITY, *gopher.REPETITION),
    "gopher_quality": gopher.QUALITY,
    "gopher_repetition": gopher.REPETITION,
    "c4": c4.NAMES,
    "fineweb": fineweb.NAMES,
}
"""Names that stand for several rules."""
ACROSS = ("swapped_preference", "contradictory_preference")
"""Rules that compare preferences with one another, once all are known."""
BUILT_IN = frozenset(
    {*ACROSS, "language", "personal", *own.NAMES, *c4.NAMES, *fineweb.NAMES, *gopher.QUALITY, *gopher.REPETITION}
    | GROUPS.keys()
)
"""All names that `Outliers.rules` knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outliers:
    """Which rules judge a row, and where their limits lie."""

    rules: tuple[str, ...] = field(
        default=(
            "empty",
            "too_short",
            "short_answer",
            "machine_made_docstring",
            "gopher_symbol_ratio",
            "gopher_duplicate_lines",
            "gopher_top_2gram",
            "gopher_top_3gram",
            "gopher_top_4gram",
            "same_preference",
            *ACROSS,
        ),
        metadata={"code": True},
    )
    """Names of built-in rules and groups of them, and `module:attribute` for a rule of your own."""
    min_words: int = 3
    """Fewest words of a text row."""
    min_answer_words: int = 1
    """Fewest words that the assistant says in a conversation, or of a chosen completion."""
    gopher: Gopher = field(default_factory=Gopher)
    """Limits of Gopher's rules."""
    c4: C4 = field(default_factory=C4)
    """Limits of C4's rules."""
    fineweb: FineWeb = field(default_factory=FineWeb)
    """Limits of FineWeb's rules."""
    language: Language = field(default_factory=Language)
    """Which languages pass the rule `language`."""
    personal: Personal = field(default_factory=Personal)
    """What is done with personal data and secrets."""

    def __post_init__(self) -> None:
        if self.min_words < 0 or self.min_answer_words < 0:
            raise ConfigError("outliers.min_words and outliers.min_answer_words must be zero or more")
        for name in self.rules:
            if ":" not in name and name not in BUILT_IN:
                raise ConfigError(
                    f"outliers.rules: no rule is called {name!r}: choose among {', '.join(sorted(BUILT_IN))}, or write "
                    "module:attribute"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The rules by their own names: groups written out, each rule once, where it is named first."""
        written_out = (each for name in self.rules for each in GROUPS.get(name, (name,)))
        return tuple(dict.fromkeys(written_out))


def build(config: Outliers) -> list[Rule]:
    """The rules that judge a row by itself; those that compare rows come later.

    Raises:
        ConfigError: a rule of one's own cannot be loaded, or a package that a rule needs is not installed.
    """
    made = {rule.name: rule for rule in _simple(config)}
    # Made only where they are wanted: the one loads a model, the other the plans of all countries' telephone numbers.
    costly: dict[str, Callable[[], Rule]] = {
        "language": lambda: language.rule(config.language),
        "personal": lambda: personal.rule(config.personal),
    }
    return [
        load(name) if ":" in name else made[name] if name in made else costly[name]()
        for name in config.names
        if name not in ACROSS
    ]


def load(name: str) -> Rule:
    """The rule at `module:attribute`.

    Raises:
        ConfigError: it is not there, or is no `Rule`.
    """
    rule = load_named(name, "outliers.rules")
    if not isinstance(rule, Rule):
        raise ConfigError(f"outliers.rules: {name} is a {type(rule).__name__}: make it a llmray.data.rules.Rule")
    return rule


def _simple(config: Outliers) -> list[Rule]:
    return [
        *own.rules(config.min_words, config.min_answer_words),
        *gopher.quality_rules(config.gopher),
        *gopher.repetition_rules(config.gopher),
        *c4.rules(config.c4),
        *fineweb.rules(config.fineweb),
    ]
