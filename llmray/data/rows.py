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

from llmray.data.turns import ROLES, RowError, Turn, is_list, kind_of, prompt_text, read_transcript, read_turns

__all__ = ["FIELDS", "ROLES", "SHAPES", "Row", "RowError", "Shape", "parse_row"]

Shape = Literal["text", "messages", "preference"]
SHAPES: tuple[Shape, ...] = ("text", "messages", "preference")
FIELDS = frozenset(
    {
        *("text", "messages", "conversations", "system", "choices", "group"),
        *("question", "answer", "instruction", "input", "output"),
        *("prompt", "chosen", "rejected"),
    }
)
"""Fields that make a row; all others are ignored."""

_NEXT_TURN, _NEXT_CHOICE = "\n\x02\n", "\n\x03\n"
"""Between parts of a row: a control character, which is no white space, so that "New | York" is not "New York |"."""


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
                turns = joined_turns(self.messages or ())
                return _NEXT_CHOICE.join([turns, *(self.choices or ())])
            case "preference":
                return _NEXT_TURN.join([self.prompt or "", self.chosen or "", self.rejected or ""])


def joined_turns(turns: Sequence[tuple[str, str]]) -> str:
    """Turns as one text, roles and contents kept apart."""
    return _NEXT_TURN.join(f"{role}\x01\n{content}" for role, content in turns)


def parse_row(record: Any) -> Row:
    """Read a decoded record as the first shape that it has the fields of; fields nobody knows are ignored.

    In this order: `messages`; `chosen` and `rejected`; `conversations` (ShareGPT); `question` and `answer`;
    `instruction`, `input` and `output` (Alpaca); `text`. A field that is null counts as absent.

    Raises:
        RowError: no shape fits, or a field has the wrong type; the text says which.
    """
    if not isinstance(record, Mapping):
        raise RowError(f"not an object: {kind_of(record)}")
    if len(record) == 1 and type(text := record.get("text")) is str:
        return Row(shape="text", text=text)  # What most corpora hold, without a walk through the shapes.
    fields = {key: value for key, value in record.items() if value is not None}
    group = _string(fields, "group") if "group" in fields else None
    if "messages" in fields:
        return _conversation(read_turns(fields["messages"], "messages"), fields, group)
    if "chosen" in fields or "rejected" in fields:
        return _preference(fields, group)
    if "conversations" in fields:
        return _conversation(_opened(fields, read_turns(fields["conversations"], "conversations")), fields, group)
    if "question" in fields and "answer" in fields:
        turns = (("user", _string(fields, "question")), ("assistant", _string(fields, "answer")))
        return _conversation(turns, fields, group)
    if "instruction" in fields and ("output" in fields or "text" not in fields):
        return _conversation(_opened(fields, _instruction(fields)), fields, group)
    if "text" in fields:
        return Row(shape="text", text=_string(fields, "text"), group=group)
    seen = ", ".join(name[:40] for name in sorted(map(str, fields))[:8]) or "no field"
    raise RowError(
        f"no text, messages, conversations, question and answer, instruction and output, or prompt, chosen and "
        f"rejected: has {seen}"
    )


def _conversation(turns: tuple[Turn, ...], fields: Mapping[str, Any], group: str | None) -> Row:
    answers = [content for role, content in turns if role == "assistant"]
    if not answers:
        name = "conversations" if "conversations" in fields and "messages" not in fields else "messages"
        raise RowError(f"{name} has no assistant turn")
    choices = _choices(fields["choices"]) if "choices" in fields else None
    if choices is not None and answers[-1] not in choices:
        raise RowError("choices does not contain the assistant's last turn")
    return Row(shape="messages", messages=turns, choices=choices, group=group)


def _opened(fields: Mapping[str, Any], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns after the system's, which ShareGPT and Alpaca rows may have in a field of its own."""
    system = _string(fields, "system") if "system" in fields else ""
    return turns if not system.strip() or turns[0][0] == "system" else (("system", system), *turns)


def _instruction(fields: Mapping[str, Any]) -> tuple[Turn, ...]:
    """An Alpaca row: what the instruction is applied to follows it, after an empty line."""
    asked, given = _string(fields, "instruction"), _string(fields, "input") if "input" in fields else ""
    return (("user", f"{asked}\n\n{given}" if given.strip() else asked), ("assistant", _string(fields, "output")))


def _preference(fields: Mapping[str, Any], group: str | None) -> Row:
    """Two answers to one prompt, which stands in a field of its own, or is what both sides begin with."""
    for name in ("chosen", "rejected"):
        if name not in fields:
            raise RowError(f"{name} is missing")
    name = "conversations" if "prompt" not in fields and "conversations" in fields else "prompt"
    prompt = fields.get(name)
    sides = fields["chosen"], fields["rejected"]
    if isinstance(prompt, str) and all(isinstance(side, str) for side in sides):
        return Row(shape="preference", prompt=prompt, chosen=sides[0], rejected=sides[1], group=group)
    asked = None if prompt is None else (("user", prompt),) if isinstance(prompt, str) else read_turns(prompt, name)
    chosen, rejected = (_side(fields, side, prompted=asked is not None) for side in ("chosen", "rejected"))
    shared = _num_shared(chosen, rejected)
    before = chosen[:shared]
    if asked is None and not before:
        raise RowError("prompt is missing, and chosen and rejected share no first turn")
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if len(turns) > shared + 1:
            raise RowError(f"{side} has {len(turns) - shared} turns after what it shares with the other: must be one")
        if turns[shared][0] != "assistant":
            raise RowError(f"{side} ends with a turn of {turns[shared][0]}, not of the assistant")
    if asked is not None and before and not _ends_with(before, asked, prompt):
        raise RowError(f"{name} is not what chosen and rejected begin with")
    text = prompt_text(before or asked or ())
    return Row(shape="preference", prompt=text, chosen=chosen[shared][1], rejected=rejected[shared][1], group=group)


def _side(fields: Mapping[str, Any], name: str, *, prompted: bool) -> tuple[Turn, ...]:
    """One side of a preference as turns; a bare text is an answer where there is a prompt, else a transcript."""
    value = fields[name]
    if isinstance(value, str):
        if prompted:
            return (("assistant", value),)
        if (turns := read_transcript(value)) is None:
            raise RowError(f'prompt is missing, and {name} is no transcript that begins with "\\n\\nHuman:"')
        return turns
    if isinstance(value, Mapping) and any(isinstance(value.get(key), str) for key in ("role", "from")):
        value = [value]
    if not is_list(value) and not isinstance(value, Mapping):
        raise RowError(f"{name} is {kind_of(value)}, not a string or a list of turns")
    return read_turns(value, name)


def _num_shared(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> int:
    """Turns that both begin with; the last turn of either is its answer and never counts."""
    most = min(len(chosen), len(rejected)) - 1
    return next((at for at in range(most) if chosen[at] != rejected[at]), most)


def _ends_with(before: Sequence[Turn], asked: Sequence[Turn], prompt: Any) -> bool:
    """Whether a prompt says what the shared turns say: all of it, its end, or one of the user's turns."""
    if isinstance(prompt, str):
        return any(role == "user" and content.strip() == prompt.strip() for role, content in before)
    return tuple(before[-len(asked) :]) == tuple(asked)


def _choices(value: Any) -> tuple[str, ...]:
    if not is_list(value) or not all(isinstance(item, str) for item in value):
        raise RowError("choices is not a list of strings")
    if len(value) < 2 or len(set(value)) < len(value):
        raise RowError("choices needs two or more answers, all different")
    return tuple(value)


def _string(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise RowError(f"{name} is {kind_of(value)}, not a string" if name in fields else f"{name} is missing")
    return value
