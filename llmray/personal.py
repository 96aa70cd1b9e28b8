"""Find personal data and secrets in a text, and put placeholders in their place.

A placeholder names the kind (`<EMAIL>`), the same for every value, unless the caller numbers them. Used where rows are
cleaned (`llmray.data.rules.personal`) and where answers are logged (`llmray.serve.text_log`). Masking twice changes
nothing more. Rejected: placeholders with a digest of the value, which let anyone who guesses a value confirm it, and
made-up values, which are somebody's.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from llmray import detectors

Kind = Literal["private_key", "jwt", "api_key", "secret", "email", "iban", "card", "ip", "phone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds; where two would start at one place, the one that stands first here."""
_LOOSE = frozenset('<>(),"')


class Match(NamedTuple):
    """Something found: `text[start:end]`."""

    kind: Kind
    start: int
    end: int


def find(text: str, *, kinds: Sequence[Kind] = KINDS, region: str = "US", public_ips_only: bool = True) -> list[Match]:
    """What there is in a text, in order, none overlapping another.

    Where something touches what was found, that is hidden and the text looked at again: a telephone number that follows
    an address without a space shows only then, and masking twice would find it otherwise.

    Args:
        region: country (ISO 3166, two capitals) whose way of writing telephone numbers needs no country code.
        public_ips_only: whether addresses of private, local and documentation networks are let be.

    Raises:
        ConfigError: telephone numbers are looked for and `phonenumbers` is not installed.
    """
    everything: list[Match] = []
    again = True
    while again and (found := _search(text, kinds, region, public_ips_only)):
        apart = _apart(found)
        everything += apart
        again = len(apart) < len(found) or any(_touched(text, match) for match in apart)
        text = _replaced(text, apart, lambda match: "<".ljust(match.end - match.start - 1) + ">")
    return sorted(everything, key=lambda match: match.start)


def masked(text: str, found: Sequence[Match], numbers: dict[Kind, dict[str, int]] | None = None) -> str:
    """The text with placeholders where something was found.

    Args:
        numbers: by kind and value, kept from text to text: the second value of a kind is `<EMAIL_2>`; None numbers
            nothing.
    """

    def placeholder(match: Match) -> str:
        seen = {} if numbers is None else numbers[match.kind]
        number = seen.setdefault(text[match.start : match.end], len(seen) + 1)
        return f"<{match.kind.upper()}>" if number == 1 else f"<{match.kind.upper()}_{number}>"

    return _replaced(text, found, placeholder)


def _search(text: str, kinds: Sequence[Kind], region: str, public_ips_only: bool) -> list[Match]:
    found = [
        Match(kind, *span) for kind in KINDS if kind in kinds for span in _FINDERS[kind](text, region, public_ips_only)
    ]
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


_FINDERS: dict[Kind, Callable[[str, str, bool], Iterator[detectors.Span]]] = {
    "private_key": lambda text, _, __: detectors.private_keys(text),
    "jwt": lambda text, _, __: detectors.jwts(text),
    "api_key": lambda text, _, __: detectors.api_keys(text),
    "secret": lambda text, _, __: detectors.secrets(text),
    "email": lambda text, _, __: detectors.emails(text),
    "iban": lambda text, _, __: detectors.ibans(text),
    "card": lambda text, _, __: detectors.cards(text),
    "ip": lambda text, _, public_only: detectors.ip_addresses(text, public_only=public_only),
    "phone": lambda text, region, _: detectors.phones(text, region=region),
}
