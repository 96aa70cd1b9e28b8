"""The gateway's routes over ports in memory: no cluster."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx
import orjson
import pytest
from memory_ports import Bench, BreakingEngine, LostEngine, SlowEngine

from llmray.errors import UnavailableError
from llmray.serve.core import Gateway
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineRequest, TokenEvent
from llmray.serve.gateway import create_app
from llmray.serve.ports import Ports
from llmray.serve.protocol import MAX_BODY_BYTES, ChatRequest, parse
from llmray.serve.tally import Tally

CHAT = {"model": "docs", "messages": [{"role": "user", "content": "one two three"}]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def run(bench: Bench, scenario: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """Play a scenario against a started gateway, and stop it cleanly."""

    async def play() -> Any:
        transport = httpx.ASGITransport(create_app(bench.gateway), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            bench.gateway.start()
            try:
                return await scenario(client)
            finally:
                await bench.gateway.close()

    return asyncio.run(play())


def post(bench: Bench, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return run(bench, lambda client: client.post(path, content=content))


def test_chat_answers_and_says_where_from() -> None:
    bench = Bench()
    response = post(bench, "/v1/chat/completions", CHAT)
    body = response.json()
    assert response.status_code == 200
    assert body["choices"][0]["message"]["content"] == "one two three"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert response.headers["x-llmray-output-id"] == body["id"] == body["llmray"]["output_id"]
    record = bench.registry.outputs[body["id"]]
    assert (record.completion, record.model_digest, record.variant) == ("one two three", "a" * 64, "stable")
    assert record.latency_s >= (record.ttft_s or 0) > 0
    [seen] = bench.monitor.seen
    assert (seen["text"], seen["completion"], seen["output_id"]) == ("one two three", "one two three", body["id"])


def test_stream_adds_up_and_ends_with_usage() -> None:
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    response = post(Bench(), "/v1/chat/completions", body)
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [orjson.loads(line) for line in lines]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "one two three"
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 6


def test_completion_honours_stop_and_max_tokens() -> None:
    stopped = post(Bench(), "/v1/completions", {"model": "docs", "prompt": "a b c d", "stop": " c"}).json()
    assert (stopped["choices"][0]["text"], stopped["choices"][0]["finish_reason"]) == ("a b", "stop")
    default = post(Bench(), "/v1/completions", {"model": "docs", "prompt": "a " * 20}).json()
    assert (default["usage"]["completion_tokens"], default["choices"][0]["finish_reason"]) == (16, "length")
    short = post(Bench(), "/v1/completions", {"model": "docs", "prompt": ["a b c d"], "max_tokens": 2}).json()
    assert (short["choices"][0]["text"], short["choices"][0]["finish_reason"]) == ("a b", "length")


def test_prompt_is_rendered_before_the_messages_and_sets_defaults() -> None:
    bench = Bench()
    body = {
        "model": "docs",
        "prompt": "ask@production",
        "variables": {"topic": "{question}", "question": "why so many words"},
        "messages": [],
    }
    answer = post(bench, "/v1/chat/completions", body).json()
    assert answer["choices"][0]["message"]["content"] == "why so many"  # the prompt's own max_tokens
    assert answer["llmray"]["prompt"] == "ask:2"
    record = bench.registry.outputs[answer["id"]]
    assert record.prompt_reference == "ask@production"
    assert record.prompt_digest == "d" * 64
    assert [message["content"] for message in record.messages] == [
        "Answer about {question}, in {braces}.",
        "why so many words",
    ]
    over = post(bench, "/v1/chat/completions", body | {"max_tokens": 1}).json()
    assert over["choices"][0]["message"]["content"] == "why"


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"n": 0}, 400, "n", "invalid_value"),
        ({"n": 129}, 400, "n", "invalid_value"),
        ({"n": "2"}, 400, "n", "invalid_value"),
        ({"tools": [TOOL]}, 400, "tools", "unsupported_value"),
        ({"tools": [TOOL], "stream": True}, 400, "tools", "unsupported_value"),
        ({"tools": [{"type": "function"}]}, 400, "tools.0.function", "invalid_value"),
        ({"tools": [TOOL, TOOL]}, 400, "tools", "invalid_value"),
        ({"tool_choice": "required"}, 400, "tool_choice", "invalid_value"),
        ({"tool_choice": "whatever"}, 400, "tool_choice", "invalid_value"),
        ({"logit_bias": {"7": 1}}, 400, "logit_bias", "unsupported_value"),
        ({"logit_bias": {"seven": 1}}, 400, "logit_bias.seven", "invalid_value"),
        ({"top_logprobs": 3}, 400, "top_logprobs", "invalid_value"),
        ({"reasoning_effort": "high"}, 400, "reasoning_effort", "unsupported_value"),
        ({"service_tier": "priority"}, 400, "service_tier", "unsupported_value"),
        ({"timeout_s": 0}, 400, "timeout_s", "invalid_value"),
        ({"documents": [{"score": 1}]}, 400, "documents.0.id", "invalid_value"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", "unsupported_value"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_value"),
        ({"temprature": 1}, 400, "temprature", "unknown_parameter"),
        ({"temperature": 3}, 400, "temperature", "invalid_value"),
        ({"temperature": "hot"}, 400, "temperature", "invalid_value"),
        ({"top_p": 0}, 400, "top_p", "invalid_value"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 400, "max_tokens", "invalid_value"),
        ({"stop": ["a"] * 5}, 400, "stop", "invalid_value"),
        ({"messages": []}, 400, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages.0.content",
            "invalid_value",
        ),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"prompt": "ask@staging"}, 404, "prompt", "prompt_not_found"),
        ({"prompt": "no reference"}, 404, "prompt", "prompt_not_found"),
        ({"prompt": "ask@production"}, 400, "variables", "missing_variable"),
        (
            {"prompt": "ask:2", "variables": {"topic": "a", "question": "b", "more": "c"}},
            400,
            "variables",
            "unknown_variable",
        ),
        ({"variables": {"a": "b"}}, 400, "variables", "invalid_value"),
        ({"messages": [{"role": "user", "content": "w " * 9000}]}, 400, "messages", "context_length_exceeded"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(change: dict[str, Any], status: int, param: str, code: str) -> None:
    bench = Bench()
    response = post(bench, "/v1/chat/completions", CHAT | change)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["message"]
    assert not bench.registry.outputs


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b'{"model": "docs", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b" " * (MAX_BODY_BYTES + 1), 413),
    ],
)
def test_hostile_bodies_get_openai_shaped_errors(body: bytes, status: int) -> None:
    response = post(Bench(), "/v1/chat/completions", body)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_values_that_ask_for_nothing_are_taken() -> None:
    nothing = {"n": 1, "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "tools": None, "seed": None}
    parsed = parse(ChatRequest, orjson.dumps(CHAT | nothing | {"stop": "x", "response_format": {"type": "text"}}))
    assert parsed.stop == ["x"]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    parsed = parse(ChatRequest, orjson.dumps(CHAT | {"messages": [{"role": "developer", "content": parts}]}))
    assert parsed.messages[0].plain() == {"role": "system", "content": "ab"}


def test_unknown_paths_and_methods_have_openai_shape() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for response in (await client.get("/v1/nothing"), await client.get("/v1/chat/completions")):
            assert response.status_code in (404, 405)
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    run(Bench(), scenario)


def test_feedback_follows_the_answer_at_once_and_unknown_outputs_are_404() -> None:
    bench = Bench()

    async def scenario(client: httpx.AsyncClient) -> None:
        first, second = [(await client.post("/v1/chat/completions", json=CHAT)).json()["id"] for _ in range(2)]
        for body in (
            {"output_id": first, "kind": "thumb", "value": "up"},
            {"output_id": first, "kind": "rating", "value": 4, "source": "eve"},
            {"output_id": first, "kind": "correction", "value": "better"},
            {"output_id": first, "kind": "preference", "value": None, "other_output_id": second},
        ):
            assert (await client.post("/v1/feedback", json=body)).status_code == 200
        missing = await client.post("/v1/feedback", json={"output_id": "none", "kind": "thumb", "value": "up"})
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "output_not_found"
        for body in (
            {"output_id": first, "kind": "thumb", "value": "sideways"},
            {"output_id": first, "kind": "rating", "value": 6},
            {"output_id": first, "kind": "rating", "value": True},
            {"output_id": first, "kind": "preference", "value": None},
            {"output_id": first, "kind": "preference", "value": None, "other_output_id": first},
            {"output_id": first, "kind": "applause", "value": 1},
        ):
            assert (await client.post("/v1/feedback", json=body)).status_code == 400

    run(bench, scenario)
    assert [(feedback.kind, dict(feedback.value)) for feedback in bench.registry.feedback] == [
        ("thumb", {"thumb": "up"}),
        ("rating", {"rating": 4}),
        ("correction", {"text": "better"}),
        ("preference", {}),
    ]


def test_registry_outage_stops_no_answer_and_loses_none() -> None:
    bench = Bench()

    async def scenario(client: httpx.AsyncClient) -> None:
        prompted = CHAT | {"prompt": "ask@production", "variables": {"topic": "a", "question": "b"}}
        assert (await client.post("/v1/chat/completions", json=prompted)).status_code == 200
        bench.registry.up = False
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=prompted)).status_code == 200
        body = {"output_id": "out1", "kind": "thumb", "value": "up"}
        assert (await client.post("/v1/feedback", json=body)).status_code == 503
        bench.registry.up = True

    run(bench, scenario)
    assert sorted(bench.registry.outputs) == ["out1", "out2", "out3"]


def test_lost_variant_is_answered_by_another() -> None:
    async def scenario(client: httpx.AsyncClient) -> list[int]:
        return [
            (await client.post("/v1/chat/completions", json=CHAT | {"user": f"u{n}"})).status_code for n in range(10)
        ]

    assert run(Bench(canary_weight=100.0, canary=LostEngine()), scenario) == [503] * 10
    bench = Bench(canary_weight=50.0, canary=LostEngine())
    statuses = run(bench, scenario)
    assert 200 in statuses
    traffic = bench.gateway.traffic()
    assert traffic["canary"].errors == traffic["canary"].requests > 0
    assert traffic["stable"].errors == 0


def test_whole_answer_whose_replica_dies_is_begun_anew() -> None:
    class DyingEngine(EchoEngine):
        deaths = 2

        async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
            yield TokenEvent("one", 1, 3)
            if self.deaths:
                self.deaths -= 1
                raise UnavailableError("killed")
            yield TokenEvent(" two", 1, 3, "stop")

    bench = Bench(stable=DyingEngine())
    assert post(bench, "/v1/chat/completions", CHAT).json()["choices"][0]["message"]["content"] == "one two"
    assert bench.gateway.traffic()["stable"].errors == 2
    bench = Bench(stable=DyingEngine())
    assert "killed" in post(bench, "/v1/chat/completions", CHAT | {"stream": True}).text


def test_answer_that_breaks_off_says_so() -> None:
    bench = Bench(stable=BreakingEngine())
    whole = post(bench, "/v1/chat/completions", CHAT)
    assert whole.status_code == 500
    assert "a bug" not in whole.text
    bench = Bench(stable=BreakingEngine())
    stream = post(bench, "/v1/chat/completions", CHAT | {"stream": True})
    assert "half" in stream.text
    assert '"code":"answer_broke_off"' in stream.text
    assert "[DONE]" not in stream.text
    assert [record.finish_reason for record in bench.registry.outputs.values()] == ["error"]


def test_client_that_leaves_frees_the_engine() -> None:
    async def scenario() -> None:
        engine = SlowEngine()
        bench = Bench(stable=engine)
        bench.gateway.start()
        answer = await bench.gateway.open(ChatRequest.model_validate(CHAT))
        task = asyncio.ensure_future(answer.complete())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.left.is_set()
        unread = await bench.gateway.open(ChatRequest.model_validate(CHAT))
        engine.left.clear()
        await unread.abandon()
        assert engine.left.is_set()
        await bench.gateway.close()
        assert {record.finish_reason for record in bench.registry.outputs.values()} == {"cancelled"}
        assert bench.gateway.traffic()["stable"] == Tally(requests=2, given_up=1)

    asyncio.run(scenario())


def test_models_health_prompts_and_metrics() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["docs"]
        assert (await client.get("/v1/models/docs")).json()["variants"][0]["digest"] == "a" * 64
        assert (await client.get("/v1/models/x")).status_code == 404
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).json() == {"status": "ok"}
        assert (await client.get("/v1/prompts/ask@production")).json()["version"] == 2
        assert (await client.get("/v1/prompts/ask@gone")).status_code == 404
        await client.post("/v1/chat/completions", json=CHAT)
        text = (await client.get("/metrics")).text
        for line in (
            'llmray_request_success_total{finished_reason="stop",model="docs",prompt="none",variant="stable"} 1.0',
            'llmray_generation_tokens_total{model="docs",prompt="none",variant="stable"} 3.0',
            'llmray_time_to_first_token_seconds_count{model="docs",prompt="none",variant="stable"} 1.0',
            'llmray_request_refused_total{code="prompt_not_found",status="404"} 1.0',
            "llmray_tap_dropped_total 0.0",
            "llmray_monitor_alarms_total 1.0",
            "llmray_monitor_statistic 2.5",
            "llmray_monitor_up 1.0",
        ):
            assert line in text.splitlines(), text
        openapi = (await client.get("/openapi.json")).json()
        body = openapi["paths"]["/v1/chat/completions"]["post"]["requestBody"]
        assert "messages" in body["content"]["application/json"]["schema"]["properties"]

    run(Bench(), scenario)


def test_gateway_without_a_configuration_lives_and_is_not_ready() -> None:
    async def scenario(client: httpx.AsyncClient) -> list[int]:
        bench.gateway.config = None
        return [
            (await client.post("/v1/chat/completions", json=CHAT)).status_code,
            (await client.get("/healthz")).status_code,
            (await client.get("/readyz")).status_code,
            len((await client.get("/v1/models")).json()["data"]),
        ]

    bench = Bench()
    assert run(bench, scenario) == [503, 200, 503, 0]


def test_ready_means_that_a_model_answers() -> None:
    there: set[str] = set()

    async def probe(app: str) -> None:
        if app not in there:
            raise UnavailableError(f"{app} is gone")

    async def play() -> list[bool]:
        gateway = Gateway(Ports(), backend=lambda app: EchoEngine(), watcher=lambda app: bench.monitor, probe=probe)
        assert bench.gateway.config is not None
        gateway.configure(bench.gateway.config)
        seen = [await gateway.ready()]
        for apps in ({"stable"}, {"canary"}, {"other"}):
            there.clear()
            there.update(apps)
            seen.append(await gateway.ready())
        return seen

    bench = Bench(canary_weight=5.0, canary=EchoEngine())
    assert asyncio.run(play()) == [False, True, True, False]
