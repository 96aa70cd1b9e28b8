"""The transformers engine: one thread owns the model and computes one step of all requests after the other.

A step is one forward pass over the next tokens of all requests that run (`scheduler` says which, `paged_attention`
keeps them apart); then each request's token is drawn as that request asks (`sampling`) and made into an event
(`sequence`). Long prompts are tokenized and schemas compiled in other threads, and the events of a step reach the event loop in
one call. A request that is dropped gives its blocks back before the next step.

Chosen against transformers 5.23's own continuous batching after measuring both (201M-parameter Llama, nf4, one thread of a
busy Xeon with AMX, in separate runs; tokens/s at batch 1 / 8, 64 prompt and 64 new tokens): `generate` 31 / 89, its
continuous batching 22 / 66-73, this engine 29-33 / 86-114 before NF4 had a path of its own (`nf4_cpu`). Its step draws
the tokens itself and has no seed, stop or schema of a request, and `cancel_request` leaks its handler; what would be left
of it, were scheduling and sampling ours, is its cache, whose attention on a CPU multiplies each query with
everybody's keys. Rejected too: decoding request by request, which reads all weights for each token.

One OpenMP thread: two of them on a shared core make a step tens of times slower.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmray.errors import UnavailableError
from llmray.serve.adapters import Adapters
from llmray.serve.detokenize import TokenTexts
from llmray.serve.engine import (
    FEATURES,
    EngineLoad,
    EngineRequest,
    RequestRefusedError,
    TokenEvent,
    check,
)
from llmray.serve.grammar import Grammar, Grammars
from llmray.serve.kv_blocks import BlockPool
from llmray.serve.paged_attention import PagedCache
from llmray.serve.prompt_ids import characters_of, check_length, prompt_ids, reads_tools
from llmray.serve.quantize import LoadedModel, load
from llmray.serve.sampling import Drawn, draw
from llmray.serve.scheduler import Scheduler
from llmray.serve.sequence import Prepared, Sequence, Ticket

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 16
MAX_RUNNING = 64
"""Requests in one step: more would make each of them slow."""
AT_ONCE_CHARACTERS = 2000
"""Prompts up to this long are tokenized where they arrive, in less time than another thread waits for the interpreter's lock
beside the decode thread, and so that they do not queue behind long ones."""


class HfEngine:
    def __init__(
        self,
        loaded: LoadedModel,
        *,
        adapters: Mapping[str, Path] | None = None,
        kv_bytes: int | None = None,
        step_tokens: int | None = None,
    ) -> None:
        """Serve a loaded model.

        Args:
            loaded: weights and tokenizer.
            adapters: folders of LoRA adapters by the names that requests use.
            kv_bytes: memory for the KV cache, at least one context's; by default 1 GiB on a CPU, and 70% of what is
                free on a GPU.
            step_tokens: most tokens of one step; by default 256 on a CPU and 2,048 on a GPU.
        """
        on_cpu = loaded.info.device == "cpu"
        if kv_bytes is None:
            kv_bytes = 1 << 30 if on_cpu else int(0.7 * torch.cuda.mem_get_info()[0])
        if on_cpu and "nf4" in loaded.info.quantization:
            from llmray.serve import nf4_cpu  # here: it takes bitsandbytes' six seconds to import

            nf4_cpu.speed_up(loaded.model)
        self._adapters = Adapters(loaded.model, adapters or {})
        self._cache = PagedCache(
            loaded.model,
            budget_bytes=kv_bytes,
            block_tokens=BLOCK_TOKENS,
            context_tokens=loaded.info.context_tokens,
        )
        self._pool = BlockPool(self._cache.num_blocks, BLOCK_TOKENS)
        self._scheduler: Scheduler[Sequence] = Scheduler(
            self._pool, max_running=MAX_RUNNING, step_tokens=step_tokens or (256 if on_cpu else 2048)
        )
        lacks = {"tools"} if not reads_tools(loaded.tokenizer) else set()
        lacks |= {"adapters"} if not adapters else set()
        self.info = replace(loaded.info, can=frozenset(FEATURES) - lacks, adapters=self._adapters.names)
        self.closed = False
        self._tokenizer = loaded.tokenizer
        self._texts = TokenTexts(loaded.tokenizer)
        self.ends = _end_ids(loaded)
        """Tokens that end an answer."""
        longest = max(map(len, loaded.tokenizer.get_vocab()))
        self._most_characters = loaded.info.context_tokens * longest
        self._vocabulary = int(loaded.model.get_input_embeddings().weight.shape[0])
        self._grammars = Grammars(loaded.tokenizer, vocabulary=self._vocabulary, ends=self.ends)
        self._tickets: set[Ticket] = set()
        self._arrived: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._speed = _PrefillSpeed()
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        folder: Path,
        quantization: str,
        *,
        device: str | None = None,
        adapters: Mapping[str, Path] | None = None,
        kv_bytes: int | None = None,
    ) -> "HfEngine":
        """Load a folder and begin to serve it.

        Raises:
            ConfigError: an unknown quantization, or a model whose attention is of no usual kind.
            InputError: no model in the folder, or an adapter that does not fit.
        """
        torch.set_num_threads(1)
        return cls(load(folder, quantization, device=device), adapters=adapters, kv_bytes=kv_bytes)

    @property
    def num_open(self) -> int:
        """Requests whose iterators are not closed."""
        return len(self._tickets)

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        if self.closed:
            raise UnavailableError("the engine is closed")
        check(request, self.info)
        check_length(request, self._most_characters)
        loop = asyncio.get_running_loop()
        ticket = Ticket(loop)
        self._tickets.add(ticket)
        try:
            grammar: Grammar | None = None
            if request.json_schema is not None:
                grammar = await self._grammars.compile(request.json_schema)
            if request.tools or characters_of(request) > AT_ONCE_CHARACTERS:
                prepared = await loop.run_in_executor(self._tokenizing, self._prepare, request, grammar)
            else:
                prepared = self._prepare(request, grammar)
            ticket.sequence = Sequence(ticket, request, prepared, self._texts, self.ends)
            self._arrived.put(ticket.sequence)
            if self.closed:  # perhaps while the prompt was tokenized, and nobody takes it in
                raise UnavailableError("the engine is closed")
            while True:
                event = await ticket.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            ticket.dropped = True
            self._tickets.discard(ticket)

    def load(self) -> EngineLoad:
        waiting = [
            0 if ticket.sequence is None else ticket.sequence.prompt_left
            for ticket in tuple(self._tickets)
            if ticket.sequence is None or ticket.sequence.prompt_left
        ]
        return EngineLoad(
            running=len(self._tickets) - len(waiting),
            waiting=len(waiting),
            waiting_tokens=sum(waiting),
            prefill_tokens_per_s=self._speed.tokens_per_s,
            kv_used=self._pool.used,
        )

    def close(self) -> None:
        """Refuse what is under way and free the weights."""
        if not self.closed:
            self.closed = True
            self._arrived.put(None)
            self._thread.join(timeout=30)
            self._tokenizing.shutdown(wait=False)
            self._grammars.close()

    def _prepare(self, request: EngineRequest, grammar: Grammar | None) -> Prepared:
        """Everything about a request that takes time and no model."""
        ids = prompt_ids(request, self._tokenizer, vocabulary=self._vocabulary)
        asked = request.sampling.max_tokens
        room = self.info.context_tokens - len(ids)
        if room < (0 if asked == 0 else 1):
            raise RequestRefusedError(
                f"the prompt has {len(ids)} tokens and the model's context holds {self.info.context_tokens}: shorten it",
                "messages" if request.messages is not None else "prompt",
                "context_length_exceeded",
            )
        if asked == 0 and not request.echo:
            raise RequestRefusedError("max_tokens must be at least 1 without echo", "max_tokens", "invalid_value")
        if any(not 0 <= token < self._vocabulary for token, _ in request.sampling.logit_bias):
            raise RequestRefusedError(
                f"token ids of logit_bias go from 0 to {self._vocabulary - 1}", "logit_bias", "invalid_value"
            )
        if max(ids) >= self._vocabulary:
            raise IndexError(f"the tokenizer has a token {max(ids)}, and the model has {self._vocabulary} embeddings")
        text = ""
        if request.echo:
            text = request.prompt if isinstance(request.prompt, str) else self._tokenizer.decode(ids)
        return Prepared(ids, room if asked is None else min(room, asked), text, grammar)

    @torch.inference_mode()
    def _run(self) -> None:
        torch.set_num_threads(1)
        try:
            while self._take_in():
                self._step()
        except Exception:
            logger.exception("the decode thread of the engine failed")
        finally:
            self.closed = True
            gone = UnavailableError("the engine is closing")
            _deliver([(ticket, gone) for ticket in tuple(self._tickets)])
            del self._cache, self._adapters

    def _take_in(self) -> bool:
        """Take in what has arrived and let go of what was dropped, waiting only if nothing is to do; False to stop."""
        scheduler = self._scheduler
        for sequence in [one for one in (*scheduler.running, *scheduler.waiting) if one.ticket.dropped]:
            scheduler.remove(sequence)
        while True:
            try:
                arrived = self._arrived.get(block=not (scheduler.running or scheduler.waiting))
            except queue.Empty:
                return True
            if arrived is None:
                return False
            if not arrived.ticket.dropped:
                scheduler.add(arrived)

    def _step(self) -> None:
        began = time.perf_counter()
        plan = self._scheduler.plan()
        prompt_tokens = sum(count for sequence, count in plan if sequence.prompt_left)
        groups: dict[str | None, list[tuple[Sequence, int]]] = defaultdict(list)
        for sequence, count in plan:
            groups[sequence.request.adapter].append((sequence, count))
        for adapter, group in groups.items():
            self._adapters.use(adapter)
            _deliver(self._compute(group))
        if prompt_tokens:
            self._speed.add(prompt_tokens, time.perf_counter() - began)

    def _compute(self, group: list[tuple[Sequence, int]]) -> list[tuple[Ticket, TokenEvent | Exception]]:
        """Events of one pass over these requests' next tokens. If it fails, each is computed alone: one may be to blame."""
        try:
            logits = self._forward(group)
        except Exception as error:
            if len(group) > 1:
                return [event for one in group for event in self._compute([one])]
            [(sequence, _)] = group
            return [self._failed(sequence, error)]
        return self._events(group, logits)

    def _failed(self, sequence: Sequence, error: Exception) -> tuple[Ticket, Exception]:
        """End one request with an error; called while it is handled."""
        logger.exception("request %s failed", sequence.request.id)
        self._scheduler.remove(sequence)
        return sequence.ticket, error

    def _forward(self, group: list[tuple[Sequence, int]]) -> torch.Tensor:
        ids: list[int] = []
        chunks, rows = [], []
        for sequence, count in group:
            end = sequence.computed + count
            rows += [len(ids) + row for row in sequence.rows_wanted(count)]
            ids += sequence.ids[sequence.computed : end]
            if sequence.slots_of != sequence.blocks:
                sequence.slots_of = list(sequence.blocks)
                sequence.slots = self._cache.slots(sequence.blocks)
            chunks.append((count, sequence.slots[:end]))
        return self._cache.forward(ids, chunks, rows)

    def _events(
        self, group: list[tuple[Sequence, int]], logits_NV: torch.Tensor
    ) -> list[tuple[Ticket, TokenEvent | Exception]]:
        events: list[tuple[Ticket, TokenEvent | Exception]] = []
        drawing: list[Sequence] = []
        rows: list[int] = []
        row = 0
        for sequence, count in group:
            wanted = len(sequence.rows_wanted(count))
            echoed = None
            try:
                if sequence.reading_echo:
                    sequence.read_prompt(logits_NV[row : row + wanted], sequence.computed)
                if sequence.computed + count == len(sequence.ids):
                    echoed = sequence.echo()
            except Exception as error:
                events.append(self._failed(sequence, error))
                continue
            finally:
                row += wanted
            self._scheduler.computed(sequence, count)
            if echoed is not None:
                events.append((sequence.ticket, echoed))
            if echoed is not None and echoed.finish_reason is not None:
                self._scheduler.remove(sequence)
            elif sequence.computed == len(sequence.ids):
                drawing.append(sequence)
                rows.append(row - 1)
        if drawing:
            chosen_RV = logits_NV if len(rows) == len(logits_NV) else logits_NV[rows]
            for sequence, drawn in zip(drawing, draw(chosen_RV, [one.sampler for one in drawing]), strict=True):
                events.append(self._drawn(sequence, drawn))
        return events

    def _drawn(self, sequence: Sequence, drawn: Drawn | Exception) -> tuple[Ticket, TokenEvent | Exception]:
        """The event of what was drawn, which may be the request's last."""
        try:
            result = drawn if isinstance(drawn, Exception) else sequence.push(drawn)
        except Exception as error:
            return self._failed(sequence, error)
        if isinstance(result, Exception) or result.finish_reason is not None:
            self._scheduler.remove(sequence)
        return sequence.ticket, result


class _PrefillSpeed:
    """Prompt tokens a second over the last steps that read prompts; older ones count less and less."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens = 0.9 * self._tokens + tokens
        self._seconds = 0.9 * self._seconds + seconds

    @property
    def tokens_per_s(self) -> float | None:
        return self._tokens / self._seconds if self._seconds else None


def _deliver(events: Iterable[tuple[Ticket, TokenEvent | Exception]]) -> None:
    """Hand events over, with one call to each event loop: each call wakes it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, TokenEvent | Exception]]] = defaultdict(list)
    for ticket, event in events:
        by_loop[ticket.loop].append((ticket, event))
    for loop, some in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, some)
        except RuntimeError:  # the loop is closed: nobody listens
            for ticket, _ in some:
                ticket.dropped = True


def _put(events: list[tuple[Ticket, TokenEvent | Exception]]) -> None:
    for ticket, event in events:
        ticket.events.put_nowait(event)


def _end_ids(loaded: LoadedModel) -> frozenset[int]:
    """Every token that ends an answer."""
    configured: Any = loaded.model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ends, loaded.tokenizer.eos_token_id] if token is not None)
