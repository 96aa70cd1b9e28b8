"""`llmray keys`, on an empty registry."""

import json

import pytest

from llmray import deployment
from llmray.cli import main
from llmray.errors import ConfigError
from llmray.registry.database import default_url
from llmray.registry.registry import Registry


def test_a_key_lives_its_life(capsys: pytest.CaptureFixture[str]) -> None:
    def call(*argv: str, code: int = 0) -> str:
        assert main(["keys", *argv]) == code
        out, err = capsys.readouterr()
        return out + err

    def good() -> bool:
        with Registry.open() as registry:
            return registry.authenticate(key) is not None

    assert "no keys yet" in call("list")
    made = json.loads(call("create", "docs", "--user", "ada", "--scopes", "infer", "--days", "1", "--json"))
    key = made["key"]
    assert good()
    shown = call("list")
    assert key.split("-")[1] in shown
    assert key.split("-")[2] not in shown
    assert json.loads(call("quota", "docs", "--requests", "60", "--json")) == {
        "requests_per_minute": 60,
        "tokens_per_minute": None,
    }
    assert "60 requests and 5 tokens" in call("quota", "docs", "--tokens", "5")
    assert "unlimited requests and 5 tokens" in call("quota", "docs", "--requests", "none")
    assert "no project" in call("quota", "other", code=2)
    call("revoke", key.split("-")[1])
    assert not good()
    assert "no such token" in call("revoke", "other", code=2)


def test_another_key_of_a_member_leaves_their_role_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with Registry.open() as registry:
        registry.create_project("docs")
        registry.add_member("docs", "ada", "viewer")
        assert main(["keys", "create", "docs", "--user", "ada"]) == 0
        identity = registry.authenticate(capsys.readouterr().out.split()[0])
    assert identity is not None
    assert identity.role == "viewer"


def test_other_machines_are_let_in_only_with_keys() -> None:
    for local in ("127.0.0.1", "localhost", "::1"):
        deployment._check_open_to(local, default_url())
    with pytest.raises(ConfigError, match="llmray keys create"):
        deployment._check_open_to("0.0.0.0", default_url())
    assert main(["keys", "create", "docs"]) == 0
    deployment._check_open_to("0.0.0.0", default_url())
