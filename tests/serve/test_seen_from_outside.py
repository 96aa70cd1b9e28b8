"""What a gateway shows of its requests: metrics, one line of log each, spans."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from memory_ports import Bench, BreakingEngine, LostEngine, SlowEngine
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from llmray.errors import ConfigError
from llmray.serve.core import Gateway
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineLoad, EngineRequest, TokenEvent
from llmray.serve.gateway import create_app
from llmray.serve.metrics import Ended, FewLabels, GatewayMetrics
from llmray.serve.ports import Ports
from llmray.serve.request_log import RequestLog, notes
from llmray.serve.traces import Traces, traces_to_collector
from llmray.serve.variants import GatewayConfig, Variant

CHAT: dict[str, Any] = {
    "model": "docs",
    "user": "eve",
    "messages": [{"role": "user", "content": "a secret of three"}],
}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DASHBOARD = Path(__file__).parents[2] / "serve_configs/grafana/llmray.json"

Scenario = Callable[[httpx.AsyncClient], Awaitable[Any]]


def run(bench: Bench, scenario: Scenario, traces: Traces | None = None) -> Any:
    async def scene() -> Any:
        app = create_app(bench.gateway, traces=traces)
        bench.gateway.start()
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            done = await scenario(client)
        await bench.gateway.close()
        return done

    return asyncio.run(scene())


def figures(text: str | bytes) -> dict[tuple[str, ...], float]:
    """Metric and the values of its labels to the value; what has no sample stands there with none."""
    text = text.decode() if isinstance(text, bytes) else text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "llmray.request"]


def test_an_answer_is_counted_in_each_of_its_states() -> None:
    metrics = GatewayMetrics()
    one = metrics.answer("docs", "stable", "ask:2")
    one.begun()
    assert figures(metrics.text({}, None))["llmray_num_requests_waiting", "stable"] == 1
    one.first_token(0.2)
    seen = figures(metrics.text({}, None))
    assert (seen["llmray_num_requests_waiting", "stable"], seen["llmray_num_requests_running", "stable"]) == (0, 1)
    one.ended(Ended(outcome="length", prompt_tokens=7, completion_tokens=5, ttft_s=0.2, latency_s=1.0))
    seen = figures(metrics.text({}, None))
    labels = ("docs", "ask:2", "stable")
    assert seen["llmray_num_requests_running", "stable"] == 0
    assert seen["llmray_request_success_total", "length", *labels] == 1
    assert seen["llmray_prompt_tokens_total", *labels] == 7
    assert seen["llmray_time_per_output_token_seconds_sum", *labels] == pytest.approx(0.2)
    two = metrics.answer("docs", "stable", None)
    two.begun()
    two.ended(Ended(outcome="error", prompt_tokens=0, completion_tokens=0, ttft_s=None, latency_s=1.0))
    seen = figures(metrics.text({}, None))
    assert seen["llmray_num_requests_waiting", "stable"] == 0
    assert seen["llmray_request_failure_total", "docs", "none", "error", "stable"] == 1
    assert ("llmray_request_success_total", "error", "docs", "none", "stable") not in seen


def test_labels_that_clients_choose_are_few() -> None:
    few = FewLabels(2)
    assert [few(value) for value in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]
    metrics = GatewayMetrics(most_labels=3)
    for number in range(1000):
        metrics.answer("docs", "stable", f"ask:{number}").first_token(0.1)
        metrics.refuse(400, f"code{number}")
    seen = figures(metrics.text({}, None))
    assert len([key for key in seen if key[0] == "llmray_time_to_first_token_seconds_count"]) == 4
    assert seen["llmray_request_refused_total", "other", "400"] == 997


def test_engines_say_how_busy_they_are_and_a_silent_one_is_left_out() -> None:
    async def loads(app: str) -> dict[str, EngineLoad]:
        if app == "silent":
            raise RuntimeError("no replica")
        busy = EngineLoad(running=2, waiting=1, waiting_tokens=30, prefill_tokens_per_s=None, kv_used=0.25)
        return {"r1": busy}

    gateway = Gateway(Ports(), backend=lambda app: EchoEngine(), watcher=lambda app: None, engine_loads=loads)  # type: ignore[arg-type, return-value]
    variants = [Variant(name="stable", app="busy", digest="a"), Variant(name="canary", app="silent", digest="b")]
    gateway.configure(GatewayConfig(model="docs", variants=variants))
    seen = figures(asyncio.run(gateway.metrics_text()))
    assert seen["llmray_kv_cache_usage_perc", "r1", "stable"] == 0.25
    assert seen["llmray_engine_waiting_tokens", "r1", "stable"] == 30
    assert not [key for key in seen if "canary" in key or key[0] == "llmray_engine_prefill_tokens_per_second"]


def test_one_line_for_each_request_and_never_a_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmray.request")
    bench = Bench()

    async def scenario(client: httpx.AsyncClient) -> None:
        named = {"model": "docs", "prompt": "ask@production", "variables": {"topic": "x", "question": "a secret"}}
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/v1/chat/completions", json={**named, "messages": [], "stream": True})
        await client.post("/v1/chat/completions", json={**CHAT, "model": "gpt-5"})
        await client.post("/v1/chat/completions", content=b"{")
        await client.get("/healthz")

    run(bench, scenario)
    whole, stream, unknown, broken = lines(caplog)
    assert whole["output_ids"] == list(bench.registry.outputs)[:1]
    assert (whole["status"], whole["model"], whole["variant"], whole["finish_reasons"]) == (
        200,
        "docs",
        "stable",
        ["stop"],
    )
    assert (whole["prompt_tokens"], whole["completion_tokens"]) == (4, 4)
    assert (stream["prompt"], stream["finish_reasons"], stream["path"]) == ("ask:2", ["stop"], "/v1/chat/completions")
    assert (unknown["status"], unknown["code"], unknown["model"]) == (404, "model_not_found", "gpt-5")
    assert (broken["status"], broken["code"]) == (400, "invalid_json")
    assert "secret" not in caplog.text


def test_what_the_door_refuses_has_a_line_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmray.request")

    async def scenario(client: httpx.AsyncClient) -> None:
        await client.get("/v1/models", headers=[(f"x-{number}", "a") for number in range(1000)])

    run(Bench(), scenario)
    [line] = lines(caplog)
    assert (line["status"], line["code"]) == (431, "headers_too_large")


def test_what_fails_is_logged_as_an_error_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmray.request")

    async def ask(client: httpx.AsyncClient) -> str:
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        return (await client.get("/metrics")).text

    run(Bench(stable=BreakingEngine()), ask)
    seen = figures(run(Bench(stable=LostEngine()), ask))
    assert seen["llmray_request_refused_total", "model_unavailable", "503"] == 1
    assert seen["llmray_num_requests_waiting", "stable"] == 0
    half, lost = lines(caplog)
    assert (half["status"], half["code"], half["finish_reasons"]) == (200, "answer_broke_off", ["error"])
    assert (lost["status"], lost["code"]) == (503, "model_unavailable")
    assert [record.levelno for record in caplog.records if record.name == "llmray.request"] == [logging.ERROR] * 2


def test_a_bug_is_a_500_in_log_and_metrics(caplog: pytest.LogCaptureFixture) -> None:
    async def app(*_: Any) -> None:
        raise ZeroDivisionError

    metrics = GatewayMetrics()
    scope = {"type": "http", "path": "/v1/models", "method": "GET", "headers": [], "client": ("10.1.2.3", 4)}
    with pytest.raises(ZeroDivisionError):
        asyncio.run(RequestLog(app, metrics=metrics)(scope, None, None))  # type: ignore[arg-type]
    [line] = lines(caplog)
    assert (line["status"], line["code"], line["client"]) == (500, "internal_error", "10.1.2.3")
    assert figures(metrics.text({}, None))["llmray_request_refused_total", "internal_error", "500"] == 1


def test_a_flood_of_refusals_is_counted_rather_than_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmray.request")
    now = 1000.0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        notes().code = "overloaded"
        await send({"type": "http.response.start", "status": 429})

    async def send(_: Any) -> None: ...

    async def scenario() -> None:
        nonlocal now
        log = RequestLog(app, metrics=metrics, clock=lambda: now, most_refusals_per_s=3)
        scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
        for _ in range(1000):
            await log(dict(scope), None, send)  # type: ignore[arg-type]
        now += 1
        await log(dict(scope), None, send)  # type: ignore[arg-type]

    metrics = GatewayMetrics()
    asyncio.run(scenario())
    found = lines(caplog)
    assert (len(found), found[-1]["refusals_unwritten"]) == (4, 997)
    assert figures(metrics.text({}, None))["llmray_request_refused_total", "overloaded", "429"] == 1001


def test_who_left_was_refused_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmray.request")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 499})

    async def send(_: Any) -> None: ...

    async def scenario() -> None:
        log = RequestLog(app, metrics=metrics, clock=lambda: 1000.0, most_refusals_per_s=1)
        for _ in range(3):
            await log({"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}, None, send)  # type: ignore[arg-type]

    metrics = GatewayMetrics()
    asyncio.run(scenario())
    assert [line["status"] for line in lines(caplog)] == [499] * 3
    assert not any(name == "llmray_request_refused_total" for name, *_ in figures(metrics.text({}, None)))


def spans_of(exporter: InMemorySpanExporter) -> dict[str, Any]:
    return {span.name: span for span in exporter.get_finished_spans()}


class TracedEngine(EchoEngine):
    """The echo engine as a replica runs it: in spans of its own, within those of the gateway."""

    def __init__(self, traces: Traces) -> None:
        super().__init__()
        self._traces = traces

    def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        carried = EngineRequest(id=request.id, messages=request.messages, trace=notes().trace)
        return self._traces.engine(carried, self.info, self.load(), super().submit(carried))


def test_spans_go_from_the_client_through_the_gateway_to_the_engine() -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(exporter), service="test")

    async def scenario(client: httpx.AsyncClient) -> None:
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers={"traceparent": PARENT})

    run(Bench(stable=TracedEngine(traces)), scenario, traces)
    spans = spans_of(exporter)
    assert set(spans) == {"chat", "engine", "queue and prefill", "decode"}
    gateway, engine = spans["chat"], spans["engine"]
    assert f"{gateway.parent.span_id:016x}" == PARENT.split("-")[2]
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {PARENT.split("-")[1]}
    assert engine.parent.span_id == gateway.context.span_id
    assert spans["decode"].parent.span_id == engine.context.span_id
    assert [event.name for event in engine.events] == ["first token", "finished"]
    assert gateway.attributes["gen_ai.request.model"] == "docs"
    assert gateway.attributes["gen_ai.usage.output_tokens"] == 4
    assert gateway.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert gateway.attributes["http.response.status_code"] == 200
    assert "secret" not in json.dumps([dict(span.attributes) for span in spans.values()])


def test_spans_of_what_fails_and_of_what_is_left_end() -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(exporter), service="test")
    request = EngineRequest(id="a", prompt="x", trace=PARENT)

    async def scenario() -> None:
        for engine in (BreakingEngine(), SlowEngine()):
            events = traces.engine(request, engine.info, engine.load(), engine.submit(request))
            assert (await anext(events)).num_tokens == 1
            if isinstance(engine, BreakingEngine):
                with pytest.raises(RuntimeError):
                    await anext(events)
            await events.aclose()

    asyncio.run(scenario())
    ended = [span.status.status_code.name for span in exporter.get_finished_spans() if span.name == "engine"]
    assert len(exporter.get_finished_spans()) == 6
    assert ended == ["ERROR", "UNSET"]


def test_without_a_collector_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert traces_to_collector("x", {}) is None
    assert traces_to_collector("x", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}) is None
    made = traces_to_collector("x", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert made is not None
    made.close()
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install llmray\[otel\]"):
        traces_to_collector("x", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"})


def test_dashboard_shows_only_what_is_exported() -> None:
    text = asyncio.run(Bench().gateway.metrics_text()).decode()
    exported = {family.name for family in text_string_to_metric_families(text)}
    endings = ("", "_total", "_bucket", "_sum", "_count")
    names = {f"{family}{ending}" for family in exported for ending in endings}
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    expressions += [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]
    assert len(expressions) > 20
    for expression in expressions:
        found = set(re.findall(r"llmray_\w+", expression))
        assert found, expression
        assert found <= names, (expression, found - names)
