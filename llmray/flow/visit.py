"""People at the door: ask a served model questions over HTTP, several at a time, every other answer by stream.

The public doors only: OpenAI's own client for answers, `llmray.client.http` for what it lacks. A request that fails or
is cut short is a reply with an error, never an exception: whoever rolls a model out has to count them.
"""

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from llmray.client.http import Client
from llmray.flow.traffic import ANNOTATOR, RULE, Question, judge
from llmray.serve.control import wait_for

_CHUNK = 10
"""Questions between two looks at the monitor."""
_PATIENCE_S = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    question: Question
    output_id: str
    """Under which the answer is kept; empty where there is none."""
    text: str
    model_digest: str
    """Which model answered."""
    seconds: float
    """From the request to the last token."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What the monitor has come to."""

    answers: int
    """Seen since it was first deployed."""
    statistic: float
    alarms: int
    """Raised since it was first deployed."""
    undelivered: int
    """Alarms that are not in the registry yet."""


class Observer(Protocol):
    def monitor(self) -> Observed | None:
        """What the monitor says; None where it does not answer now."""
        ...

    def ask(self, questions: Sequence[Question], *, temperature: float, seed: int = 0) -> list[Reply]:
        """A reply to each question, in their order."""
        ...


class Visitors:
    """A few people who ask a gateway."""

    def __init__(self, url: str, *, model: str, prompt: str, max_tokens: int, at_once: int = 4) -> None:
        """Ask at `url` (ending in `/v1`), by the prompt of this reference, whose variable is `question`."""
        import openai  # a second to import, and most who import this never ask

        self._broken = (openai.OpenAIError, CutShortError)
        self._openai = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
        self._gateway = Client(url)
        self._model, self._prompt = model, prompt
        self._max_tokens, self._at_once = max_tokens, at_once

    def ask(self, questions: Sequence[Question], *, temperature: float, seed: int = 0) -> list[Reply]:
        """A reply to each question, in their order."""

        def one(number: int) -> Reply:
            question = questions[number]
            return self.reply(
                question,
                visitor=question.id,
                temperature=temperature,
                seed=seed + number,
                stream=number % 2 == 1,
            )

        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(one, range(len(questions))))

    def monitor(self) -> Observed | None:
        """What the monitor says by way of `/metrics`; None where it does not answer now."""
        values = {sample.name: sample.value for sample in self._gateway.metrics() if not sample.labels}
        if not values["llmray_monitor_up"]:
            return None
        return Observed(
            answers=int(values["llmray_monitor_observed_total"]),
            statistic=values["llmray_monitor_statistic"],
            alarms=int(values["llmray_monitor_alarms_total"]),
            undelivered=int(values["llmray_monitor_undelivered"]),
        )

    def close(self) -> None:
        self._openai.close()

    def reply(self, question: Question, *, visitor: str, seed: int, stream: bool, temperature: float = 0.0) -> Reply:
        """One reply to one visitor; who it is decides which variant answers."""
        began = time.monotonic()
        ask = self._stream if stream else self._whole
        try:
            output_id, text, digest = ask(
                {
                    "model": self._model,
                    "messages": [],
                    "temperature": temperature,
                    "seed": seed,
                    "max_tokens": self._max_tokens,
                    "user": visitor,
                    "extra_body": {"prompt": self._prompt, "variables": {"question": question.text}},
                }
            )
            error = None
        except self._broken as failure:
            output_id, text, digest, error = "", "", "", f"{type(failure).__name__}: {failure}"
        return Reply(
            question=question,
            output_id=output_id,
            text=text,
            model_digest=digest,
            seconds=time.monotonic() - began,
            error=error,
        )

    def _whole(self, request: dict[str, Any]) -> tuple[str, str, str]:
        answer = self._openai.chat.completions.create(**request)
        if answer.choices[0].finish_reason is None:
            raise CutShortError(f"answer {answer.id} has no end")
        return answer.id, answer.choices[0].message.content or "", _digest(answer)

    def _stream(self, request: dict[str, Any]) -> tuple[str, str, str]:
        chunks = list(self._openai.chat.completions.create(**request, stream=True))
        if not chunks or chunks[-1].choices[0].finish_reason is None:
            raise CutShortError(f"stream {chunks[-1].id if chunks else ''} has no end")
        return chunks[-1].id, "".join(chunk.choices[0].delta.content or "" for chunk in chunks), _digest(chunks[-1])


class Watch:
    """Asks in small rounds and looks at the monitor after each."""

    def __init__(self, visitors: Observer) -> None:
        """Count from here.

        Raises:
            UnavailableError: the monitor does not answer within 30 s.
        """
        self._visitors = visitors
        self._before = wait_for(visitors.monitor, timeout_s=_PATIENCE_S, what="the monitor")
        self.asked = 0
        self.alarms = 0
        """Raised since, all of them in the registry."""
        self.curve: list[tuple[int, float]] = []
        """Answers asked for so far, and the monitor's statistic then."""

    def ask(
        self, questions: Sequence[Question], *, temperature: float, seed: int, until_alarm: bool = False
    ) -> list[Reply]:
        """A reply to each question, in their order; those left when an alarm ends it have none.

        Raises:
            UnavailableError: the monitor has not seen what was answered, or not handed on its alarms, within 30 s.
        """
        replies: list[Reply] = []
        size = 4 if until_alarm else _CHUNK
        for start in range(0, len(questions), size):
            part = self._visitors.ask(questions[start : start + size], temperature=temperature, seed=seed + start)
            replies += part
            self.asked += sum(reply.error is None for reply in part)
            self._look()
            if until_alarm and self.alarms:
                break
        return replies

    def _look(self) -> None:
        now = wait_for(self._settled, timeout_s=_PATIENCE_S, what="the monitor to see what was answered")
        self.alarms = now.alarms - self._before.alarms
        self.curve.append((self.asked, now.statistic))

    def _settled(self) -> Observed | None:
        """What the monitor says once it is done: it watches off the request path, and its alarms travel too."""
        now = self._visitors.monitor()
        done = now is not None and now.answers - self._before.answers >= self.asked and not now.undelivered
        return now if done else None


def annotate(gateway: Client, first: Sequence[Reply], second: Sequence[Reply]) -> list[dict[str, Any]]:
    """Judge each pair of answers by the open rule, and hand the feedback in at the public door."""

    def one(pair: tuple[Reply, Reply]) -> list[dict[str, Any]]:
        a, b = pair
        if a.error or b.error:
            return []
        said = judge(a.question, a.text, b.text)
        by: dict[str, Any] = {"source": ANNOTATOR, "rule": RULE}
        lines = [{"kind": "thumb", "output_id": a.output_id, "value": said.thumb, "f1": said.first_f1}]
        gateway.thumb(a.output_id, said.thumb, **by)
        if said.correction is not None:
            gateway.correct(a.output_id, said.correction, **by)
            lines.append({"kind": "correction", "output_id": a.output_id, "value": said.correction})
        if said.preferred is not None:
            better, worse = (a, b) if said.preferred == 0 else (b, a)
            gateway.prefer(better.output_id, worse.output_id, **by)
            lines.append({"kind": "preference", "output_id": better.output_id, "value": worse.output_id})
        return lines

    with ThreadPoolExecutor(4) as pool:
        return [line for lines in pool.map(one, zip(first, second, strict=True)) for line in lines]


class CutShortError(Exception):
    """An answer that ended without a finish reason; never leaves this file."""


class Crowd:
    """Visitors who ask without pause for the length of a block, each question under a name of its own."""

    def __init__(self, visitors: Visitors, questions: Sequence[Question], *, size: int = 2) -> None:
        self.replies: list[Reply] = []
        """Everything that was answered, or not."""
        self._visitors = visitors
        self._turns = enumerate(itertools.cycle(questions))
        self._size = size
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "Crowd":
        self._pool = ThreadPoolExecutor(self._size)
        self._asking = [self._pool.submit(self._ask_on) for _ in range(self._size)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for asking in self._asking:
            asking.result()

    def _ask_on(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number, question = next(self._turns)
            reply = self._visitors.reply(question, visitor=f"visitor-{number}", seed=number, stream=number % 2 == 1)
            with self._lock:
                self.replies.append(reply)


def _digest(answer: Any) -> str:
    return str((answer.model_extra or {}).get("llmray", {}).get("model_digest", ""))
