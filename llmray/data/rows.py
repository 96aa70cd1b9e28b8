"""A row: one text, one conversation or one preference, checked, with an id that is the digest of its content.

The same content has the same id wherever it came from, so two snapshots can be compared by row. A row that fits no
shape raises `RowError` with the reason; the reader quarantines it. Rejected: guessing at types (the text "001" stays
what it is, the number 1 is no text), and ids by position, which change when a line is inserted.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Shape = Literal["text", "messages", "preference"]
SHAPES: tuple[Shape, ...] = ("text", "messages", "preference")
FIELDS = frozenset({"text", "messages", "choices", "prompt", "chosen", "rejected", "question", "answer", "group"})
"""Fields that make a row; all others are ignored."""
ROLES = frozenset({"system", "user", "assistant", "tool"})


class RowError(ValueError):
    """Why a record is no row; never leaves the readers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Fields as in a snapshot; those of another shape are None."""

    shape: Shape
    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    """(role, content) of each turn."""
    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    choices: tuple[str, ...] | None = None
    """Answers to choose from; the last assistant turn is the right one."""
    group: str | None = None
    """Rows with one group fall on the same side of the split."""

    @property
    def id(self) -> str:
        """Hexadecimal SHA-256 of the content; the group is a label and no content."""
        content = [self.shape, self.text, self.messages, self.prompt, self.chosen, self.rejected, self.choices]
        return hashlib.sha256(orjson.dumps(content)).hexdigest()

    @property
    def kind(self) -> str:
        """What may be compared with what: the shape, and whether there are choices."""
        return "choice" if self.choices is not None else self.shape

    @property
    def answer(self) -> str:
        """What a model would learn to write: the text, the assistant's turns, or the chosen completion."""
        match self.shape:
            case "text":
                return self.text or ""
            case "messages":
                return "\n".join(content for role, content in self.messages or () if role == "assistant")
            case "preference":
                return self.chosen or ""

    @property
    def whole(self) -> str:
        """Everything in the row as one text, with what separates its parts kept apart from what is in them."""
        match self.shape:
            case "text":
                return self.text or ""
            case "messages":
                turns = "\x1e".join(f"{role}\x1f{content}" for role, content in self.messages or ())
                return "\x1d".join([turns, *(self.choices or ())])
            case "preference":
                return "\x1e".join([self.prompt or "", self.chosen or "", self.rejected or ""])


def parse_row(record: Any) -> Row:
    """Read a decoded record as the first shape that it has the fields of; fields nobody knows are ignored.

    Messages come before preferences, questions with answers, and text. A field that is null counts as absent.

    Raises:
        RowError: no shape fits, or a field has the wrong type; the text says which.
    """
    if not isinstance(record, Mapping):
        raise RowError(f"not an object: {_kind_of(record)}")
    fields = {key: value for key, value in record.items() if value is not None}
    group = _string(fields, "group") if "group" in fields else None
    if "messages" in fields:
        return _conversation(_turns(fields["messages"]), fields.get("choices"), group)
    if "chosen" in fields or "rejected" in fields:
        prompt, chosen, rejected = (_string(fields, name) for name in ("prompt", "chosen", "rejected"))
        return Row(shape="preference", prompt=prompt, chosen=chosen, rejected=rejected, group=group)
    if "question" in fields and "answer" in fields:
        turns = (("user", _string(fields, "question")), ("assistant", _string(fields, "answer")))
        return _conversation(turns, fields.get("choices"), group)
    if "text" in fields:
        return Row(shape="text", text=_string(fields, "text"), group=group)
    seen = ", ".join(sorted(map(str, fields))[:8]) or "no field"
    raise RowError(f"no text, messages, question and answer, or prompt, chosen and rejected: has {seen}")


def _conversation(turns: tuple[tuple[str, str], ...], choices: Any, group: str | None) -> Row:
    answers = [content for role, content in turns if role == "assistant"]
    if not answers:
        raise RowError("messages has no assistant turn")
    if choices is not None:
        choices = _choices(choices)
        if answers[-1] not in choices:
            raise RowError("choices does not contain the assistant's last turn")
    return Row(shape="messages", messages=turns, choices=choices, group=group)


def _turns(value: Any) -> tuple[tuple[str, str], ...]:
    if not _is_list(value) or not value:
        raise RowError(f"messages is {_kind_of(value)}, not a list of turns" if value else "messages is empty")
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, Mapping):
            raise RowError(f"turn {number} of messages is {_kind_of(turn)}, not an object with role and content")
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise RowError(f"turn {number} of messages has role {role!r}, not one of {', '.join(sorted(ROLES))}")
        if not isinstance(content, str):
            raise RowError(f"turn {number} of messages has content that is {_kind_of(content)}, not a string")
        turns.append((role, content))
    return tuple(turns)


def _choices(value: Any) -> tuple[str, ...]:
    if not _is_list(value) or not all(isinstance(item, str) for item in value):
        raise RowError("choices is not a list of strings")
    if len(value) < 2 or len(set(value)) < len(value):
        raise RowError("choices needs two or more answers, all different")
    return tuple(value)


def _string(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise RowError(f"{name} is {_kind_of(value)}, not a string" if name in fields else f"{name} is missing")
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    for types, name in _NAMES:
        if isinstance(value, types):
            return name
    return f"a {type(value).__name__}"


_NAMES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "a string"),
    (bytes, "bytes"),
    (Mapping, "an object"),
    (Sequence, "a list"),
)
