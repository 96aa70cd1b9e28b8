"""JSON schemas as grammars: which tokens may come next, so that an answer always satisfies its schema.

llguidance compiles a schema and computes masks in Rust without the interpreter's lock. Compiling may take a second, so
it is done in a thread of the caller's and kept by schema; each request works on a copy. Rejected: checking and
asking again, which may never end, and Outlines, whose compile time grows with the schema's automaton.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from llmray.serve.engine import RequestRefusedError

KEPT = 64
"""Compiled schemas that are kept."""


class Grammars:
    """Compiled schemas of one tokenizer."""

    def __init__(self, tokenizer: Any, *, vocabulary: int, ends: Collection[int]) -> None:
        """`vocabulary` is the width of the model's logits; `ends` are the tokens that end an answer."""
        self._hf_tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = sorted(ends)
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, schema: str) -> "Grammar":
        """The grammar of a schema, at its beginning; may take a second.

        Raises:
            RequestRefusedError: the schema is not one, or asks for what cannot be enforced.
        """
        with self._lock:
            if (matcher := self._compiled.get(schema)) is None:
                matcher = self._compile(schema)
                self._compiled[schema] = matcher
                if len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(schema)
            return Grammar(matcher.deep_copy(), self._vocabulary)

    def _compile(self, schema: str) -> LLMatcher:
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
        """A token was generated."""
        taken = self._matcher.consume_token(token)
        assert taken, self._matcher.get_error()
