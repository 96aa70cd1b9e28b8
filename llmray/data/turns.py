"""Turns of a conversation in the forms that are published: role and content, from and value, or one transcript.

Everything comes out as (role, content). Speakers are named by the list of ShareGPT and its descendants; a name that is
not in it is refused, since a turn on the wrong side trains the wrong words. A transcript is what Anthropic's HH-RLHF
publishes: "\\n\\nHuman: …\\n\\nAssistant: …". Rejected: looking for "Human:" inside a line, where people quote it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Turn = tuple[str, str]
"""(role, content)."""

ROLES = frozenset({"system", "user", "assistant", "tool"})
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
    "system": "system",
}
_MARKER = re.compile(r"\n\n(Human|Assistant):")


class RowError(ValueError):
    """Why a record is no row; never leaves the readers."""


def read_turns(value: Any, field: str) -> tuple[Turn, ...]:
    """A list of turns, or an object of equally long lists, as `datasets` keeps a sequence of objects.

    Raises:
        RowError: it is none; the text says which turn of `field`, and why.
    """
    if isinstance(value, Mapping):
        value = _transposed(value, field)
    if not is_list(value):
        raise RowError(f"{field} is {kind_of(value)}, not a list of turns")
    if not value:
        raise RowError(f"{field} is empty")
    return tuple(_turn(turn, f"turn {number} of {field}") for number, turn in enumerate(value, 1))


def read_transcript(text: str) -> tuple[Turn, ...] | None:
    """The turns of "\\n\\nHuman: …\\n\\nAssistant: …", without white space at their ends; None for other texts."""
    before, *parts = _MARKER.split("\n\n" + text.lstrip("\n"))
    if before.strip() or not parts or parts[0] != "Human":
        return None
    return tuple(
        ("user" if speaker == "Human" else "assistant", content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    )


def prompt_text(turns: Sequence[Turn]) -> str:
    """The turns before an answer as one text: the last question, and before it each earlier turn under its role.

    Raises:
        RowError: the last turn is not the user's.
    """
    if not turns or turns[-1][0] != "user":
        ends = f"ends with a turn of {turns[-1][0]}" if turns else "is empty"
        raise RowError(f"the prompt {ends}, not with what the user says")
    *earlier, (_, question) = turns
    return "".join(f"{role.capitalize()}:\n{content}\n\n" for role, content in earlier) + question


def is_list(value: Any) -> bool:
    """Whether a decoded value is a list."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def kind_of(value: Any) -> str:
    """What a decoded value is, in words."""
    if value is None:
        return "null"
    for types, name in _NAMES:
        if isinstance(value, types):
            return name
    return f"a {type(value).__name__}"


def _turn(turn: Any, where: str) -> Turn:
    shared = isinstance(turn, Mapping) and "role" not in turn and "from" in turn
    names = ("from", "value") if shared else ("role", "content")
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind_of(turn)}, not an object with role and content, or from and value")
    role, content = (turn.get(name) for name in names)
    known: Iterable[str] = _SPEAKERS if shared else ROLES
    if not isinstance(role, str) or role not in known:
        raise RowError(f"{where} has {names[0]} {role!r}, not one of {', '.join(sorted(known))}")
    if not isinstance(content, str):
        raise RowError(f"{where} has {names[1]} that is {kind_of(content)}, not a string")
    return (_SPEAKERS[role] if shared else role), content


def _transposed(value: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    columns = {name: column for name, column in value.items() if is_list(column)}
    if not columns:
        raise RowError(f"{field} is an object, not a list of turns")
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} of {len(column)}" for name, column in columns.items())
        raise RowError(f"{field} is an object of lists of different lengths: {lengths}")
    return [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=True)]


_NAMES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "a string"),
    (bytes, "bytes"),
    (Mapping, "an object"),
    (Sequence, "a list"),
)
