"""Whether a model takes one more request: by how long its first token would be in coming, against an objective.

Requests queue by what has to be read before them, so the queue is bounded in seconds rather than in requests: the
prompt tokens that wait, over the speed at which waiting ones have got their first tokens lately. That speed is measured
from the requests themselves, so it holds for reading, for decoding that goes on between, and for an engine that has only
so many places; the engine's own prefill speed stands for it until then. What would come too late is refused at once,
with the time after which the queue is short enough: a queue that nobody will wait for is work done for nobody.

Rejected: a bound on requests alone (a hundred short prompts are nothing, ten long ones a minute), and Serve's queue
(each caller has one of its own, and nobody sees how long it is).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from llmray.serve.engine import DeadlineExceededError, EngineLoad, EngineRequest, OverloadedError

_HALF_LIFE_S = 10.0
"""An observation counts half as much after this long: a model that was slow for a moment is not refused for long."""
_PRIOR_TOKENS = 64.0
"""How many observed tokens weigh as much as the speed that the engine says of itself."""
_FARTHEST = 4.0
"""How many times the longest wait of late an estimate may be, where the engine says no speed of its own: one whose first
token takes half a second whatever the queue looks slow to few requests, and a burst must not be refused for it."""
_MARGIN = 0.8
"""Share of the objective that an estimated delay may fill. Under overload the queue stands at its bound all the time, and an
estimate that is right in the mean would be wrong for every other request."""
_CHARACTERS_PER_TOKEN = 4.0
_MOST_FRAME_TOKENS = 1000
"""More tokens than characters that a prompt is thought to have: a template and tools may have taught so of short texts."""
_LEAST_RETRY_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    ttft_s: float
    """Seconds within which a request that is taken should have its first token."""
    max_waiting: int
    """Requests that may wait for their first token, however fast the model is."""
    max_requests: int
    """Requests that may be under way, running or waiting."""


@dataclass(frozen=True, slots=True)
class Admit:
    delay_s: float | None
    """Seconds to the first token, as far as is known."""


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: str
    retry_after_s: float
    """Seconds after which a request would be taken if no others came."""
    late: bool = False
    """Whether it is the request's own limit that would be missed."""


def decide(
    load: EngineLoad, prompt_tokens: int, objective: Objective, *, timeout_s: float | None = None
) -> Admit | Refuse:
    """Take a request, or refuse it.

    Args:
        load: what stands before it; its speed is None while nothing is known.
        prompt_tokens: of the request, estimated.
        timeout_s: what the request itself allows.
    """
    speed = load.prefill_tokens_per_s
    delay_s = None if speed is None else (load.waiting_tokens + prompt_tokens) / speed
    if timeout_s is not None and delay_s is not None and delay_s > timeout_s:
        return Refuse(f"the first token would take about {delay_s:.1f} s", max(_LEAST_RETRY_S, delay_s), late=True)
    if load.running + load.waiting >= objective.max_requests:
        return Refuse(f"{load.running + load.waiting} requests are under way", _LEAST_RETRY_S)
    if load.waiting >= objective.max_waiting:
        each_s = 0.0 if delay_s is None else delay_s / (load.waiting + 1)
        return Refuse(f"{load.waiting} requests wait already", max(_LEAST_RETRY_S, each_s))
    most_s = _MARGIN * objective.ttft_s
    if load.waiting and delay_s is not None and delay_s > most_s:
        return Refuse(f"the first token would take about {delay_s:.1f} s", max(_LEAST_RETRY_S, delay_s - most_s))
    return Admit(delay_s)  # alone before an idle engine, a long prompt is nobody's queue


class Admission:
    """What a replica has taken, and how fast it gets through it."""

    def __init__(self, objective: Objective, *, clock: Callable[[], float]) -> None:
        """Begin with nothing taken.

        Args:
            clock: monotonic seconds.
        """
        self.requests = self.waiting = self.waiting_tokens = 0
        self._objective = objective
        self.now = clock
        self._speed = _Speed()
        self._characters = self._tokens = 0.0

    def enter(self, request: EngineRequest, load: EngineLoad) -> "Place":
        """Take a request.

        Args:
            load: what the engine says. Requests are counted here: some that were taken have not reached it yet.

        Raises:
            OverloadedError: its first token would come too late.
            DeadlineExceededError: later than the request itself allows.
        """
        now = self.now()
        characters, tokens = self._length(request)
        seen = self._load(load, now)
        decision = decide(seen, tokens, self._objective, timeout_s=request.timeout_s)
        if isinstance(decision, Refuse):
            if decision.late:
                raise DeadlineExceededError(f"{decision.reason}, and the request allows {request.timeout_s:g} s")
            raise OverloadedError(f"{decision.reason}: try again later", decision.retry_after_s)
        return Place(self, now, characters, tokens, ahead=seen.waiting_tokens)

    def learn(self, characters: int, tokens: int, *, ahead: int, waited_s: float) -> None:
        """A request's first token came: so many tokens were read in that time, with those ahead of it."""
        if characters:  # token ids tell nothing of texts
            keep = 0.98
            self._characters = keep * self._characters + characters
            self._tokens = keep * self._tokens + tokens
        if ahead:
            self._speed.observe(ahead + tokens, waited_s, self.now())

    def _load(self, load: EngineLoad, now: float) -> EngineLoad:
        return replace(
            load,
            running=self.requests - self.waiting,
            waiting=self.waiting,
            waiting_tokens=max(self.waiting_tokens, load.waiting_tokens),
            prefill_tokens_per_s=self._speed.tokens_per_s(
                load.prefill_tokens_per_s, now, queued=max(self.waiting_tokens, load.waiting_tokens)
            ),
        )

    def _length(self, request: EngineRequest) -> tuple[int, int]:
        """Characters and tokens of a prompt; the latter by what earlier prompts had of each."""
        if isinstance(request.prompt, tuple):
            return 0, len(request.prompt)
        texts = [request.prompt or ""] if request.messages is None else [one["content"] for one in request.messages]
        characters = sum(len(text) for text in texts if isinstance(text, str))
        ratio = self._characters / self._tokens if self._tokens and self._characters else _CHARACTERS_PER_TOKEN
        return characters, max(1, min(round(characters / ratio), characters + _MOST_FRAME_TOKENS))


class Place:
    """One request that was taken."""

    def __init__(self, admission: Admission, since: float, characters: int, tokens: int, *, ahead: int) -> None:
        self._admission = admission
        self._since = since
        self._characters, self._tokens, self._ahead = characters, tokens, ahead
        self._waits = self._here = True
        admission.requests += 1
        admission.waiting += 1
        admission.waiting_tokens += tokens

    def answered(self, prompt_tokens: int) -> None:
        """Its first token came; later calls change nothing."""
        if self._waits:
            waited_s = self._admission.now() - self._since
            self._wait_no_more()
            self._admission.learn(self._characters, prompt_tokens, ahead=self._ahead, waited_s=waited_s)

    def leave(self) -> None:
        """It has ended, however; a second call changes nothing."""
        self._wait_no_more()
        if self._here:
            self._here = False
            self._admission.requests -= 1

    def _wait_no_more(self) -> None:
        if self._waits:
            self._waits = False
            self._admission.waiting -= 1
            self._admission.waiting_tokens -= self._tokens


class _Speed:
    """Tokens a second that a queue got through lately: a ratio of sums that fade with time."""

    def __init__(self) -> None:
        self._tokens = self._seconds = self._longest_s = self._at = 0.0

    def observe(self, tokens: int, seconds: float, now: float) -> None:
        self._fade(now)
        self._tokens += tokens
        self._seconds += seconds
        self._longest_s = max(self._longest_s, seconds)

    def tokens_per_s(self, prior: float | None, now: float, *, queued: int) -> float | None:
        """The speed, drawn towards what is known beforehand; None while nothing is."""
        self._fade(now)
        if prior is not None and prior > 0:
            return (self._tokens + _PRIOR_TOKENS) / (self._seconds + _PRIOR_TOKENS / prior)
        if self._tokens < 1 or self._seconds <= 0:
            return None
        return max(self._tokens / self._seconds, queued / (_FARTHEST * self._longest_s))

    def _fade(self, now: float) -> None:
        if now > self._at:
            share = 0.5 ** ((now - self._at) / _HALF_LIFE_S)
            self._tokens, self._seconds, self._at = self._tokens * share, self._seconds * share, now
            self._longest_s *= share
