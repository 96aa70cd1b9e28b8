"""The served application as clients meet it: OpenAI's own client, a registry, and people who hang up."""

import asyncio
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import openai
import psutil
import pytest
from served_model import Served

from llmray import deployment
from llmray.errors import ConfigError, UnavailableError
from llmray.serve.control import check_port, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.serve]

ASK: Any = [{"role": "user", "content": "What does os.path.join do?"}]


def eventually(condition: Callable[[], bool], what: str) -> None:
    wait_for(condition, timeout_s=30, what=what)


def test_openai_client_chats_streams_and_completes(served: Served) -> None:
    client = served.client()
    whole = client.chat.completions.create(model="docs", messages=ASK, max_tokens=12, seed=3)
    assert whole.usage is not None
    assert 5 < whole.usage.completion_tokens <= 12
    chunks = list(
        client.chat.completions.create(
            model="docs", messages=ASK, max_tokens=12, seed=3, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert len(chunks) > 5
    completion = client.completions.create(model="docs", prompt="It joins", max_tokens=5, temperature=0)
    assert completion.choices[0].finish_reason == "length"
    assert [model.id for model in client.models.list()] == ["docs"]


def test_openai_async_client_streams_beside_others(served: Served) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.chat.completions.create(
            model="docs", messages=ASK, max_tokens=16, seed=seed, temperature=1.5, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def several() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=served.deployed.url, api_key="none", max_retries=0) as client:
            together = await asyncio.gather(*(one(client, seed) for seed in range(6)))
            return together, [await one(client, seed) for seed in range(6)]

    together, alone = asyncio.run(several())
    assert together == alone
    assert len(set(alone)) > 1


def test_openai_client_raises_its_own_errors(served: Served) -> None:
    client = served.client()
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="docs", messages=ASK, reasoning_effort="high")
    assert (bad.value.param, bad.value.code) == ("reasoning_effort", "unsupported_value")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="docs", messages=[{"role": "user", "content": "日" * 300}])
    assert (long.value.param, long.value.code) == ("messages", "context_length_exceeded")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=ASK)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as prompt:
        client.chat.completions.create(model="docs", messages=ASK, extra_body={"prompt": "ask-docs@nowhere"})
    assert (prompt.value.param, prompt.value.code) == ("prompt", "prompt_not_found")


def test_every_answer_resolves_to_what_made_it_and_takes_feedback(served: Served) -> None:
    client, registry = served.client(), served.registry
    made = registry.put_prompt(
        "ask-docs",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What does {name} do?"}],
        settings={"max_tokens": 4, "temperature": 0.0},
        message="first",
        author="test",
    )
    registry.move_alias("ask-docs", "production", made.digest, kind="prompt", actor="test", reason="first")
    body = {"prompt": "ask-docs@production", "variables": {"name": "os.getcwd"}}
    raw = client.chat.completions.with_raw_response.create(model="docs", messages=[], extra_body=body)
    answer = raw.parse()
    assert raw.headers["x-llmray-output-id"] == answer.id
    assert answer.model_extra is not None
    assert answer.model_extra["llmray"]["prompt_digest"] == made.digest
    other = client.chat.completions.create(model="docs", messages=ASK, max_tokens=3)
    base = served.deployed.url
    thumb = {"output_id": answer.id, "kind": "thumb", "value": "up", "source": "test"}
    assert httpx.post(f"{base}/feedback", json=thumb).status_code == 200
    better = {"output_id": answer.id, "kind": "preference", "value": "clearer", "other_output_id": other.id}
    assert httpx.post(f"{base}/feedback", json=better).status_code == 200
    assert httpx.post(f"{base}/feedback", json=thumb | {"output_id": "unheard-of"}).status_code == 404
    output = registry.output(answer.id)
    assert output is not None
    assert (output.prompt_digest, output.prompt_reference) == (made.digest, "ask-docs@production")
    assert output.variables == {"name": "os.getcwd"}
    assert output.messages[1]["content"] == "What does os.getcwd do?"
    assert (output.model_digest, output.quantization, output.engine) == (served.deployed.digest, "none", "hf")
    assert output.sampling["max_tokens"] == output.completion_tokens == 4
    kept = registry.feedback(output_id=answer.id)
    assert [feedback.kind for feedback in kept] == ["thumb", "preference"]


def test_moved_alias_is_seen_within_two_seconds(served: Served) -> None:
    registry = served.registry
    versions = [
        registry.put_prompt(
            "moving", messages=[{"role": "user", "content": text}], settings={}, message="", author="test"
        )
        for text in ("one", "two")
    ]
    url = f"{served.deployed.url}/prompts/moving@live"
    for version in versions:
        registry.move_alias("moving", "live", version.digest, kind="prompt", actor="test", reason="test")
        wait_for(
            lambda digest=version.digest: httpx.get(url).json().get("digest") == digest,  # type: ignore[misc]
            timeout_s=2,
            what="the alias",
        )


def test_client_that_hangs_up_frees_the_engine(served: Served) -> None:
    body = {"model": "docs", "messages": ASK, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{served.deployed.url}/chat/completions", json=body, timeout=30) as response:
        output_id = response.headers["x-llmray-output-id"]
        next(response.iter_lines())
    eventually(lambda: served.registry.output(output_id) is not None, "the record of the answer")
    output = served.registry.output(output_id)
    assert output is not None
    assert output.finish_reason == "cancelled"
    metrics = f"http://127.0.0.1:{served.port}/metrics"
    eventually(
        lambda: 'llmray_num_requests_running{variant="stable"} 0.0' in httpx.get(metrics).text, "the engine to be free"
    )


def test_health_and_status(served: Served) -> None:
    assert httpx.get(f"http://127.0.0.1:{served.port}/healthz").json() == {"status": "ok"}
    status = deployment.status()
    assert status["url"] == served.deployed.url
    assert set(status["applications"].values()) == {"RUNNING"}
    engine = served.deployed.engine
    assert engine["weight_bytes"] > 100_000
    assert engine["load_s"] > 0


def test_unusual_questions_raise_an_alarm_in_registry_and_metrics(served: Served) -> None:
    client, registry = served.client(), served.registry
    for name in ("os.walk", "json.dumps", "re.sub", "math.floor", "string.capwords"):
        client.chat.completions.create(
            model="docs", messages=[{"role": "user", "content": f"What does {name} do?"}], max_tokens=2
        )
    assert registry.events("drift.alarm") == []
    lines = (
        "Shall I compare thee to a summer's day?",
        "O Romeo, Romeo, wherefore art thou Romeo?",
        "Now is the winter of our discontent",
        "Once more unto the breach, dear friends",
        "Quo usque tandem abutere, Catilina, patientia nostra?",
    )
    for number in range(60):
        text = f"{lines[number % len(lines)]} {number}"
        client.chat.completions.create(model="docs", messages=[{"role": "user", "content": text}], max_tokens=2)
    eventually(lambda: len(registry.events("drift.alarm")) > 0, "the alarm")
    [alarm] = registry.events("drift.alarm")
    assert alarm.subject == served.deployed.digest
    metrics = httpx.get(f"http://127.0.0.1:{served.port}/metrics").text.splitlines()
    assert "llmray_monitor_alarms_total 1.0" in metrics
    assert "llmray_monitor_up 1.0" in metrics
    assert "llmray_tap_dropped_total 0.0" in metrics


def test_another_port_and_a_busy_port_name_the_fix(served: Served, tiny_model: Any) -> None:
    with pytest.raises(ConfigError, match=f"127.0.0.1:{served.port} already"):
        deployment.deploy(str(tiny_model), "a" * 64, name="docs", port=served.port + 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"--port {port + 1}"):
            check_port("127.0.0.1", port)
    with pytest.raises(ConfigError, match="no address"):
        check_port("no.such.host.invalid", 8000)


def test_gateway_process_never_imports_torch() -> None:
    code = (
        "import sys, llmray.serve.replica, llmray.deployment; "
        "sys.exit(any(name.split('.')[0] in ('torch', 'transformers', 'sqlalchemy') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_registry_that_dies_in_mid_traffic_and_cannot_come_back_stops_no_answer_and_loses_none(
    served: Served,
) -> None:
    client, registry = served.client(), served.registry
    database = sqlite3.connect(served.database_url.removeprefix("sqlite:///"), isolation_level=None)
    database.execute("BEGIN IMMEDIATE")  # nobody else writes, nor opens it at the newest schema
    [process] = [
        one for one in psutil.Process().children(recursive=True) if ":RegistryBridge" in " ".join(one.cmdline())
    ]
    process.kill()
    answers = [client.chat.completions.create(model="docs", messages=ASK, max_tokens=4) for _ in range(5)]
    stream = list(client.chat.completions.create(model="docs", messages=ASK, max_tokens=4, stream=True))
    assert all(answer.choices[0].finish_reason for answer in answers)
    assert stream[-1].choices[0].finish_reason
    assert registry.output(answers[0].id) is None
    database.close()
    ids = [*(answer.id for answer in answers), stream[0].id]
    eventually(lambda: all(registry.output(one) is not None for one in ids), "the records of the answers")


def test_once_there_is_a_key_everybody_needs_one(served: Served) -> None:
    """The last one of this file: from here on the gateway asks for keys."""
    registry, models = served.registry, f"{served.deployed.url}/models"
    registry.create_project("docs")
    registry.add_member("docs", "ada", "editor")
    key = registry.issue_token("docs", "ada", ["infer"])
    eventually(lambda: httpx.get(models).status_code == 401, "the gateway to ask for keys")
    client = openai.OpenAI(base_url=served.deployed.url, api_key=key, max_retries=0, timeout=60)
    answer = client.chat.completions.create(model="docs", messages=ASK, max_tokens=2)
    with pytest.raises(openai.AuthenticationError):
        served.client().chat.completions.create(model="docs", messages=ASK, max_tokens=2)
    headers = {"authorization": f"Bearer {key}"}
    assert httpx.get(f"http://127.0.0.1:{served.port}/metrics", headers=headers).status_code == 403
    eventually(lambda: registry.output(answer.id) is not None, "the record of the answer")
    output = registry.output(answer.id)
    assert output is not None
    assert (output.project, output.key_id) == ("docs", key.split("-")[1])
    registry.revoke_token(key)
    eventually(lambda: httpx.get(models, headers=headers).status_code == 401, "the key to end")
