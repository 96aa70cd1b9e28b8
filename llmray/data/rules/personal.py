"""Personal data and secrets: count them, put placeholders in their place, or remove the row.

What they are and how a placeholder looks is `llmray.personal`: what a model learns is that an address stands there.
Only where two answers to choose from would become one are values numbered (`<EMAIL_2>`), row by row in order of
appearance.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llmray import detectors, personal
from llmray.data.rows import Row
from llmray.data.rules.rule import Rule
from llmray.errors import ConfigError
from llmray.personal import KINDS, Kind, Match


@dataclass(frozen=True, kw_only=True, slots=True)
class Personal:
    """What counts as personal or secret, and what is done with it."""

    action: Literal["count", "mask", "remove"] = "count"
    """Only count matches, put placeholders in their place, or remove rows that have any."""
    kinds: tuple[Kind, ...] = KINDS
    """What is looked for."""
    region: str = "US"
    """Country (ISO 3166, two capitals) whose way of writing telephone numbers needs no country code."""
    public_ips_only: bool = True
    """Whether addresses of private, local and documentation networks are let be: they name nobody."""

    def __post_init__(self) -> None:
        if self.action not in ("count", "mask", "remove"):
            raise ConfigError(f"personal.action ({self.action}) must be count, mask or remove")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ConfigError(f"personal.kinds: {', '.join(unknown)}: choose among {', '.join(KINDS)}")
        if len(self.region) != 2 or not self.region.isalpha() or not self.region.isupper():
            raise ConfigError(f"personal.region ({self.region}) must be two capitals, as in US or DE")


def rule(config: Personal) -> Rule:
    """How many matches a row has; any is too many where rows are to be removed.

    Raises:
        ConfigError: telephone numbers are looked for and `phonenumbers` is not installed.
    """
    if "phone" in config.kinds:
        detectors.phone_library()
    return Rule(
        name="personal",
        measure=lambda row: sum(count(row, config).values()),
        high=0 if config.action == "remove" else float("inf"),
        why="personal data and secrets",
    )


def find_personal(text: str, config: Personal | None = None) -> list[Match]:
    """What there is in a text, in order, none overlapping another."""
    config = config or Personal()
    return personal.find(text, kinds=config.kinds, region=config.region, public_ips_only=config.public_ips_only)


def count(row: Row, config: Personal) -> Counter[str]:
    """Matches in all texts of a row, by kind."""
    return Counter(match.kind for text in _texts(row) for match in find_personal(text, config))


def mask(row: Row, config: Personal) -> tuple[Row, Counter[str]]:
    """The row with placeholders, and what they stand for by kind; the very row where nothing was found.

    Choices stay different from one another. The group is a label and stays as it is.
    """
    counts = count(row, config)
    if not counts:
        return row, counts
    masked = _rewritten(row, lambda text: _masked(text, config, None))
    if masked.choices is not None and len(set(masked.choices)) < len(masked.choices):
        numbers: dict[Kind, dict[str, int]] = {kind: {} for kind in KINDS}
        masked = _rewritten(row, lambda text: _masked(text, config, numbers))
    return masked, counts


def _masked(text: str, config: Personal, numbers: dict[Kind, dict[str, int]] | None) -> str:
    return personal.masked(text, find_personal(text, config), numbers)


def _texts(row: Row) -> Iterator[str]:
    yield from (part for part in (row.text, row.prompt, row.chosen, row.rejected) if part is not None)
    yield from (content for _, content in row.messages or ())
    yield from row.choices or ()


def _rewritten(row: Row, change: Callable[[str], str]) -> Row:
    def changed(text: str | None) -> str | None:
        return None if text is None else change(text)

    return replace(
        row,
        text=changed(row.text),
        prompt=changed(row.prompt),
        chosen=changed(row.chosen),
        rejected=changed(row.rejected),
        messages=row.messages and tuple((role, change(content)) for role, content in row.messages),
        choices=row.choices and tuple(map(change, row.choices)),
    )
