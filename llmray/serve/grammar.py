"""JSON schemas as grammars: which tokens may come next, so that an answer always satisfies its schema.

llguidance compiles a schema and computes masks in Rust without the interpreter's lock. Compiling may take a second, and
nothing can end it, so it has a few threads of its own and a limit after which nobody waits; what is compiled is kept by schema,
and each request works on a copy. Rejected: checking and asking again, which may never end, and Outlines, whose compile time
grows with the schema's automaton.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from llmray.serve.engine import OverloadedError, RequestRefusedError

KEPT = 64
"""Compiled schemas that are kept."""
THREADS = 2
"""Schemas that are compiled at a time."""


class Grammars:
    """Compiled schemas of one tokenizer."""

    def __init__(self, tokenizer: Any, *, vocabulary: int, ends: Collection[int], limit_s: float = 10.0) -> None:
        """Compile for a tokenizer.

        Args:
            vocabulary: width of the model's logits.
            ends: the tokens that end an answer.
            limit_s: seconds that a request waits for its schema.
        """
        self._hf_tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = sorted(ends)
        self._limit_s = limit_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="schema")
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    async def compile(self, schema: str) -> "Grammar":
        """The grammar of a schema, at its beginning; call it from one event loop at a time.

        Raises:
            RequestRefusedError: the schema is not one, or asks for what cannot be enforced, or takes too long.
            OverloadedError: others' schemas take too long.
        """
        if (matcher := self._compiled.get(schema)) is None:
            compiling = self._threads.submit(self._compile, schema)
            try:
                matcher = await asyncio.wait_for(asyncio.wrap_future(compiling), self._limit_s)
            except TimeoutError:
                if compiling.cancel():
                    raise OverloadedError(
                        "other requests' JSON schemas are being compiled: try again later", 1.0
                    ) from None
                raise RequestRefusedError(
                    f"the JSON schema is too complex: it takes more than {self._limit_s:g} s to compile",
                    "response_format",
                ) from None
            self._compiled[schema] = matcher
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(schema)
        return Grammar(matcher.deep_copy(), self._vocabulary)

    def close(self) -> None:
        """Compile nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compile(self, schema: str) -> LLMatcher:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = from_tokenizer(self._hf_tokenizer, n_vocab=self._vocabulary, eos_token=self._ends)
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
        except ValueError as error:
            raise RequestRefusedError(f"the JSON schema cannot be read: {error}", "response_format") from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RequestRefusedError(f"the JSON schema cannot be enforced: {matcher.get_error()}", "response_format")
        return matcher


class Grammar:
    """How far one answer has come in its schema."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def done(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    def mask(self) -> torch.Tensor:
        """Tokens (V,) that may come next, as bool.

        Raises:
            RuntimeError: the grammar grew beyond llguidance's limits.
        """
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        if self._matcher.is_error():
            raise RuntimeError(f"the JSON schema cannot be followed further: {self._matcher.get_error()}")
        spread = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        return spread.flatten()[: self._vocabulary].bool()

    def push(self, token: int) -> None:
        """A token was generated.

        Raises:
            RuntimeError: it may not stand here.
        """
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"the JSON schema does not allow token {token} here: {self._matcher.get_error()}")
