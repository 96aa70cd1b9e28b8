"""Prompts in the gateway: resolved at most a second ago, chosen the same way for the same person, rendered without
surprises.

A version never changes, so it is kept; a label moves, so its resolution is kept for a second, and a deleted label is
gone as soon. While the source cannot be asked, or takes longer than half a second, the last resolution goes on being
served and is counted: a registry that hangs slows nobody down. Each reference is asked for once at a time, whoever
waits, and that nothing goes by a name is known for a second too: a flood of wrong names does not reach the registry. Rejected: the minute that other prompt stores cache labels for, and a lock that lets each waiter ask anew.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass

from pydantic import ValidationError

from llmray.errors import InputError, NotFoundError, UnavailableError
from llmray.reference import parse_reference
from llmray.serve.engine import ChatMessage, RequestRefusedError
from llmray.serve.ports import PromptChoice, PromptDraft, PromptSource, PromptTemplate
from llmray.serve.protocol import ChatSettings
from llmray.serve.shelf import MOST_LOOKUPS, MOST_WRONG, Shelf
from llmray.serve.variants import pick

_MARK = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A brace written twice, or a placeholder."""
_CAPACITY = 1024


@dataclass(slots=True)
class _Kept:
    choice: PromptChoice
    asked_at: float
    moves: bool
    stale: bool = False


@dataclass(frozen=True, slots=True)
class _Asking:
    task: asyncio.Task[PromptChoice]
    since: float


@dataclass(frozen=True, slots=True)
class _Wrong:
    why: str
    asked_at: float


class PromptCache:
    def __init__(
        self,
        source: PromptSource,
        *,
        clock: Callable[[], float],
        alias_ttl_s: float = 1.0,
        patience_s: float = 0.5,
    ) -> None:
        """Ask `source`.

        Args:
            alias_ttl_s: how long what a label names is taken as known.
            patience_s: how long a request waits for the source where an older resolution is at hand.
        """
        self.stale = 0
        """Answers given from an older resolution because the source was away."""
        self._source = source
        self._clock = clock
        self._alias_ttl_s = alias_ttl_s
        self._patience_s = patience_s
        self._kept: Shelf[str, _Kept] = Shelf(_CAPACITY)
        self._wrong: Shelf[str, _Wrong] = Shelf(MOST_WRONG)
        self._places = asyncio.Semaphore(MOST_LOOKUPS)
        self._asking: dict[str, _Asking] = {}

    async def get(self, reference: str, key: str) -> PromptTemplate:
        """The version that a reference names; of a split label, the one that `key` falls on.

        Raises:
            InputError: no such prompt, version or alias, or the text is no reference.
            UnavailableError: never resolved before, and the source cannot be asked now.
        """
        versions = (await self._choice(reference)).versions
        if len(versions) == 1:
            return versions[0][0]
        return pick(versions, key=f"{versions[-1][0].digest}:{key}")

    async def _choice(self, reference: str) -> PromptChoice:
        kept = self._kept.get(reference)
        if kept is None:
            wrong = self._wrong.get(reference)
            if wrong is not None and self._clock() - wrong.asked_at < self._alias_ttl_s:
                raise NotFoundError(wrong.why)
            return await asyncio.shield(self._ask(reference).task)
        if not kept.moves or self._clock() - kept.asked_at < self._alias_ttl_s:
            self.stale += kept.stale
            return kept.choice
        asking = self._ask(reference)
        patience_s = self._patience_s - (self._clock() - asking.since)
        try:
            async with asyncio.timeout(patience_s):  # wait_for may lose a cancellation
                return await asyncio.shield(asking.task)
        except (TimeoutError, UnavailableError):
            self.stale += 1
            return kept.choice

    def _ask(self, reference: str) -> _Asking:
        """The question to the source that is under way, or a new one."""
        moves = parse_reference(reference).alias is not None
        if (asking := self._asking.get(reference)) is None:
            since = self._clock()
            resolve = self._resolve(reference, since, moves)
            # in a context of its own: Serve cancels what a request that ends has asked for
            task = asyncio.get_running_loop().create_task(resolve, context=Context())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be waiting any more
            asking = self._asking[reference] = _Asking(task, since)
        return asking

    async def _resolve(self, reference: str, since: float, moves: bool) -> PromptChoice:
        try:
            async with self._places:
                choice = await self._source.prompt(reference)
        except UnavailableError:
            if (kept := self._kept.get(reference)) is not None:
                kept.asked_at, kept.stale = since, True
            raise
        except Exception as error:
            self._kept.forget(reference)
            if isinstance(error, NotFoundError):
                self._wrong.put(reference, _Wrong(str(error), since))
            raise
        finally:
            del self._asking[reference]
        self._wrong.forget(reference)
        self._kept.put(reference, _Kept(choice, since, moves))
        return choice


def check_draft(draft: PromptDraft) -> None:
    """Refuse a prompt that no request could be answered with.

    Raises:
        InputError: a role that chats do not have, or a setting that is none, or that no request may have.
    """
    for message in draft.messages:
        if message.get("role") not in ("system", "user", "assistant"):
            raise InputError(f"role {message.get('role')!r} of a prompt's message must be system, user or assistant")
    known = ChatSettings.model_fields
    if unknown := sorted(set(draft.settings) - set(known)):
        raise InputError(f"a prompt has no settings {unknown}: it may have {', '.join(sorted(known))}")
    try:
        ChatSettings.model_validate(dict(draft.settings))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InputError(f"settings.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except RequestRefusedError as error:
        raise InputError(f"settings: {error}") from error


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
            f"{prompt.name}:{prompt.version} has no variables {extra[:8]}; it has {sorted(wanted)}",
            "variables",
            "unknown_variable",
        )

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return match[0][0] if name is None else variables.get(name, match[0])

    return [{"role": message["role"], "content": _MARK.sub(fill, message["content"])} for message in prompt.messages]
