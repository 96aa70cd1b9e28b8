"""The `openai` client's own parsing against a gateway on a port: sync, async, streams, tools, formats, errors."""

import asyncio
import math
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from memory_ports import Bench, BreakingEngine, LostEngine
from numpy.typing import NDArray
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from running_gateway import RunningGateway
from scripted_model import ScriptedEngine

from llmray.serve.embedder import Embedded


class Lengths:
    """Embeds a text as its length, its number of words, and one."""

    async def embed(self, texts: list[str]) -> Embedded:
        vectors: NDArray[np.float32] = np.array([[len(text), len(text.split()), 1] for text in texts], np.float32)
        return Embedded(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), sum(len(t.split()) for t in texts))


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    bench = Bench(stable=ScriptedEngine())
    bench.embedders["embed-app"] = Lengths()
    bench.configure(embeddings={"lengths": "embed-app"}, adapters=("poet",))
    running = RunningGateway(bench)
    yield running
    running.stop()


@pytest.fixture
def client(running: RunningGateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        yield client


def user(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_chat(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="docs", messages=user("one two"), n=2, logprobs=True, top_logprobs=1, user="eve", metadata={"a": "b"}
    )
    answer = raw.parse()
    assert raw.headers["x-llmray-output-id"] == answer.id
    assert [choice.message.content for choice in answer.choices] == ["Words on: one two"] * 2
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "Words"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.total_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (10, 1)
    assert answer.model_extra is not None
    assert answer.model_extra["llmray"]["output_ids"][0] == answer.id


def test_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="docs", messages=user("one two"), stream=True, n=2, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = ["", ""]
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["Words on: one two"] * 2
    assert chunks[-1].usage is not None
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 8)


def test_async_and_the_stream_helper(running: RunningGateway) -> None:
    async def play() -> None:
        async with AsyncOpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="docs", messages=user(f"{n}")) for n in range(5))
            )
            assert [answer.choices[0].message.content for answer in answers] == [f"Words on: {n}" for n in range(5)]
            async with client.chat.completions.stream(model="docs", messages=user("one")) as stream:
                types = {event.type async for event in stream}
                final = await stream.get_final_completion()
            assert {"chunk", "content.delta", "content.done"} <= types
            assert final.choices[0].message.content == "Words on: one"
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="no", messages=user("x"))

    asyncio.run(play())


def test_completions(client: OpenAI) -> None:
    done = client.completions.create(model="docs", prompt=["a", "b"], echo=True, logprobs=1, max_tokens=1)
    assert [choice.text for choice in done.choices] == ["aWords", "bWords"]
    assert done.choices[0].logprobs is not None
    assert done.choices[0].logprobs.tokens == ["a", "Words"]
    assert done.choices[0].logprobs.text_offset == [0, 1]
    assert done.choices[0].logprobs.token_logprobs is not None
    assert done.choices[0].logprobs.token_logprobs[1:] == [-5.0]
    ids = client.completions.create(model="docs", prompt=[[1, 2], [3]])
    assert [choice.text for choice in ids.choices] == ["Words on: t1 t2", "Words on: t3"]
    stream = client.completions.create(model="docs", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Words on: a"


class Add(BaseModel):
    a: int
    b: int


class Joke(BaseModel):
    setup: str
    ending: Add


def test_tools_and_formats_by_the_clients_own_parsing(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(Add, name="add")
    called = client.chat.completions.parse(
        model="docs", messages=user("add 3"), tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    assert called.choices[0].finish_reason == "tool_calls"
    assert called.choices[0].message.tool_calls is not None
    [call] = called.choices[0].message.tool_calls
    assert call.function.parsed_arguments == Add(a=3, b=3)
    answered = client.chat.completions.create(
        model="docs",
        messages=[
            *user("add 3"),
            called.choices[0].message.model_dump(exclude_none=True, exclude={"parsed", "tool_calls"})
            | {"tool_calls": [call.model_dump(exclude={"function": {"parsed_arguments"}})]},  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": call.id, "content": "6"},
        ],
    )
    assert answered.choices[0].message.content == "The answer is 6"
    joke = client.chat.completions.parse(model="docs", messages=user("a joke on 'cats', 2"), response_format=Joke)
    assert joke.choices[0].message.parsed == Joke(setup="cats", ending=Add(a=2, b=2))
    loose = {"type": "function", "function": {"name": "add", "parameters": Add.model_json_schema()}}
    with client.chat.completions.stream(model="docs", messages=user("add 4"), tools=[loose]) as stream:  # type: ignore[list-item]
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [(event.name, event.arguments) for event in done] == [("add", '{"a": 4, "b": 4}')]
    assert final.choices[0].finish_reason == "tool_calls"


def test_embeddings(client: OpenAI) -> None:
    as_text = client.embeddings.create(model="lengths", input=["one two", "x"])  # the client asks for base64 by itself
    as_floats = client.embeddings.create(model="lengths", input="one two", encoding_format="float", dimensions=3)
    assert as_text.data[0].embedding == pytest.approx(as_floats.data[0].embedding, abs=1e-7)
    assert math.hypot(*as_floats.data[0].embedding) == pytest.approx(1.0, abs=1e-6)
    assert (as_text.data[1].index, as_text.usage.prompt_tokens) == (1, 3)
    for field, change in (
        ("dimensions", {"dimensions": 2}),
        ("input", {"input": [1, 2]}),
        ("input", {"input": []}),
        ("encoding_format", {"encoding_format": "hex"}),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(**({"model": "lengths", "input": "a"} | change))  # type: ignore[arg-type]
        assert (refused.value.param or "").startswith(field)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="docs", input="a")


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["docs", "poet", "lengths"]
    assert client.models.retrieve("docs").owned_by == "llmray"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_errors_are_the_clients_own(running: RunningGateway, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="docs", messages=user("x"), temperature=9)
    assert (wrong.value.param, wrong.value.code, wrong.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="none", messages=user("x"), stream=True)
    assert missing.value.code == "model_not_found"
    engines = running.bench.engines
    before = engines["stable"]
    try:
        engines["stable"] = LostEngine()
        with pytest.raises(openai.InternalServerError) as lost:
            client.chat.completions.create(model="docs", messages=user("x"))
        assert (lost.value.status_code, lost.value.code) == (503, "model_unavailable")
        engines["stable"] = BreakingEngine()
        with pytest.raises(openai.APIError, match="broke off") as broken:
            list(client.chat.completions.create(model="docs", messages=user("x"), stream=True))
        assert broken.value.code == "answer_broke_off"
    finally:
        engines["stable"] = before
    assert httpx.get(running.url.removesuffix("/v1") + "/readyz").json() == {"status": "ok"}
