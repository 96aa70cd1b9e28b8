"""The monitor behind Serve: batches of observations in, alarms out, nothing on the request path.

One detector a model, all with the same reference: a canary that draws other traffic is judged by its own. Alarms leave
through a port and are kept until it took them, under an id that makes a second delivery harmless. State goes to a
store after each batch, so a replica that dies costs what it had not yet seen. Run one replica: two would each see half
of the traffic and take twice as long, though neither would be wrong.

No `from __future__ import annotations` here: Serve inspects the constructor.
"""

import asyncio
import json
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from llmray import storage
from llmray.digest import digest_of, fraction_of
from llmray.errors import NotFoundError
from llmray.monitor.detector import Detector
from llmray.monitor.reference import make_reference

log = logging.getLogger(__name__)

_MAX_MODELS = 16
_RECENT = 20


class Observation(TypedDict):
    """What the tap says of one answer."""

    output_id: str
    at: float
    """When the request arrived, seconds since 1970."""
    model_digest: str
    variant: str
    text: str
    """The person's last message: what is watched."""
    completion: str


class AlertSink(Protocol):
    async def alarm(self, payload: Mapping[str, Any]) -> None:
        """Keep an alarm; the same `alarm_id` may come again. Raises when it could not."""
        ...


class StateStore(Protocol):
    def load(self) -> Mapping[str, Any] | None:
        """What was saved last; None at the very start."""
        ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state, whole or not at all."""
        ...


class FileState:
    """State in one file, at any URI."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def load(self) -> Mapping[str, Any] | None:
        try:
            state: Mapping[str, Any] = json.loads(storage.read_bytes(self._uri))
        except NotFoundError:
            return None
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        storage.write_bytes(self._uri, json.dumps(state).encode())


class MonitorReplica:
    """Watches what people ask each model."""

    def __init__(
        self,
        reference: Sequence[str],
        *,
        alerts: AlertSink | None = None,
        average_run_length: float = 10_000.0,
        neighbours: int = 5,
        max_scores: int = 4096,
        seed: int = 0,
        state_uri: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Measure the reference, and take up saved state if it belongs to the same settings.

        Args:
            reference: usual messages (`reference.usual_messages` gives them).
            alerts: where alarms go; None keeps them in `status` alone.
            average_run_length: mean number of usual requests between false alarms, at least; an alarm among the first n
                usual requests has a chance of at most n / average_run_length.
            neighbours: reference messages that a message is compared with.
            max_scores: scores that each model's detector remembers.
            seed: of the tie-breaking.
            state_uri: file that keeps the state over restarts; None keeps none.
            clock: seconds since 1970.
        """
        self._reference = make_reference(reference, neighbours=neighbours)
        self._alerts = alerts
        self._average_run_length = average_run_length
        self._max_scores = max_scores
        self._identity = digest_of(
            {
                "reference": sorted(set(reference)),
                "neighbours": neighbours,
                "seed": seed,
                "average_run_length": average_run_length,
                "max_scores": max_scores,
            }
        )
        self._seed = seed
        self._clock = clock
        self._store: StateStore | None = FileState(state_uri) if state_uri else None
        self._models: OrderedDict[str, _Watched] = OrderedDict()
        self._observed = 0
        self._alarms = 0
        self._undelivered: dict[str, Mapping[str, Any]] = {}
        self._delivering = asyncio.Lock()
        self._restore()

    async def observe(self, batch: Sequence[Observation]) -> None:
        """Take a batch of observations, in the order in which they came."""
        by_model: dict[str, list[Observation]] = {}
        for observation in batch:
            by_model.setdefault(observation["model_digest"], []).append(observation)
        self._observed += len(batch)
        for digest, observations in by_model.items():
            self._watch(digest, observations)
        if batch and self._store is not None:
            self._store.save(self._state())
        await self._deliver()

    async def status(self) -> dict[str, Any]:
        """Totals as plain numbers, for `/metrics`, and each model's verdict under `models`."""
        await self._deliver()
        verdicts = {digest: watched.detector.verdict() for digest, watched in self._models.items()}
        return {
            "observed": self._observed,
            "alarms": self._alarms,
            "alarm": any(verdict.state == "alarm" for verdict in verdicts.values()),
            "statistic": max((verdict.statistic for verdict in verdicts.values()), default=0.0),
            "threshold": self._average_run_length,
            "undelivered": len(self._undelivered),
            "models": {
                digest: {"state": verdict.state, "statistic": verdict.statistic, "n": verdict.n}
                for digest, verdict in verdicts.items()
            },
        }

    async def reset(self, model_digest: str, reason: str, *, anew: bool = False) -> None:
        """Take a model out of alarm.

        Args:
            anew: forget the scores seen so far; by default they count as usual from now on.

        Raises:
            NotFoundError: no such model was seen.
            InputError: no reason.
        """
        if model_digest not in self._models:
            raise NotFoundError(f"the monitor has seen no request to model {model_digest[:12]}")
        watched = self._models[model_digest]
        watched.detector.reset(reason)
        if anew:
            watched.detector = self._detector()
            watched.recent.clear()
        watched.resets += 1
        log.info("monitor: %s starts over: %s", model_digest[:12], reason)
        if self._store is not None:
            self._store.save(self._state())

    def _watch(self, digest: str, observations: Sequence[Observation]) -> None:
        watched = self._models.get(digest) or _Watched(self._detector())
        self._models[digest] = watched
        self._models.move_to_end(digest)
        if len(self._models) > _MAX_MODELS:
            self._models.popitem(last=False)
        if watched.detector.verdict().state == "alarm":
            return
        scores = self._reference.score.scores([observation["text"] for observation in observations])
        for observation, score in zip(observations, scores, strict=True):
            n = watched.detector.verdict().n
            verdict = watched.detector.update([score], [self._uniforms(digest, watched.resets, n)])
            watched.recent.append((observation["output_id"], score))
            if verdict.state == "alarm":
                self._raise_alarm(digest, watched, observation)
                return

    def _detector(self) -> Detector:
        return Detector(
            self._reference.calibration,
            average_run_length=self._average_run_length,
            max_scores=self._max_scores,
        )

    def _raise_alarm(self, digest: str, watched: "_Watched", last: Observation) -> None:
        verdict = watched.detector.verdict()
        usual = sorted(self._reference.calibration)[int(0.95 * len(self._reference.calibration))]
        payload = {
            "alarm_id": digest_of({"model": digest, "output": last["output_id"], "of": self._identity})[:24],
            "model_digest": digest,
            "detector": self._identity,
            "at": self._clock(),
            "asked_at": last["at"],
            "statistic": verdict.statistic,
            "average_run_length": self._average_run_length,
            "after": verdict.n,
            "usual_score_95": usual,
            "recent": [{"output_id": output_id, "score": score} for output_id, score in watched.recent],
        }
        self._alarms += 1
        self._undelivered[str(payload["alarm_id"])] = payload
        log.warning("monitor: drift alarm for model %s after %s requests", digest[:12], f"{verdict.n:,}")

    async def _deliver(self) -> None:
        sink = self._alerts
        if sink is None:
            self._undelivered.clear()
            return
        if self._delivering.locked():  # whoever does it may wait long, and nobody else needs to
            return
        async with self._delivering:
            for alarm_id, payload in list(self._undelivered.items()):
                try:
                    await sink.alarm(payload)
                except Exception as error:  # the sink may be down in any way; the alarm stays and is tried again
                    log.warning("monitor: alarm %s is not delivered yet: %s", alarm_id, error)
                    return
                del self._undelivered[alarm_id]

    def _uniforms(self, digest: str, resets: int, n: int) -> tuple[float, float]:
        key = f"{self._seed}:{digest}:{resets}:{n}"
        return fraction_of(f"{key}:tie"), fraction_of(f"{key}:evict")

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self._identity,
            "observed": self._observed,
            "alarms": self._alarms,
            "undelivered": dict(self._undelivered),
            "models": {
                digest: {
                    "detector": watched.detector.to_dict(),
                    "resets": watched.resets,
                    "recent": list(watched.recent),
                }
                for digest, watched in self._models.items()
            },
        }

    def _restore(self) -> None:
        state = self._store.load() if self._store is not None else None
        if state is None:
            return
        if state["identity"] != self._identity:
            log.warning("monitor: the saved state belongs to another reference or other settings; it starts anew")
            return
        self._observed, self._alarms = state["observed"], state["alarms"]
        self._undelivered = dict(state["undelivered"])
        for digest, saved in state["models"].items():
            watched = _Watched(Detector.from_dict(saved["detector"]))
            watched.resets = saved["resets"]
            watched.recent.extend((output_id, score) for output_id, score in saved["recent"])
            self._models[digest] = watched


class _Watched:
    """One model's detector and the last things that it saw."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.resets = 0
        self.recent: deque[tuple[str, float]] = deque(maxlen=_RECENT)
