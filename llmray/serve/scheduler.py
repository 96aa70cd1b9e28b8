"""Which tokens of which requests the next step computes: those that decode first, then prompts in the order they came.

A step has a budget of tokens. Every request that decodes has one; what is left is given to prompts, a long one in
pieces, so that a long prompt slows the others' answers down and never stops them. A prompt is let in when the pool has
blocks for all of it. Where a growing answer finds no block, the youngest request gives its blocks back and waits at the head
of the queue to be computed again: the oldest one always goes on, so nothing deadlocks, and what was drawn stays
drawn. Rejected: reserving `max_tokens` blocks beforehand (answers that end early leave most of the cache empty).
"""

from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from llmray.serve.kv_blocks import BlockPool, next_digest


class Scheduled(Protocol):
    """What the scheduler keeps about a request."""

    ids: list[int]
    """Prompt and answer so far."""
    computed: int
    """How many of them are in the cache."""
    blocks: list[int]
    digests: list[bytes]
    """Of its full blocks that were computed or may be shared."""
    shareable: bool
    """Whether blocks of others may stand for its prompt."""
    root: bytes
    """What its keys depend on beside its tokens."""
    cached_tokens: int | None
    """Tokens of the prompt that were in the cache when it was first let in; None before."""


T = TypeVar("T", bound=Scheduled)


class Scheduler(Generic[T]):
    def __init__(self, pool: BlockPool, *, max_running: int, step_tokens: int) -> None:
        self.pool = pool
        self.waiting: deque[T] = deque()
        self.running: list[T] = []
        """Oldest first."""
        self._max_running = max_running
        self._step_tokens = step_tokens

    def add(self, request: T) -> None:
        self.waiting.append(request)

    def remove(self, request: T) -> None:
        """A request has ended: its blocks are free from now on."""
        if request in self.running:
            self.running.remove(request)
            self._give_back(request)
        else:
            self.waiting.remove(request)

    def plan(self) -> list[tuple[T, int]]:
        """Requests of the next step, and how many tokens of each; they have the blocks for them."""
        budget = self._step_tokens
        planned: dict[int, tuple[T, int]] = {}
        preempted = False
        for request in sorted(self.running, key=lambda one: len(one.ids) - one.computed > 1):
            count = min(len(request.ids) - request.computed, budget)
            if count == 0 or request not in self.running:
                continue
            for victim in self._grow(request, request.computed + count):
                preempted = True
                planned.pop(id(victim), None)
            if request.blocks:
                planned[id(request)] = (request, count)
                budget -= count
        while not preempted and budget and self.waiting and len(self.running) < self._max_running:
            request = self.waiting[0]
            if not self._let_in(request):
                break
            self.running.append(self.waiting.popleft())
            count = min(len(request.ids) - request.computed, budget)
            planned[id(request)] = (request, count)
            budget -= count
        return list(planned.values())

    def computed(self, request: T, count: int) -> None:
        """A step is done: full blocks may be shared from now on."""
        before = request.computed // self.pool.block_tokens
        request.computed += count
        self._digest(request, request.computed)
        for place in range(before, request.computed // self.pool.block_tokens):
            self.pool.learn(request.blocks[place], request.digests[place])

    def _grow(self, request: T, num_tokens: int) -> Iterable[T]:
        """Give a request blocks for so many tokens; those that had to make room, which it may be itself."""
        missing = self.pool.blocks_for(num_tokens) - len(request.blocks)
        victims: list[T] = []
        while (taken := self.pool.take(max(missing, 0))) is None:
            victim = self.running.pop()
            victims.append(victim)
            self._give_back(victim)
            self.waiting.appendleft(victim)
            if victim is request:
                return victims
        request.blocks += taken
        return victims

    def _let_in(self, request: T) -> bool:
        """Whether the pool has blocks for a prompt; it holds them then."""
        shared: list[int] = []
        if request.shareable:
            last = len(request.ids) - 1  # the last token is computed in any case: its logits are wanted
            self._digest(request, last)
            shared = self.pool.share(request.digests[: last // self.pool.block_tokens])
        taken = self.pool.take(self.pool.blocks_for(len(request.ids)) - len(shared))
        if taken is None:
            self.pool.release(shared)
            return False
        request.blocks = shared + taken
        request.computed = len(shared) * self.pool.block_tokens
        if request.cached_tokens is None:
            request.cached_tokens = request.computed
        return True

    def _give_back(self, request: T) -> None:
        self.pool.release(request.blocks)
        request.blocks = []
        request.computed = 0

    def _digest(self, request: T, num_tokens: int) -> None:
        size = self.pool.block_tokens
        for place in range(len(request.digests), num_tokens // size):
            before = request.digests[-1] if request.digests else request.root
            request.digests.append(next_digest(before, request.ids[place * size : (place + 1) * size]))
