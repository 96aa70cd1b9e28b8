"""Read tool calls out of what a model writes, while it writes.

Templates teach models a few ways to write a call, and three cover most of them: `<tool_call>{…}</tool_call>` (Hermes,
Qwen), `[TOOL_CALLS]` before a list or before `name{…}` (Mistral), and bare JSON at the beginning of the answer (Llama 3,
whose `<|python_tag|>` the tokenizer usually drops; also what a schema forces). The way is seen in the text, so nobody
has to name a parser for a model. A call is given as soon as its JSON is whole; however the text is cut into pieces,
calls and remaining text are the same. What turns out to be no call of an offered function is given as the text that it
is. Rejected: streaming the arguments piece by piece (they would have to be taken back when the JSON breaks off), and
calling functions that nobody offered.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

_HERMES, _MISTRAL, _LLAMA = "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
_MARKS = (_HERMES, _MISTRAL, _LLAMA)
_HERMES_END = "</tool_call>"
_BARE = tuple(f'{bracket}{{"{key}"' for bracket in ("", "[") for key in ("name", "type", "arguments", "parameters"))
"""How a call without a mark begins, white space apart."""
_MISTRAL_NAME = re.compile(r"\s*([a-zA-Z0-9_.-]{1,64})(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str
    """A JSON object, as text."""


class ToolCallReader:
    def __init__(self, names: Collection[str]) -> None:
        """Read calls of the functions that were offered."""
        self._names = frozenset(names)
        self._held = ""
        """Text whose meaning is not known yet; inside a call it begins with its mark."""
        self._mark: str | None = None
        """The mark of the call that `_held` may be; empty for bare JSON; None outside of calls."""
        self._fresh = True
        """Whether only white space came since the beginning or the last call."""
        self._called = False
        self._close = ""
        """What may still close the last call."""
        self._tried = 0
        """Length of `_held` when it last was no whole JSON."""

    def push(self, text: str) -> list[str | Call]:
        """What is certain now: text and calls, in order."""
        self._held += text
        return self._read(last=False)

    def flush(self) -> list[str | Call]:
        """The rest, at the end of the answer."""
        return self._read(last=True)

    def _read(self, *, last: bool) -> list[str | Call]:
        said: list[str | Call] = []
        while self._held and self._step(said, last=last):
            pass
        return said

    def _step(self, said: list[str | Call], *, last: bool) -> bool:
        """Read a stretch; whether the next one can be read now."""
        if self._mark is not None:
            return self._inside(said, last=last)
        if self._close:
            return self._closing(last=last)
        if self._fresh:
            ahead = self._held.lstrip(" \t\r\n;" if self._called else None)
            if self._called:
                self._held = ahead
            if not ahead:
                return self._only_space(said, last=last)
            if not last and _MISTRAL.startswith(ahead):
                return False
            if ahead[0] in "{[" and not ahead.startswith(_MISTRAL):
                self._mark, self._tried = "", 0
                return True
        return self._outside(said, last=last)

    def _only_space(self, said: list[str | Call], *, last: bool) -> bool:
        if last and self._held:
            said.append(self._held)
            self._held = ""
        return False

    def _closing(self, *, last: bool) -> bool:
        """Skip what closes a call, if it is there."""
        ahead = self._held.lstrip()
        if not ahead.startswith(self._close) and self._close.startswith(ahead):
            self._held = "" if last else self._held
            return False
        self._held, self._close = ahead.removeprefix(self._close), ""
        return True

    def _outside(self, said: list[str | Call], *, last: bool) -> bool:
        """Read text up to the next mark."""
        found = [(at, mark) for mark in _MARKS if (at := self._held.find(mark)) >= 0]
        at, mark = min(found) if found else (len(self._held) - (0 if last else _begun_mark(self._held)), None)
        text = self._held[:at]
        if self._fresh and not text.strip():
            if mark is None:
                return False
        elif text:
            said.append(text)
            self._fresh = False
        self._held = self._held[at:]
        self._mark, self._tried = mark, 0
        return mark is not None

    def _inside(self, said: list[str | Call], *, last: bool) -> bool:
        """Read a call."""
        mark = self._mark
        assert mark is not None
        body = self._held[len(mark) :]
        if not _may_be_call(mark, body):
            return self._give_up(said)
        if not last and not any(bracket in self._held[self._tried :] for bracket in "}]"):
            self._tried = len(self._held)
            return False
        name = _MISTRAL_NAME.match(body) if mark == _MISTRAL else None
        start = name.end() if name else len(body) - len(body.lstrip())
        try:
            value, end = _DECODER.raw_decode(body, start)
        except (ValueError, RecursionError):
            self._tried = len(self._held)
            return self._give_up(said) if last else False
        calls = self._calls({"name": name[1], "arguments": value} if name else value)
        if not calls:
            return self._give_up(said)
        said.extend(calls)
        self._held, self._mark = body[end:], None
        self._fresh = self._called = True
        self._close = _HERMES_END if mark == _HERMES else ""
        return True

    def _give_up(self, said: list[str | Call]) -> bool:
        """It is no call: the mark is text like any other."""
        if self._mark:
            said.append(self._mark)
            self._held = self._held[len(self._mark) :]
        self._mark, self._fresh = None, False
        return True

    def _calls(self, value: Any) -> list[Call]:
        """The calls that a JSON value stands for; none if one of them is not a call of an offered function."""
        calls = []
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict) or one.get("name") not in self._names:
                return []
            arguments = one.get("arguments", one.get("parameters", {}))
            if isinstance(arguments, str):  # some models write the object as a string
                try:
                    arguments = _DECODER.decode(arguments)
                except (ValueError, RecursionError):
                    return []
            if not isinstance(arguments, dict):
                return []
            calls.append(Call(one["name"], json.dumps(arguments, ensure_ascii=False)))
        return calls


def _may_be_call(mark: str, body: str) -> bool:
    """Whether text can still become a call: seen from its first characters, so that plain text is not held back."""
    if mark == _MISTRAL:
        return True  # a list, or a name before an object
    if mark:
        ahead = body.lstrip()
        return not ahead or ahead[0] in "{["
    begun = "".join(body.split())
    return any(begun.startswith(bare) or bare.startswith(begun) for bare in _BARE)


def _begun_mark(text: str) -> int:
    """Length of the longest end of `text` that may be the beginning of a mark."""
    longest = min(len(text), max(map(len, _MARKS)) - 1)
    return next((n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in _MARKS)), 0)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
