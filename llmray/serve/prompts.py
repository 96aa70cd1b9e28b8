"""Prompts in the gateway: resolved at most a second ago, rendered without surprises.

A version never changes, so it is kept; an alias moves, so its resolution is kept for a second, and a deleted alias is
gone as soon. While the source cannot be asked, the last resolution goes on being served and is counted. Rejected: the
minute that other prompt stores cache labels for.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmray.errors import UnavailableError
from llmray.reference import parse_reference
from llmray.serve.engine import ChatMessage, RequestRefusedError
from llmray.serve.ports import PromptSource, PromptTemplate

_MARK = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A brace written twice, or a placeholder."""
_CAPACITY = 1024


@dataclass(slots=True)
class _Kept:
    prompt: PromptTemplate
    at: float
    moves: bool


class PromptCache:
    def __init__(self, source: PromptSource, *, clock: Callable[[], float], alias_ttl_s: float = 1.0) -> None:
        self.stale = 0
        """Answers given from an older resolution because the source was away."""
        self._source = source
        self._clock = clock
        self._alias_ttl_s = alias_ttl_s
        self._kept: dict[str, _Kept] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def get(self, reference: str) -> PromptTemplate:
        """The prompt that a reference names.

        Raises:
            InputError: no such prompt, version or alias, or the text is no reference.
            UnavailableError: never resolved before, and the source cannot be asked now.
        """
        moves = parse_reference(reference).alias is not None
        if kept := self._fresh(reference):
            return kept.prompt
        async with self._locks.setdefault(reference, asyncio.Lock()):
            if kept := self._fresh(reference):
                return kept.prompt
            asked_at = self._clock()
            try:
                prompt = await self._source.prompt(reference)
            except UnavailableError:
                if reference not in self._kept:
                    raise
                self.stale += 1
                return self._kept[reference].prompt
            except Exception:
                self._kept.pop(reference, None)
                self._locks.pop(reference, None)
                raise
            if len(self._kept) >= _CAPACITY:
                oldest = next(iter(self._kept))
                del self._kept[oldest]
                self._locks.pop(oldest, None)
            self._kept[reference] = _Kept(prompt, asked_at, moves)
            return prompt

    def _fresh(self, reference: str) -> _Kept | None:
        kept = self._kept.get(reference)
        if kept is None or (kept.moves and self._clock() - kept.at >= self._alias_ttl_s):
            return None
        return kept


def render(prompt: PromptTemplate, variables: Mapping[str, str]) -> list[ChatMessage]:
    """Messages with every placeholder filled, once: a value that looks like a placeholder stays as it is.

    `{{` and `}}` stand for braces.

    Raises:
        RequestRefusedError: a variable is missing, or the prompt has none of that name.
    """
    wanted = set(prompt.variables)
    if missing := sorted(wanted - set(variables)):
        raise RequestRefusedError(
            f"{prompt.name}:{prompt.version} needs variables {missing}", "variables", "missing_variable"
        )
    if extra := sorted(set(variables) - wanted):
        raise RequestRefusedError(
            f"{prompt.name}:{prompt.version} has no variables {extra}; it has {sorted(wanted)}",
            "variables",
            "unknown_variable",
        )

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return match[0][0] if name is None else variables.get(name, match[0])

    return [{"role": message["role"], "content": _MARK.sub(fill, message["content"])} for message in prompt.messages]
