"""The external engine over a real server process, which is killed, left and asked for what it cannot do."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError

from llmray.errors import ConfigError, UnavailableError
from llmray.serve.chat_fields import FunctionCall, Message, ToolCall
from llmray.serve.engine import EngineRequest, OverloadedError, RequestRefusedError, Sampling, TokenEvent
from llmray.serve.engines import External, ModelArgs, open_engine
from llmray.serve.external_engine import ExternalEngine, _ours
from llmray.serve.openai_wire import Reading, body_of

SERVER = str(Path(__file__).with_name("echo_server.py"))
CHAT = ({"role": "user", "content": "one two three four"},)


def opened(folder: Path, step_s: float = 0.0, **options: object) -> ExternalEngine:
    command = (sys.executable, SERVER, "{port}", str(step_s))
    external = External(command=command, health="/healthz", model_name="echo", **options)
    return ExternalEngine.open(folder, external, quantization="none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("external")
    (folder / "config.json").write_text('{"max_position_embeddings": 64}')
    return folder


@pytest.fixture(scope="module")
def quick(folder: Path) -> Iterator[ExternalEngine]:
    engine = opened(folder)
    yield engine
    engine.close()


@pytest.fixture
def slow(folder: Path) -> Iterator[ExternalEngine]:
    engine = opened(folder, step_s=0.05, health_every_s=0.5)
    yield engine
    engine.close()


async def answer(events: AsyncGenerator[TokenEvent, None]) -> list[TokenEvent]:
    return [event async for event in events]


def ask(**fields: object) -> EngineRequest:
    return EngineRequest(id="a", **{"messages": CHAT, **fields})


def test_a_proxy_of_the_environment_is_for_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    engine = opened(folder, start_timeout_s=60.0)
    try:
        events = asyncio.run(answer(engine.submit(ask())))
    finally:
        engine.close()
    assert "".join(event.text for event in events) == "one two three four"


@pytest.mark.parametrize(
    ("said", "wait_s"), [("7", 7.0), ("0.5", 0.5), ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0), (None, 1.0)]
)
def test_a_full_server_is_asked_again_when_it_says(said: str | None, wait_s: float) -> None:
    headers = {} if said is None else {"retry-after": said}
    response = httpx.Response(429, headers=headers, request=httpx.Request("POST", "http://127.0.0.1/v1/completions"))
    found = _ours(openai.RateLimitError("full", response=response, body=None), ask())
    assert isinstance(found, OverloadedError)
    assert found.retry_after_s == wait_s


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)  # another process: there is nothing to wait on


def children(engine: ExternalEngine) -> list[psutil.Process]:
    """The supervisor and the server."""
    supervisor = psutil.Process(engine._server._process.pid)
    return [supervisor, *supervisor.children(recursive=True)]


@pytest.mark.asyncio
async def test_it_streams_and_passes_what_is_asked(quick: ExternalEngine) -> None:
    events = await answer(quick.submit(ask()))
    assert "".join(event.text for event in events) == "one two three four"
    assert len(events) > 3
    assert events[-1].finish_reason == "stop"
    assert events[-1].prompt_tokens == 4
    assert sum(event.num_tokens for event in events) == 4
    cut = await answer(quick.submit(ask(sampling=Sampling(max_tokens=2))))
    assert ("".join(event.text for event in cut), cut[-1].finish_reason) == ("one two", "length")
    stopped = await answer(quick.submit(ask(sampling=Sampling(stop=(" three",)))))
    assert ("".join(event.text for event in stopped), stopped[-1].finish_reason) == ("one two", "stop")
    text = await answer(quick.submit(ask(messages=None, prompt="five six", sampling=Sampling(max_tokens=9))))
    assert "".join(event.text for event in text) == "five six"
    assert quick.info.context_tokens == 64
    assert quick.load().running == quick.load().waiting == 0


@pytest.mark.asyncio
async def test_what_it_cannot_do_is_refused_by_name(quick: ExternalEngine) -> None:
    for request, param in (
        (ask(sampling=Sampling(logprobs=1)), "logprobs"),
        (ask(json_schema="{}"), "response_format"),
        (ask(adapter="mine"), "model"),
        (ask(messages=None, prompt="x"), "max_tokens"),
        (ask(messages=({"role": "user", "content": "word " * 70},)), "messages"),  # the server's own refusal
    ):
        with pytest.raises(RequestRefusedError) as refusal:
            await answer(quick.submit(request))
        assert refusal.value.param == param


@pytest.mark.asyncio
async def test_leaving_ends_it_on_the_server(slow: ExternalEngine) -> None:
    async with aclosing(slow.submit(ask(messages=({"role": "user", "content": "word " * 60},)))) as events:
        await anext(events)
        assert slow.load().running == 1

    def active() -> int:
        with urllib.request.urlopen(f"{slow._server.url}/active") as response:
            return int(json.load(response))

    await until(lambda: active() == 0)
    assert slow.load().running == 0


@pytest.mark.asyncio
async def test_a_killed_server_fails_its_answers_and_closes_the_engine(slow: ExternalEngine) -> None:
    async with aclosing(slow.submit(ask(messages=({"role": "user", "content": "word " * 60},)))) as events:
        await anext(events)
        children(slow)[-1].send_signal(signal.SIGKILL)
        with pytest.raises(UnavailableError, match="broke off"):
            while True:
                await anext(events)
    await until(lambda: slow.closed)
    with pytest.raises(UnavailableError, match="137"):
        await answer(slow.submit(ask()))


@pytest.mark.asyncio
async def test_a_stopped_server_counts_as_dead(slow: ExternalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, server = children(slow)
    monkeypatch.setattr(slow._server, "_health_url", f"{slow._server.url}/nothing")
    await until(lambda: slow.closed)
    await asyncio.to_thread(psutil.wait_procs, [supervisor, server], timeout=20)
    assert not server.is_running()


def test_it_dies_with_whoever_started_it(folder: Path) -> None:
    code = (
        "import sys, time, pathlib; sys.path.insert(0, sys.argv[1]); import test_external_engine as tests\n"
        "engine = tests.opened(pathlib.Path(sys.argv[2]))\n"
        "print(*[one.pid for one in tests.children(engine)], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(processes) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert not psutil.wait_procs(processes, timeout=20)[1]


def test_the_kernel_ends_the_server_of_a_killed_supervisor(folder: Path) -> None:
    engine = opened(folder)
    supervisor, server = children(engine)
    os.kill(supervisor.pid, signal.SIGKILL)
    assert not psutil.wait_procs([server], timeout=20)[1]
    engine.close()
    assert engine.closed


def test_a_start_that_fails_says_why(folder: Path, tmp_path: Path) -> None:
    def start(*command: str, **options: object) -> None:
        ExternalEngine.open(folder, External(command=command, **options), quantization="none")

    with pytest.raises(UnavailableError, match=r"ended with 3 .*no such model"):
        start(sys.executable, "-c", "import sys; print('no such model'); sys.exit(3)")
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"does not answer after 0 s"):
        start(sys.executable, "-c", "import time; time.sleep(600)", start_timeout_s=0.2)
    assert time.monotonic() - began < 60
    with pytest.raises(ConfigError, match="context_tokens"):
        ExternalEngine.open(tmp_path, External(command=("true",)), quantization="none")
    with pytest.raises(ConfigError, match=r"external\.command"):
        open_engine(ModelArgs(uri=str(folder), digest="a" * 64, engine="external"))
    with pytest.raises(ValidationError, match="adapters"):
        External(command=("true",), can=("adapters",))


def test_every_field_has_its_place_in_the_request() -> None:
    sampling = Sampling(
        max_tokens=5, temperature=0.5, top_p=0.9, top_k=7, seed=1, stop=("x",), presence_penalty=0.1,
        frequency_penalty=0.2, logit_bias=((3, -1.0),), logprobs=2,
    )  # fmt: skip
    shared = {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "logit_bias": {"3": -1.0}, "extra_body": {"top_k": 7}, "model": "m",
    }  # fmt: skip
    chat = body_of(ask(sampling=sampling, json_schema='{"type": "object"}'), "m")
    form = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert chat == {
        **shared, "messages": [dict(CHAT[0])], "logprobs": True, "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": form},
    }  # fmt: skip
    text = body_of(ask(messages=None, prompt=(4, 5), sampling=sampling, echo=True), "m")
    assert text == {**shared, "prompt": [4, 5], "logprobs": 2, "echo": True}


def test_the_arguments_of_earlier_calls_go_out_as_text() -> None:
    function = FunctionCall(name="add", arguments='{"a": 1}')
    message = Message(role="assistant", tool_calls=[ToolCall(id="c", function=function)]).plain()
    [sent] = body_of(ask(messages=(message,)), "m")["messages"]
    assert sent == {
        "role": "assistant", "content": "",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
    }  # fmt: skip


def test_the_gateway_knows_its_adapters() -> None:
    external = External(command=("true",), can=("adapters",), adapters=("terse",))
    args = ModelArgs(uri="m", digest="a" * 64, engine="external", external=external)
    assert args.variant("stable", 100).adapters == ("terse",)


def test_logprobs_are_read_in_every_form() -> None:
    head = {"id": "c", "created": 0, "model": "m"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    content = [
        {
            "token": "\ufffd",
            "bytes": [195],
            "logprob": -1.0,
            "top_logprobs": [{"token": "a", "bytes": None, "logprob": -0.5}],
        }
    ]
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": "stop", "logprobs": {"content": content}}
    chat = Reading(echo=False)
    assert (
        chat.push(ChatCompletionChunk.construct(**head, object="chat.completion.chunk", choices=[], usage=None)) is None
    )
    body = {**head, "object": "chat.completion.chunk", "choices": [choice], "usage": usage}
    assert chat.push(ChatCompletionChunk.construct(**body)) is None
    [found] = chat.last().logprobs
    assert (found.token, found.logprob, found.top) == (b"\xc3", -1.0, ((b"a", -0.5),))
    logprobs = {"tokens": ["p", "x"], "token_logprobs": [None, -1.0], "top_logprobs": [None, {"y": -3.0, "x": -1.0}]}
    choice = {"index": 0, "text": "px", "finish_reason": "length", "logprobs": logprobs}
    whole = Completion.construct(**head, object="text_completion", choices=[choice], usage=usage)
    event = Reading(echo=True).whole(whole)
    assert (event.text, event.num_tokens, event.prompt_tokens, event.finish_reason) == ("px", 1, 1, "length")
    assert [(one.token, one.logprob, one.in_prompt) for one in event.logprobs] == [
        (b"p", None, True),
        (b"x", -1.0, False),
    ]
    assert event.logprobs[1].top == ((b"x", -1.0), (b"y", -3.0))
    with pytest.raises(UnavailableError, match="broke the answer off"):
        Reading(echo=False).last()
