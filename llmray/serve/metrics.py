"""The gateway's figures in Prometheus text, with names after vLLM's, and the monitor's verdict beside them.

One registry for each gateway, so that tests and replicas never share counters. Rejected: Ray's own metrics as the only
way out (they need Ray's metrics agent and a scrape of every node).
"""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class GatewayMetrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "llmray_requests", "Requests answered", ["variant", "model_digest", "status"], registry=self._registry
        )
        self.running = Gauge("llmray_requests_running", "Requests under way", ["variant"], registry=self._registry)
        self.ttft = Histogram(
            "llmray_time_to_first_token_seconds",
            "From the request to its first token",
            ["variant"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.latency = Histogram(
            "llmray_e2e_request_latency_seconds",
            "From the request to its last token",
            ["variant"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter("llmray_prompt_tokens", "Tokens read", ["variant"], registry=self._registry)
        self.generation_tokens = Counter(
            "llmray_generation_tokens", "Tokens generated", ["variant"], registry=self._registry
        )
        self.feedback = Counter("llmray_feedback", "Feedback taken", ["kind"], registry=self._registry)
        self._late = _LateFigures()
        self._registry.register(self._late)

    def text(self, queues: Mapping[str, float], monitor: Mapping[str, Any] | None) -> bytes:
        """Everything in Prometheus's text format.

        Args:
            queues: counters kept elsewhere, by full metric name (`…_total` for counters).
            monitor: the monitor's status; None where there is none or it does not answer.
        """
        self._late.queues, self._late.monitor = dict(queues), monitor
        return generate_latest(self._registry)


class _LateFigures:
    """Figures that are read when somebody asks."""

    def __init__(self) -> None:
        self.queues: Mapping[str, float] = {}
        self.monitor: Mapping[str, Any] | None = None

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
