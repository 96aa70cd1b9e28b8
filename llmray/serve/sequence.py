"""One request in the decode thread: its tokens, and from the tokens that are drawn to the events that the client sees."""

import asyncio
from collections.abc import Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from llmray.serve.detokenize import StopText, TokenTexts
from llmray.serve.engine import EngineRequest, FinishReason, TokenEvent, TokenLogprob
from llmray.serve.grammar import Grammar
from llmray.serve.kv_blocks import root_digest
from llmray.serve.sampling import Drawn, Sampler, report


class Ticket:
    """A request on its way between the event loop and the decode thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self.dropped = False
        """Whether nobody listens any more."""
        self.sequence: Sequence | None = None
        """None until its prompt is read into tokens."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the decode thread needs of a request, made before it gets there."""

    ids: list[int]
    max_new_tokens: int
    prompt_text: str
    """What an echo begins with; empty without one."""
    grammar: Grammar | None


class Sequence:
    """Fields in front are the scheduler's."""

    def __init__(
        self, ticket: Ticket, request: EngineRequest, prepared: Prepared, texts: TokenTexts, ends: Collection[int]
    ) -> None:
        sampling = request.sampling
        self.ids = prepared.ids
        self.computed = 0
        self.blocks: list[int] = []
        self.digests: list[bytes] = []
        self.echoes_logprobs = request.echo and sampling.logprobs is not None
        self.shareable = not self.echoes_logprobs
        self.root = root_digest(request.adapter or "")
        self.cached_tokens: int | None = None
        self.slots = torch.empty(0, dtype=torch.long)
        """Where the keys of its tokens are, kept for as long as its blocks stay the same."""
        self.slots_of: list[int] = []
        self.ticket = ticket
        self.request = request
        self.prompt_tokens = len(prepared.ids)
        self.sampler = Sampler(sampling, None if prepared.grammar is None else prepared.grammar.mask)
        self._left = prepared.max_new_tokens
        self._echo = prepared.prompt_text if request.echo else None
        self._grammar = prepared.grammar
        self._texts = texts
        self._ends = ends
        self._text = texts.stream()
        self._stop = StopText(sampling.stop)
        self._prompt_logprobs: list[TokenLogprob] = []

    @property
    def prompt_left(self) -> int:
        """Prompt tokens still to be read."""
        return max(self.prompt_tokens - self.computed, 0) if len(self.ids) == self.prompt_tokens else 0

    def rows_wanted(self, count: int) -> range:
        """Of the next `count` tokens, those whose logits are wanted."""
        if self.reading_echo:
            return range(count)
        return range(count - 1, count) if self.computed + count == len(self.ids) else range(0)

    @property
    def reading_echo(self) -> bool:
        """Whether log-probabilities of the prompt are being collected."""
        return self.echoes_logprobs and self._echo is not None

    def read_prompt(self, logits_NV: torch.Tensor, begin: int) -> None:
        """Collect log-probabilities of the prompt tokens that follow the places from `begin` on."""
        if begin == 0:
            self._prompt_logprobs = [TokenLogprob(self._texts.bytes_of(self.ids[0]), None, (), True)]
        tokens = self.ids[begin + 1 : begin + 1 + len(logits_NV)]
        if tokens:
            drawn = report(logits_NV[: len(tokens)], tokens, self.request.sampling.logprobs or 0)
            self._prompt_logprobs += [self._logprob(one, in_prompt=True) for one in drawn]

    def echo(self) -> TokenEvent | None:
        """The event of the prompt, once it has been read; the last one where nothing is to be generated."""
        if self._echo is None:
            return None
        text, self._echo = self._echo, None
        logprobs, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        reason: FinishReason | None = None if self._left else "length"
        return TokenEvent(text, 0, self.prompt_tokens, reason, logprobs, self.cached_tokens or 0)

    def push(self, drawn: Drawn) -> TokenEvent:
        """The event of a token."""
        token = drawn.token
        logprobs = () if drawn.logprob is None else (self._logprob(drawn),)
        self.ids.append(token)
        self._left -= 1
        if token in self._ends:
            return self._event(self._stop.push(self._text.flush()), logprobs, "stop")
        if self._grammar is not None:
            self._grammar.push(token)
        text = self._stop.push(self._text.push(token))
        if self._stop.found:
            return self._event(text, logprobs, "stop")
        if self._grammar is not None and self._grammar.done:
            return self._event(text + self._stop.push(self._text.flush()), logprobs, "stop")
        if self._left == 0:
            return self._event(text + self._stop.push(self._text.flush()), logprobs, "length")
        return self._event(text, logprobs)

    def _event(self, text: str, logprobs: Items[TokenLogprob], finish_reason: FinishReason | None = None) -> TokenEvent:
        if self._stop.found:
            finish_reason = "stop"
        elif finish_reason is not None:
            text += self._stop.flush()
        return TokenEvent(text, 1, self.prompt_tokens, finish_reason, tuple(logprobs), self.cached_tokens or 0)

    def _logprob(self, drawn: Drawn, *, in_prompt: bool = False) -> TokenLogprob:
        bytes_of = self._texts.bytes_of
        top = tuple((bytes_of(token), logprob) for token, logprob in drawn.top)
        return TokenLogprob(bytes_of(drawn.token), drawn.logprob, top, in_prompt)
