"""From token ids to text a client can print at once: whole characters only, and never a piece of a stop text.

A byte-level token may end in the middle of a UTF-8 character; decoding then ends in U+FFFD, which is held back until
the next tokens complete it. Only a short window of ids is decoded again each step, anchored where the text was last
whole (the two-offset scheme of Hugging Face's text-generation-inference), so a long answer costs linear time.
Rejected: decoding id by id (breaks characters and loses the space before a word) and decoding everything each step
(quadratic).
"""

from collections.abc import Callable, Sequence

_BROKEN = "�"


class Detokenizer:
    """Text of a growing list of token ids: the pieces add up to the decoding of all of them."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        """Decode with `decode`, which must skip special tokens."""
        self._decode = decode
        self._ids: list[int] = []
        self._anchor = 0
        """Where the window begins: one whole stretch before what is being read."""
        self._read = 0
        """Ids before this one are text that was returned whole."""
        self._shown = 0
        """Characters already returned of the stretch after `_read`."""

    def push(self, token: int) -> str:
        """New text that will not change any more."""
        self._ids.append(token)
        fresh = self._fresh()
        whole = not fresh.endswith(_BROKEN)
        piece = (fresh if whole else fresh[:-1])[self._shown :]
        if whole:
            self._anchor, self._read, self._shown = self._read, len(self._ids), 0
        else:
            self._shown += len(piece)
        return piece

    def flush(self) -> str:
        """What is left at the end, broken characters included."""
        rest = self._fresh()[self._shown :]
        self._anchor, self._read, self._shown = self._read, len(self._ids), 0
        return rest

    def _fresh(self) -> str:
        before = self._decode(self._ids[self._anchor : self._read])
        return self._decode(self._ids[self._anchor :])[len(before) :]


class StopText:
    """Watches text for stop texts and holds back what may turn out to be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        """Whether a stop text came; nothing is shown after it."""
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> str:
        """Text that is safe to show; once a stop text came, what preceded it."""
        text = self._held + text
        self._held = ""
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found = True
            return text[: min(ends)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        if held:
            self._held = text[-held:]
            return text[:-held]
        return text

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop text ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
