"""The gateway's figures in Prometheus text, with names after vLLM's, and beside them the engines' load and the monitor's verdict.

One registry for each gateway, so that tests and replicas never share counters. What a client chooses (a model's name, a
prompt) becomes a label only while there are few of them: an unbounded label is how a Prometheus server dies. Engines
are asked when somebody scrapes, with a time limit, so a replica that hangs costs its variant's and no others.
Rejected: Ray's own metrics as the only way out (they need Ray's metrics agent and a scrape of every node, and would
count everything twice), and figures that replicas push (the gateway would have to guess which of them are gone).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from llmray.serve.engine import EngineLoad

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_LABELS = ("model", "variant", "prompt")

EngineLoads = Mapping[str, Mapping[str, EngineLoad]]
"""Variant, replica, and how busy its engine is."""


class FewLabels:
    """The first `most` values as they are, every later one as `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._seen:
            if len(self._seen) >= self._most:
                return "other"
            self._seen.add(value)
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What an answer came to."""

    outcome: str
    """`stop`, `length`, `tool_calls`; or `cancelled`, `error`, `refused`, `deadline`."""
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float | None
    """None where no token came."""
    latency_s: float


class GatewayMetrics:
    def __init__(self, *, most_labels: int = 100) -> None:
        """Start from zero.

        Args:
            most_labels: values of each of the labels that clients choose, before `other`.
        """
        self._registry = registry = CollectorRegistry()
        self._model, self._prompt, self._code = (FewLabels(most_labels) for _ in range(3))
        self.success = Counter(
            "llmray_request_success", "Answers to their end", [*_LABELS, "finished_reason"], registry=registry
        )
        self.failure = Counter(
            "llmray_request_failure", "Answers that broke off", [*_LABELS, "reason"], registry=registry
        )
        self.refused = Counter("llmray_request_refused", "Requests refused", ["status", "code"], registry=registry)
        self.running = Gauge("llmray_num_requests_running", "Answers under way", ["variant"], registry=registry)
        self.waiting = Gauge(
            "llmray_num_requests_waiting", "Requests without a first token yet", ["variant"], registry=registry
        )
        self.ttft = self._histogram("time_to_first_token", "From the request to its first token", _SECONDS)
        self.tpot = self._histogram("time_per_output_token", "Between the tokens of an answer, mean", _TOKEN_SECONDS)
        self.latency = self._histogram("e2e_request_latency", "From the request to its last token", _SECONDS)
        self.prompt_tokens = Counter("llmray_prompt_tokens", "Tokens read", _LABELS, registry=registry)
        self.generation_tokens = Counter("llmray_generation_tokens", "Tokens generated", _LABELS, registry=registry)
        self._embedded = tuple(
            Counter(f"llmray_embedding_{name}", text, ["model"], registry=registry)
            for name, text in (("requests", "Embedding requests answered"), ("tokens", "Tokens embedded"))
        )
        self.feedback = Counter("llmray_feedback", "Feedback taken", ["kind"], registry=registry)
        self._late = _LateFigures()
        registry.register(self._late)

    def answer(self, model: str, variant: str, prompt: str | None) -> "AnswerFigures":
        """What counts one answer.

        Args:
            prompt: `name:version`; None without one.
        """
        return AnswerFigures(self, (self._model(model), variant, self._prompt(prompt) if prompt else "none"))

    def refuse(self, status: int, code: str | None) -> None:
        """Count a request that was answered with an error."""
        self.refused.labels(str(status), self._code(code or "none")).inc()

    def embed(self, model: str, tokens: int) -> None:
        """Count an embedding request that was answered."""
        for counter, amount in zip(self._embedded, (1, tokens), strict=True):
            counter.labels(model).inc(amount)

    def text(
        self, queues: Mapping[str, float], monitor: Mapping[str, Any] | None, engines: EngineLoads | None = None
    ) -> bytes:
        """Everything in Prometheus's text format.

        Args:
            queues: counters kept elsewhere, by full metric name (`…_total` for counters).
            monitor: the monitor's status; None where there is none or it does not answer.
            engines: those that answered.
        """
        self._late.queues, self._late.monitor, self._late.engines = dict(queues), monitor, engines or {}
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"llmray_{name}_seconds", text, _LABELS, buckets=buckets, registry=self._registry)


class AnswerFigures:
    """One answer, counted exactly once in each of its states."""

    def __init__(self, metrics: GatewayMetrics, labels: tuple[str, str, str]) -> None:
        self._metrics = metrics
        self._labels = labels
        self._state: Gauge | None = None

    def begun(self) -> None:
        """It waits for its first token."""
        self._enter(self._metrics.waiting)

    def first_token(self, ttft_s: float) -> None:
        """It has one."""
        self._enter(self._metrics.running)
        self._metrics.ttft.labels(*self._labels).observe(ttft_s)

    def ended(self, end: Ended) -> None:
        """It is over."""
        metrics, labels = self._metrics, self._labels
        self._enter(None)
        if end.outcome == "refused":
            return  # counted with its code, where the error is answered
        if end.outcome in ("error", "cancelled", "deadline"):
            metrics.failure.labels(*labels, end.outcome).inc()
        else:
            metrics.success.labels(*labels, end.outcome).inc()
            metrics.latency.labels(*labels).observe(end.latency_s)
        metrics.prompt_tokens.labels(*labels).inc(end.prompt_tokens)
        metrics.generation_tokens.labels(*labels).inc(end.completion_tokens)
        if end.ttft_s is not None and end.completion_tokens > 1:
            spacing_s = (end.latency_s - end.ttft_s) / (end.completion_tokens - 1)
            metrics.tpot.labels(*labels).observe(spacing_s)

    def _enter(self, state: Gauge | None) -> None:
        variant = self._labels[1]
        if self._state is not None:
            self._state.labels(variant).dec()
        if state is not None:
            state.labels(variant).inc()
        self._state = state


_ENGINE_GAUGES = {
    "llmray_kv_cache_usage_perc": ("Share of the KV cache in use, 0 to 1", "kv_used"),
    "llmray_engine_requests_running": ("Requests that an engine decodes", "running"),
    "llmray_engine_requests_waiting": ("Requests that an engine has read nothing of", "waiting"),
    "llmray_engine_waiting_tokens": ("Prompt tokens that an engine has still to read", "waiting_tokens"),
    "llmray_engine_prefill_tokens_per_second": ("Prompt tokens that an engine reads a second", "prefill_tokens_per_s"),
}


@dataclass(slots=True, eq=False)
class _LateFigures:
    """Figures that are read when somebody asks."""

    queues: Mapping[str, float] = field(default_factory=dict)
    monitor: Mapping[str, Any] | None = None
    engines: EngineLoads = field(default_factory=dict)

    def collect(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        families: list[CounterMetricFamily | GaugeMetricFamily] = []
        for name, value in self.queues.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            families.append(kind(name.removesuffix("_total"), name.replace("_", " "), value=value))
        up = GaugeMetricFamily(
            "llmray_monitor_up", "Whether the monitor answers", value=float(self.monitor is not None)
        )
        families.append(up)
        for name, value in _numbers(self.monitor or {}):
            if name in ("alarms", "observed"):
                families.append(CounterMetricFamily(f"llmray_monitor_{name}", f"Monitor: {name}", value=value))
            else:
                families.append(GaugeMetricFamily(f"llmray_monitor_{name}", f"Monitor: {name}", value=value))
        return families + self._engines()

    def _engines(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        families: list[CounterMetricFamily | GaugeMetricFamily] = []
        for name, (text, attribute) in _ENGINE_GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=["variant", "replica"])
            for variant, loads in self.engines.items():
                for replica, load in loads.items():
                    if (value := getattr(load, attribute)) is not None:
                        family.add_metric([variant, replica], float(value))
            families.append(family)
        return families


def _numbers(status: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The plain numbers of a monitor's status; a list (of alarms) counts as its length."""
    numbers = []
    for name, value in status.items():
        if isinstance(value, bool | int | float):
            numbers.append((name, float(value)))
        elif name == "alarms" and isinstance(value, list | tuple):
            numbers.append((name, float(len(value))))
    return numbers
