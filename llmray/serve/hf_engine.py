"""The transformers engine: one thread owns the model and takes one decode step of each request in turn.

Every request has its own KV cache, sampler and detokenizer, so sampling fields never leak from one to another, and
greedy answers equal `generate`'s. A request that is dropped is gone before the next round. One OpenMP thread: two of
them on a shared core make a step tens of times slower. Rejected here: transformers' continuous batching, which has no
per-request seed, stop or cancellation; batching belongs behind this same interface.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from llmray.errors import UnavailableError
from llmray.serve.detokenize import Detokenizer, StopText
from llmray.serve.engine import EngineLoad, EngineRequest, FinishReason, RequestRefusedError, TokenEvent, check
from llmray.serve.quantize import LoadedModel, load
from llmray.serve.sampling import Sampler

logger = logging.getLogger(__name__)


class HfEngine:
    def __init__(self, loaded: LoadedModel) -> None:
        self.info = loaded.info
        self._loaded = loaded
        self._arrived: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._active: list[_Sequence] = []
        self.closed = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, quantization: str, *, device: str | None = None) -> "HfEngine":
        """Load a folder and begin to serve it.

        Raises:
            ConfigError: an unknown quantization.
            InputError: no model in the folder.
        """
        torch.set_num_threads(1)
        loaded = load(folder, quantization, device=device)
        logger.info(
            "%s in %s on %s: %.1f MB of weights in %.1f s",
            folder.name,
            quantization,
            loaded.info.device,
            loaded.info.weight_bytes / 1e6,
            loaded.info.load_s,
        )
        return cls(loaded)

    @property
    def num_active(self) -> int:
        """Requests that hold a KV cache now."""
        return len(self._active)

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        if self.closed:
            raise UnavailableError("the engine is closed")
        check(request, self.info)
        ticket = _Ticket(request, asyncio.get_running_loop())
        self._arrived.put(ticket)
        try:
            while True:
                event = await ticket.events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            ticket.dropped = True

    def load(self) -> EngineLoad:
        return EngineLoad(running=len(self._active), waiting=0, waiting_tokens=0, prefill_tokens_per_s=None)

    def close(self) -> None:
        """Refuse what is under way and free the weights."""
        if not self.closed:
            self.closed = True
            self._arrived.put(None)
            self._thread.join(timeout=30)

    @torch.inference_mode()
    def _run(self) -> None:
        torch.set_num_threads(1)
        try:
            while self._admit():
                self._active = [sequence for sequence in self._active if self._advance(sequence)]
        finally:
            self.closed = True
            for sequence in self._active:
                sequence.ticket.send(UnavailableError("the engine is closing"))
            while not self._arrived.empty():
                if ticket := self._arrived.get():
                    ticket.send(UnavailableError("the engine is closing"))
            self._active = []
            del self._loaded

    def _admit(self) -> bool:
        """Take in what has arrived, waiting only if there is nothing to do; False to stop."""
        while True:
            try:
                ticket = self._arrived.get(block=not self._active)
            except queue.Empty:
                return True
            if ticket is None:
                return False
            if ticket.dropped:
                continue
            try:
                self._active.append(_Sequence(ticket, self._loaded))
            except Exception as error:
                ticket.send(error)

    def _advance(self, sequence: "_Sequence") -> bool:
        """One step; whether there is more to do."""
        if sequence.ticket.dropped:
            return False
        try:
            event = sequence.step()
        except Exception as error:
            logger.exception("request %s failed", sequence.ticket.request.id)
            sequence.ticket.send(error)
            return False
        sequence.ticket.send(event)
        return event.finish_reason is None


class _Ticket:
    """A request on its way between the event loop and the decode thread."""

    def __init__(self, request: EngineRequest, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.events: asyncio.Queue[TokenEvent | BaseException] = asyncio.Queue()
        self.dropped = False
        self._loop = loop

    def send(self, event: TokenEvent | BaseException) -> None:
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:
            self.dropped = True  # the loop is closed: nobody listens


class _Sequence:
    """One request in the decode thread: token ids in, events out."""

    def __init__(self, ticket: _Ticket, loaded: LoadedModel) -> None:
        request = ticket.request
        self.ticket = ticket
        self._model = loaded.model
        self._ids = _prompt_ids(request, loaded.tokenizer)
        self._prompt_tokens = len(self._ids)
        room = loaded.info.context_tokens - len(self._ids)
        if room < 1:
            raise RequestRefusedError(
                f"the prompt has {len(self._ids)} tokens and the model's context holds {loaded.info.context_tokens}: "
                f"shorten it",
                "messages" if request.messages is not None else "prompt",
                "context_length_exceeded",
            )
        self._left = room if request.sampling.max_tokens is None else min(room, request.sampling.max_tokens)
        self._ends = _end_ids(loaded)
        self._cache = DynamicCache(config=loaded.model.config)
        self._sampler = Sampler(request.sampling)
        self._stop = StopText(request.sampling.stop)
        tokenizer = loaded.tokenizer
        decode: Callable[[list[int]], str] = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
        self._text = Detokenizer(decode)

    def step(self) -> TokenEvent:
        """Read the prompt or the last token, and draw the next one."""
        ids_1T = torch.tensor([self._ids], device=self._model.device)
        output = self._model(input_ids=ids_1T, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        token = self._sampler.draw(output.logits[0, -1])
        self._ids = [token]
        self._left -= 1
        if token in self._ends:
            return self._event(self._stop.push(self._text.flush()), "stop")
        text = self._stop.push(self._text.push(token))
        if self._stop.found:
            return self._event(text, "stop")
        if self._left == 0:
            return self._event(text + self._stop.push(self._text.flush()), "length")
        return self._event(text)

    def _event(self, text: str, finish_reason: FinishReason | None = None) -> TokenEvent:
        if self._stop.found:
            finish_reason = "stop"
        elif finish_reason is not None:
            text += self._stop.flush()
        return TokenEvent(text, 1, self._prompt_tokens, finish_reason)


def _prompt_ids(request: EngineRequest, tokenizer: Any) -> list[int]:
    if request.messages is None:
        ids = list(request.prompt if isinstance(request.prompt, tuple) else tokenizer(request.prompt)["input_ids"])
        if not ids and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id]
        if not ids:
            raise RequestRefusedError("prompt must not be empty: this model has no token to begin with", "prompt")
        return ids
    if not tokenizer.chat_template:
        raise RequestRefusedError(
            "this model has no chat template: use /v1/completions, or give its tokenizer one", "messages"
        )
    try:
        text = tokenizer.apply_chat_template(list(request.messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may refuse roles with any error of its own
        raise RequestRefusedError(f"the model's chat template refuses these messages: {error}", "messages") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _end_ids(loaded: LoadedModel) -> frozenset[int]:
    """Every token that ends an answer."""
    configured = loaded.model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ends, loaded.tokenizer.eos_token_id] if token is not None)
