"""Personal data and secrets: count them, put placeholders in their place, or remove the row.

A placeholder names the kind (`<EMAIL>`), the same for every value: what a model learns is that an address stands there.
Only where two answers to choose from would become one are values numbered (`<EMAIL_2>`), row by row in order of
appearance. Masking twice changes nothing more. Rejected: placeholders with a digest of the value, which let anyone who
guesses a value confirm it, and made-up values, which are somebody's.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from llmray.data.rows import Row
from llmray.data.rules import detectors
from llmray.data.rules.rule import Rule
from llmray.errors import ConfigError

Kind = Literal["private_key", "jwt", "api_key", "secret", "email", "iban", "card", "ip", "phone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds; where two would start at one place, the one that stands first here."""
_LOOSE = frozenset('<>(),"')


class Match(NamedTuple):
    """Something found: `text[start:end]`."""

    kind: Kind
    start: int
    end: int


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
    """What there is in a text, in order, none overlapping another.

    Where something touches what was found, that is hidden and the text looked at again: a telephone number that follows
    an address without a space shows only then, and masking twice would find it otherwise.
    """
    config = config or Personal()
    everything: list[Match] = []
    again = True
    while again and (found := _search(text, config)):
        apart = _apart(found)
        everything += apart
        again = len(apart) < len(found) or any(_touched(text, match) for match in apart)
        text = _replaced(text, apart, lambda match: "<".ljust(match.end - match.start - 1) + ">")
    return sorted(everything, key=lambda match: match.start)


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


def _search(text: str, config: Personal) -> list[Match]:
    found = [Match(kind, *span) for kind in KINDS if kind in config.kinds for span in _FINDERS[kind](text, config)]
    return sorted(found, key=lambda match: (match.start, KINDS.index(match.kind)))


def _apart(found: Sequence[Match]) -> list[Match]:
    apart: list[Match] = []
    for match in found:
        if not apart or match.start >= apart[-1].end:
            apart.append(match)
    return apart


def _touched(text: str, match: Match) -> bool:
    """Whether it stands next to anything but white space, a comma, a quotation mark or a bracket."""
    around = text[match.start - 1 : match.start] + text[match.end : match.end + 1]
    return any(not (character.isspace() or character in _LOOSE) for character in around)


def _replaced(text: str, found: Sequence[Match], by: Callable[[Match], str]) -> str:
    pieces, end = [], 0
    for match in found:
        pieces += [text[end : match.start], by(match)]
        end = match.end
    return "".join([*pieces, text[end:]])


def _masked(text: str, config: Personal, numbers: dict[Kind, dict[str, int]] | None) -> str:
    def placeholder(match: Match) -> str:
        seen = {} if numbers is None else numbers[match.kind]
        number = seen.setdefault(text[match.start : match.end], len(seen) + 1)
        return f"<{match.kind.upper()}>" if number == 1 else f"<{match.kind.upper()}_{number}>"

    return _replaced(text, find_personal(text, config), placeholder)


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


_FINDERS: dict[Kind, Callable[[str, Personal], Iterator[detectors.Span]]] = {
    "private_key": lambda text, _: detectors.private_keys(text),
    "jwt": lambda text, _: detectors.jwts(text),
    "api_key": lambda text, _: detectors.api_keys(text),
    "secret": lambda text, _: detectors.secrets(text),
    "email": lambda text, _: detectors.emails(text),
    "iban": lambda text, _: detectors.ibans(text),
    "card": lambda text, _: detectors.cards(text),
    "ip": lambda text, config: detectors.ip_addresses(text, public_only=config.public_ips_only),
    "phone": lambda text, config: detectors.phones(text, region=config.region),
}
