"""From token ids to text a client can print at once: whole characters only, and never a piece of a stop text.

A byte-level token may end in the middle of a UTF-8 character; decoding then ends in U+FFFD, which is held back until
the next tokens complete it. Where a tokenizer's decoder is plain byte-level BPE, text is the decoding of the tokens' bytes,
one at a time. For other tokenizers only a short window of ids is decoded again each step, anchored where the text was last
whole (the two-offset scheme of Hugging Face's text-generation-inference), so a long answer costs linear time.
Rejected: decoding id by id (breaks characters and loses the space before a word) and decoding everything each step
(quadratic).
"""

import codecs
import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

_BROKEN = "�"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """What each token of a tokenizer is in UTF-8."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
        self._byte_level = "ByteLevel" in kinds
        self.plain = kinds == ["ByteLevel"] and not getattr(tokenizer, "clean_up_tokenization_spaces", False)
        """Whether a text is its tokens' bytes one after another."""
        self.special = frozenset(tokenizer.all_special_ids)
        self._added = {token: str(text).encode() for token, text in tokenizer.added_tokens_decoder.items()}
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """Bytes of one token; perhaps a part of a character, and none for an id that is no token."""
        if (known := self._known.get(token)) is None:
            known = self._known[token] = self._added.get(token) or self._read(token)
        return known

    def stream(self) -> "Detokenizer | ByteDetokenizer":
        """A detokenizer for one answer."""
        if self.plain:
            return ByteDetokenizer(self.bytes_of, self.special)
        return Detokenizer(lambda ids: self._tokenizer.decode(ids, skip_special_tokens=True))

    def _read(self, token: int) -> bytes:
        text = self._tokenizer.convert_ids_to_tokens(token)
        if text is None:
            return b""
        if self._byte_level:  # a token with other characters stands for itself, as in tokenizers' own decoder
            return bytes(_BYTE_OF[char] for char in text) if _BYTE_OF.keys() >= set(text) else str(text).encode()
        if byte := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(byte[1], 16)])
        return str(text).replace("\u2581", " ").encode()


class ByteDetokenizer:
    """Text of a growing list of tokens that are bytes."""

    def __init__(self, bytes_of: Callable[[int], bytes], special: Collection[int]) -> None:
        self._bytes_of = bytes_of
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """New text that will not change any more."""
        return "" if token in self._special else self._decoder.decode(self._bytes_of(token))

    def flush(self) -> str:
        """What is left at the end, broken characters included."""
        return self._decoder.decode(b"", final=True)


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


def _decoder_kinds(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    return (
        [kind for part in decoder["decoders"] for kind in _decoder_kinds(part)]
        if decoder["type"] == "Sequence"
        else [decoder["type"]]
    )


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes as (Radford et al. 2019, GPT-2): printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
