"""Clients that mean harm, over real sockets: each gets a proper error, and the gateway goes on serving."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from memory_ports import Bench
from running_gateway import RunningGateway
from test_gateway import CHAT, run

from llmray.serve.intake import Limits
from llmray.serve.protocol import MAX_BODY_BYTES, MAX_DEPTH

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    running = RunningGateway(Bench(), Limits(body_timeout_s=0.2))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def goes_on_serving(running: RunningGateway) -> Iterator[None]:
    yield
    answer = httpx.post(running.url + "/chat/completions", json=CHAT)
    assert answer.json()["choices"][0]["message"]["content"] == "one two three"
    assert running.bench.gateway.traffic()["stable"].running == 0
    assert running.bench.engines["stable"].active == 0


def talk(running: RunningGateway, *pieces: bytes) -> tuple[int, dict[str, Any] | None]:
    """Status and error of what comes back for these bytes; the client then keeps still until it is answered."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except ConnectionError:
                break  # it was answered already
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
                head, _, body = answer.partition(b"\r\n\r\n")
                length = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if length and len(body) >= int(length[0]):
                    break
        except ConnectionError:
            pass  # the rest of a body that nobody read
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    return status, json.loads(body)["error"] if b"application/json" in head.lower() else None


def head(*headers: str, path: str = PATH) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *headers, "", "")
    return "\r\n".join(lines).encode()


def test_ten_thousand_headers(running: RunningGateway) -> None:
    many = [f"x-{number}: {number}" for number in range(10_000)]
    status, _ = talk(running, head(*many, "content-length: 2"), b"{}")
    assert status in (400, 431)  # some servers in front refuse them themselves
    too_many = run(
        Bench(), lambda client: client.post(PATH, json=CHAT, headers=[(f"x-{number}", "1") for number in range(10_000)])
    )
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (431, "headers_too_large")
    too_long = run(Bench(), lambda client: client.post(PATH, json=CHAT, headers={"x-long": "y" * 70_000}))
    assert too_long.status_code == 431


def test_a_body_that_never_ends(running: RunningGateway) -> None:
    status, error = talk(running, head("content-length: 100"), b'{"model": ')
    assert (status, error and error["code"]) == (408, "request_timeout")
    status, error = talk(running, head("transfer-encoding: chunked"), b"5\r\n{    \r\n")
    assert (status, error and error["code"]) == (408, "request_timeout")


def test_a_body_that_is_cut_off(running: RunningGateway) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(head("content-length: 100") + b'{"model": ')


def test_a_huge_body_is_not_read(running: RunningGateway) -> None:
    status, error = talk(running, head(f"content-length: {1 << 40}"), b"{")
    assert (status, error and error["code"]) == (413, "request_too_large")
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    status, error = talk(running, head("transfer-encoding: chunked"), *[chunk] * (MAX_BODY_BYTES // (1 << 20) + 1))
    assert (status, error and error["code"]) == (413, "request_too_large")


def text(content: str) -> bytes:
    """A chat whose content is written as it stands."""
    return b'{"model": "docs", "messages": [{"role": "user", "content": "' + content.encode() + b'"}]}'


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"null", "invalid_value"),
        (b'"docs"', "invalid_value"),
        (b"{" * 100_000, "invalid_json"),
        (b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH, "invalid_value"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "invalid_json"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "invalid_json"),
        (text("\\ud800"), "invalid_json"),
        (text("\\udfff\\ud800"), "invalid_json"),
        (text("x").replace(b"x", b"\xff\xfe"), "invalid_json"),
        (text("x").replace(b"x", b"\xed\xa0\x80"), "invalid_json"),  # a surrogate in UTF-8
        (text("x").replace(b"x", b"\xc0\x80"), "invalid_json"),  # an overlong NUL
        (b"\xef\xbb\xbf" + text("x"), "invalid_json"),
        (b'{"model": "docs", "model": "docs", "messages": []}', "invalid_json"),
        (text("x")[:-1] + b', "temperature": NaN}', "invalid_json"),
        (text("x")[:-1] + b', "temperature": 1e999}', "invalid_json"),
        (text("x")[:-1] + b', "max_tokens": ' + b"9" * 10_000 + b"}", "invalid_json"),
        (text("x")[:-1] + b', "seed": 9223372036854775808}', "invalid_value"),
        (text("x")[:-1] + b', "seed": -1e400}', "invalid_json"),
        (text("x")[:-1] + b', "n": true}', "invalid_value"),
        (text("x")[:-1] + b', "stop": [""]}', "invalid_value"),
        (text("x")[:-1] + b', "__class__": {}}', "unknown_parameter"),
        (text("x")[:-1] + b', "user": "' + b"u" * 600 + b'"}', "invalid_value"),
        (
            b'{"model": "docs", "messages": [' + b",".join([b'{"role":"user","content":""}'] * 5000) + b"]}",
            "invalid_value",
        ),
        (text("w " * 100_000), "context_length_exceeded"),
        (orjson.dumps({f"{n:x}": 1 for n in range(60_000)})[:-1] + b', "ea5f": 1}', "invalid_json"),
        (text("x")[:-1] + b', "' + b"f" * 10_000 + b'": 1}', "unknown_parameter"),
        (text("x").replace(b'"docs"', b'"' + b"m" * 10_000 + b'"'), "invalid_value"),
        (text("x")[:-1] + b', "prompt": "' + b"p" * 10_000 + b'"}', "invalid_value"),
        (text("x")[:-1] + b', "prompt": "a@b", "variables": {"' + b"v" * 10_000 + b'": ""}}', "invalid_value"),
    ],
)
def test_bodies(running: RunningGateway, body: bytes, code: str) -> None:
    answer = httpx.post(running.url + "/chat/completions", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, code, "invalid_request_error")
    assert len(answer.content) < 4096  # what was sent does not come back


def test_strange_text_is_answered_as_it_is(running: RunningGateway) -> None:
    for content in ("nul\0nul", "\u202eright to left", "😀" * 50, "\ufffe\uffff", "a\u0300" * 99, "{{x}} {y} %s \\n"):
        body = {"model": "docs", "messages": [{"role": "user", "content": content}]}
        answer = httpx.post(running.url + "/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == content


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd",
        "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/prompts/..%2f..%2fregistry.db",
        "/v1/prompts/ask@production%00",
        "/v1//models",
        "/v1/models/docs/",
        "/V1/MODELS",
        "//evil.example/v1/models",
        "/%00",
        "/%ff%fe",
        "/v1/models/" + "x" * 8000,
        "/v1/prompts/" + "%F0%9F%98%80" * 500,
        "/docs/../v1/none",
    ],
)
def test_paths(running: RunningGateway, path: str) -> None:
    status, error = talk(running, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert (status, set(error or ())) == (404, {"message", "type", "param", "code"})


def test_lines_that_are_no_http(running: RunningGateway) -> None:
    for raw in (b"\0\0\0\0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"):
        status, _ = talk(running, raw)
        assert status == 400


def test_methods_and_kinds_of_body(running: RunningGateway) -> None:
    root = running.url.removesuffix("/v1")
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        refused = httpx.request(method, root + PATH)
        assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_allowed")
        assert refused.headers["allow"] == "POST"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json"):
        refused = httpx.post(root + PATH, content=orjson.dumps(CHAT), headers={"content-type": kind})
        assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
    taken = httpx.post(
        root + PATH, content=orjson.dumps(CHAT), headers={"content-type": "Application/JSON; charset=utf-8"}
    )
    assert taken.status_code == 200
