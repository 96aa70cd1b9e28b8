"""Several choices, log-probabilities, tools, formats: what goes to the engine and what comes back, over HTTP."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import orjson
import pytest
from memory_ports import Bench
from scripted_model import ScriptedEngine
from test_gateway import TOOL, post, run

from llmray.serve.engine import DeadlineExceededError, EngineRequest, OverloadedError, TokenEvent
from llmray.serve.ports import PromptChoice, PromptTemplate

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds",
        "parameters": {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/number"}},
            "$defs": {"number": {"type": "integer"}},
            "required": ["a"],
        },
    },
}


def say(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "docs", "messages": [{"role": "user", "content": text}], **fields}


def bench(**engine: Any) -> Bench:
    return Bench(stable=ScriptedEngine(**engine))


def asked(on: Bench) -> list[EngineRequest]:
    engine = on.engines["stable"]
    assert isinstance(engine, ScriptedEngine)
    return engine.asked


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [orjson.loads(line) for line in lines]


def test_n_answers_have_ids_seeds_and_records_of_their_own() -> None:
    on = bench()
    body = post(on, "/v1/chat/completions", say("roll dice", n=3, seed=(1 << 63) - 2)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    seeds = [(1 << 63) - 2, (1 << 63) - 1, -(1 << 63)]
    assert [choice["message"]["content"] for choice in body["choices"]] == [f"rolled {seed}" for seed in seeds]
    ids = body["llmray"]["output_ids"]
    assert ids[0] == body["id"]
    assert [(record.choice, record.request_id) for record in map(on.registry.outputs.get, ids) if record] == [
        (0, ids[0]),
        (1, ids[0]),
        (2, ids[0]),
    ]
    assert [request.id for request in asked(on)] == ids
    assert body["usage"]["prompt_tokens"] == 2  # read once
    assert body["usage"]["completion_tokens"] == 6
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert len(on.monitor.seen) == 1  # asked once


def test_streamed_choices_come_interleaved_and_add_up() -> None:
    response = post(bench(), "/v1/chat/completions", say("one two three", n=2, stream=True))
    texts, order = ["", ""], []
    for chunk in chunks(response):
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        order.append(choice["index"])
    assert texts == ["Words on: one two three"] * 2
    assert order != sorted(order)


def test_an_answer_that_breaks_off_takes_the_others_with_it() -> None:
    class Breaking(ScriptedEngine):
        async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
            async for event in super().submit(request):
                yield event
                if request.sampling.seed == 0:
                    raise RuntimeError("a bug")

    on = Bench(stable=Breaking())
    assert post(on, "/v1/chat/completions", say("roll dice", n=3, seed=0)).status_code == 500
    assert on.engines["stable"].active == 0
    counted = on.gateway.traffic()["stable"]
    assert (counted.requests, counted.errors, counted.running) == (1, 1, 0)


def test_logprobs_of_a_chat() -> None:
    body = say("é", logprobs=True, top_logprobs=2)
    whole = post(bench(), "/v1/chat/completions", body).json()["choices"][0]["logprobs"]
    assert [token["token"] for token in whole["content"]] == ["Words", " on:", " é"]
    assert whole["content"][2] == {
        "token": " é",
        "logprob": -3.0,
        "bytes": [32, 195, 169],
        "top_logprobs": [
            {"token": " é", "logprob": -3.0, "bytes": [32, 195, 169]},
            {"token": " é!", "logprob": -4.0, "bytes": [32, 195, 169, 33]},
        ],
    }
    streamed = chunks(post(bench(), "/v1/chat/completions", body | {"stream": True}))
    assert [token for chunk in streamed for token in chunk["choices"][0]["logprobs"]["content"]] == whole["content"]
    assert post(bench(), "/v1/chat/completions", say("x")).json()["choices"][0]["logprobs"] is None


def test_a_completion_is_scored_as_evaluation_harnesses_do() -> None:
    """lm-eval sends token ids in batches, with echo, and reads what lies between the context and the last token."""
    body = {"model": "docs", "prompt": [[1, 2], [3]], "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    on = bench()
    found = post(on, "/v1/completions", body).json()
    assert [choice["text"] for choice in found["choices"]] == ["t1 t2Words", "t3Words"]
    assert found["choices"][0]["logprobs"] == {
        "tokens": ["t1", " t2", "Words"],
        "token_logprobs": [None, -3.0, -5.0],
        "top_logprobs": [None, {" t2": -3.0}, {"Words": -5.0}],
        "text_offset": [0, 2, 5],
    }
    assert found["usage"]["prompt_tokens"] == 3
    assert [request.prompt for request in asked(on)] == [(1, 2), (3,)]
    assert [request.sampling.seed for request in asked(on)] == [1234, 1234]
    scored = post(bench(), "/v1/completions", body | {"prompt": "a b", "max_tokens": 0}).json()["choices"][0]
    assert (scored["text"], scored["logprobs"]["token_logprobs"], scored["finish_reason"]) == (
        "a b",
        [None, -2.0],
        "length",
    )
    several = post(bench(), "/v1/completions", {"model": "docs", "prompt": ["a", "b"], "n": 2}).json()
    assert [choice["text"] for choice in several["choices"]] == ["Words on: a"] * 2 + ["Words on: b"] * 2


def test_every_setting_reaches_the_engine_and_the_record() -> None:
    on = bench()
    body = say(
        "x",
        presence_penalty=0.5,
        frequency_penalty=-1,
        logit_bias={"7": 3, "8": -100},
        timeout_s=2.5,
        documents=[{"id": "d1", "score": 0.5, "page": 3}],
        metadata={"team": "a"},
        store=True,
        service_tier="auto",
    )
    answer = post(on, "/v1/chat/completions", body).json()
    [request] = asked(on)
    assert (request.sampling.presence_penalty, request.sampling.frequency_penalty) == (0.5, -1)
    assert request.sampling.logit_bias == ((7, 3), (8, -100))
    assert request.timeout_s is not None and 0 < request.timeout_s <= 2.5  # what is left of it
    record = on.registry.outputs[answer["id"]]
    assert record.documents == [{"id": "d1", "score": 0.5, "page": 3}]
    assert record.sampling["metadata"] == {"team": "a"}
    assert record.sampling["timeout_s"] == 2.5
    assert (record.request_id, record.choice, record.cached_tokens) == (None, 0, 1)


def test_a_prompts_settings_hold_where_the_request_says_nothing() -> None:
    on = bench()
    settings = {"presence_penalty": 1.0, "max_tokens": 9, "response_format": {"type": "json_object"}, "tools": [ADD]}
    template = PromptTemplate(name="set", version=1, digest="e" * 64, messages=[], settings=settings)
    on.registry.prompts["set@production"] = PromptChoice(versions=[(template, 1.0)])
    body = say("x", prompt="set@production")
    post(on, "/v1/chat/completions", body)
    post(on, "/v1/chat/completions", body | {"presence_penalty": 0, "max_completion_tokens": 2, "tools": []})
    first, second = asked(on)
    assert (first.sampling.presence_penalty, first.sampling.max_tokens, len(first.tools)) == (1.0, 9, 1)
    assert first.json_schema is not None
    assert (second.sampling.presence_penalty, second.sampling.max_tokens, len(second.tools)) == (0.0, 2, 0)
    template = PromptTemplate(name="wrong", version=1, digest="f" * 64, messages=[], settings={"temperature": 9})
    on.registry.prompts["wrong@production"] = PromptChoice(versions=[(template, 1.0)])
    wrong = post(on, "/v1/chat/completions", say("x", prompt="wrong@production"))
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "prompt")


def test_a_tool_is_called_whole_and_streamed() -> None:
    body = say("use the tool add on 4", tools=[ADD])
    whole = post(bench(), "/v1/chat/completions", body).json()["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] == "I look.\n"
    [call] = whole["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 4}'}
    assert (len(call["id"]), call["id"].isalnum()) == (9, True)
    streamed = [chunk["choices"][0] for chunk in chunks(post(bench(), "/v1/chat/completions", body | {"stream": True}))]
    assert "".join(choice["delta"].get("content", "") for choice in streamed) == "I look.\n"
    [[delta]] = [choice["delta"]["tool_calls"] for choice in streamed if "tool_calls" in choice["delta"]]
    assert delta == {"index": 0, **call}
    assert streamed[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_that_is_demanded_is_forced_by_a_schema(choice: Any) -> None:
    on = bench()
    body = say("hello 7", tools=[ADD, TOOL], tool_choice=choice)
    found = post(on, "/v1/chat/completions", body).json()["choices"][0]
    assert found["message"]["content"] is None
    assert [call["function"] for call in found["message"]["tool_calls"]] == [{"name": "add", "arguments": '{"a": 7}'}]
    [request] = asked(on)
    schema = json.loads(request.json_schema or "")
    assert len(schema["anyOf"]) == (2 if choice == "required" else 1)
    # a reference inside the parameters still leads there
    assert schema["anyOf"][0]["properties"]["arguments"]["properties"]["a"] == {
        "$ref": "#/anyOf/0/properties/arguments/$defs/number"
    }
    refused = post(bench(without=frozenset({"json_schema"})), "/v1/chat/completions", body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")


def test_no_tool_is_called_where_none_may_be() -> None:
    on = bench()
    body = say("use the tool add", tools=[ADD], tool_choice="none")
    message = post(on, "/v1/chat/completions", body).json()["choices"][0]["message"]
    assert (message["content"], "tool_calls" in message) == ("Words on: use the tool add", False)
    assert asked(on)[0].tools == ()
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    assert post(on, "/v1/chat/completions", say("x", tools=[strict])).json()["error"]["param"] == "tools"
    one = post(on, "/v1/chat/completions", say("x", tools=[strict], tool_choice="required", parallel_tool_calls=False))
    assert len(one.json()["choices"][0]["message"]["tool_calls"]) == 1


def test_only_one_call_where_only_one_was_asked_for() -> None:
    class Eager(ScriptedEngine):
        async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
            for _ in range(2):
                yield TokenEvent('<tool_call>{"name": "add"}</tool_call>', 1, 1)
            yield TokenEvent(" more", 1, 1, "stop")

    for parallel, count in ((True, 2), (False, 1)):
        body = say("x", tools=[ADD], parallel_tool_calls=parallel)
        message = post(Bench(stable=Eager()), "/v1/chat/completions", body).json()["choices"][0]["message"]
        assert len(message["tool_calls"]) == count
        assert message["content"] == ("more" if parallel else None)


def test_a_conversation_with_tools_reaches_the_chat_template() -> None:
    on = bench()
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "add", "name": "eve"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": [{"type": "text", "text": "2"}], "tool_call_id": "c1"},
    ]
    answer = post(on, "/v1/chat/completions", {"model": "docs", "messages": messages, "tools": [ADD]}).json()
    assert answer["choices"][0]["message"]["content"] == "The answer is 2"
    assert asked(on)[0].messages == (
        {"role": "user", "content": "add", "name": "eve"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    )
    call["function"]["arguments"] = "no JSON"
    assert (
        post(on, "/v1/chat/completions", {"model": "docs", "messages": messages}).json()["error"]["param"] == "messages"
    )


def test_an_answer_in_json() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    on = bench()
    answer = post(on, "/v1/chat/completions", say("8", response_format=wanted, tools=[ADD])).json()["choices"][0]
    assert json.loads(answer["message"]["content"]) == {"n": 8}
    both = json.loads(asked(on)[0].json_schema or "")
    assert (len(both["anyOf"]), both["anyOf"][0]) == (2, schema)  # the answer, or a call
    post(on, "/v1/chat/completions", say("8", response_format={"type": "json_object"}))
    assert json.loads(asked(on)[1].json_schema or "") == {"type": "object"}
    wrong = post(on, "/v1/chat/completions", say("8", response_format={"type": "json_schema"}))
    assert wrong.json()["error"]["param"] == "response_format"


def test_an_adapter_is_asked_for_as_a_model() -> None:
    on = bench()
    on.configure(adapters=("poet",))
    answer = post(on, "/v1/chat/completions", say("x") | {"model": "poet"}).json()
    assert (answer["choices"][0]["message"]["content"], answer["model"]) == ("Rhymes on: x", "poet")
    assert on.registry.outputs[answer["id"]].adapter == "poet"
    models = run(on, lambda client: client.get("/v1/models")).json()["data"]
    assert [(model["id"], model.get("parent")) for model in models] == [("docs", None), ("poet", "docs")]
    assert post(on, "/v1/chat/completions", say("x") | {"model": "painter"}).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OverloadedError("later", 2.4), 429, "overloaded"),
        (DeadlineExceededError("too late"), 504, "deadline_exceeded"),
    ],
)
def test_an_engines_refusals_have_status_codes(error: Exception, status: int, code: str, stream: bool) -> None:
    class Refusing(ScriptedEngine):
        async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
            raise error
            yield

    response = post(Bench(stable=Refusing()), "/v1/chat/completions", say("x", stream=stream))
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers.get("retry-after") == ("3" if status == 429 else None)


class Steps(ScriptedEngine):
    """Takes a step each time the event loop comes round, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    async def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        self.active += 1
        try:
            while True:
                await asyncio.sleep(0)
                self.steps += 1
                yield TokenEvent("word ", 1, 1)
        finally:
            self.active -= 1


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_seen_within_two_steps(stream: bool, n: int) -> None:
    from llmray.serve.gateway import create_app

    async def play() -> None:
        engine = Steps()
        on = Bench(stable=engine)
        body = orjson.dumps(say("x", stream=stream, n=n))
        left, came = asyncio.Event(), False

        async def receive() -> dict[str, Any]:
            nonlocal came
            if not came:
                came = True
                return {"type": "http.request", "body": body, "more_body": False}
            while engine.steps < 20:
                await asyncio.sleep(0)
            left.set()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await asyncio.sleep(0)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [],
        }
        on.gateway.start()
        serving = asyncio.ensure_future(create_app(on.gateway)(scope, receive, send))
        await left.wait()
        at = engine.steps
        await serving
        assert engine.active == 0
        assert engine.steps <= at + 2 * n
        await on.gateway.close()
        assert {record.finish_reason for record in on.registry.outputs.values()} == {"cancelled"}

    asyncio.run(play())
