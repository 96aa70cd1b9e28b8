"""How people name a thing: `name@alias`, `name:version`, or a digest.

A reference is resolved to a digest where work is submitted or rendered, never inside a running replica: what runs is
immutable. Rejected: a bare `name` meaning "the latest": it hides which version ran, and every tracker that allows it
has users who served the wrong one.
"""

import re
from dataclasses import dataclass

from llmray.errors import InputError

_NAME = r"[a-z0-9][a-z0-9._-]{0,99}"
_BY_ALIAS = re.compile(rf"({_NAME})@({_NAME})")
_BY_VERSION = re.compile(rf"({_NAME}):([1-9][0-9]{{0,8}})")
_BY_DIGEST = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    name: str | None = None
    """Name of the dataset, model, prompt or index; None for a digest."""
    alias: str | None = None
    version: int | None = None
    digest: str | None = None
    """Hexadecimal digest, or its first 12 or more digits."""

    def __str__(self) -> str:
        if self.digest is not None:
            return self.digest
        return f"{self.name}@{self.alias}" if self.alias is not None else f"{self.name}:{self.version}"


def parse_reference(text: str) -> Reference:
    """Read a reference.

    Raises:
        InputError: the text has none of the three forms.
    """
    if match := _BY_ALIAS.fullmatch(text):
        return Reference(name=match[1], alias=match[2])
    if match := _BY_VERSION.fullmatch(text):
        return Reference(name=match[1], version=int(match[2]))
    if _BY_DIGEST.fullmatch(text):
        return Reference(digest=text)
    raise InputError(f"{text!r} is no reference: write name@alias (docs@latest), name:version (docs:3) or a digest")


def check_name(name: str) -> str:
    """Return `name` if it can be a dataset's, model's, prompt's or alias's name.

    Raises:
        InputError: other characters than lower-case letters, digits, dot, dash and underscore, or over 100 of them.
    """
    if not re.fullmatch(_NAME, name):
        raise InputError(
            f"{name!r} cannot be a name: use up to 100 lower-case letters, digits, dots, dashes, underscores"
        )
    return name
