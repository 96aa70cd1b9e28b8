"""Aliases: the gate, the log, and the algebra of rollback."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_values import artifact, fresh

from llmray.errors import GateRefusedError, InputError, NotFoundError, UnavailableError
from llmray.registry.registry import Registry

A, B, C = (artifact(name, kind="model") for name in "abc")
YES = {"decision": "promote", "tasks": {"heldout": {"p": 0.01}}}


@pytest.fixture
def models(registry: Registry) -> Registry:
    for one in (A, B, C):
        registry.put_artifact(one)
    return registry


def test_production_moves_only_with_evidence(models: Registry) -> None:
    for evidence in (None, {}, {"decision": "hold"}):
        with pytest.raises(GateRefusedError, match="chat@production stays where it is"):
            models.move_alias(
                "chat", "production", A.digest, kind="model", actor="ada", reason="trust me", evidence=evidence
            )
    assert models.alias("chat", "production", "model") is None
    event = models.move_alias("chat", "production", A.digest, kind="model", actor="ada", reason="won", evidence=YES)
    assert (event.type, event.digest, event.previous, event.evidence) == ("move", A.digest, None, YES)
    assert models.alias("chat", "production", "model") == A.digest
    assert models.resolve("chat@production", "model").digest == A.digest


def test_other_aliases_need_none(models: Registry) -> None:
    _move(models, "candidate", A.digest)
    assert models.alias("chat", "candidate", "model") == A.digest


def test_a_move_from_what_is_no_longer_there_is_refused(models: Registry) -> None:
    move = functools.partial(models.move_alias, "chat", "canary", kind="model", actor="ada", reason="won")
    move(A.digest, expected=None)
    with pytest.raises(UnavailableError, match=f"chat@canary has moved to {A.digest[:12]}"):
        move(B.digest, expected=None)
    move(B.digest, expected=A.digest)
    assert models.alias_stack("chat", "canary", "model") == [A.digest, B.digest]


def test_rollback_goes_back_and_back_and_not_forth(models: Registry) -> None:
    for one in (A, B, C):
        models.move_alias("chat", "production", one.digest, kind="model", actor="ada", reason="won", evidence=YES)
    assert _rollback(models, "production").digest == B.digest
    event = _rollback(models, "production")
    assert (event.type, event.digest, event.previous) == ("rollback", A.digest, B.digest)
    with pytest.raises(NotFoundError, match="nothing to go back to"):
        _rollback(models, "production")
    assert [event.type for event in models.alias_events("chat", "production", "model")] == ["move"] * 3 + [
        "rollback"
    ] * 2


def test_what_does_not_exist_cannot_be_named(models: Registry) -> None:
    with pytest.raises(NotFoundError, match="no model"):
        _move(models, "candidate", "0" * 64)
    with pytest.raises(NotFoundError, match="no model alias"):
        _rollback(models, "candidate")
    with pytest.raises(InputError, match="cannot be a name"):
        _move(models, "Not An Alias", A.digest)
    with pytest.raises(NotFoundError, match="no prompt"):
        models.move_alias("ask", "production", A.digest, kind="prompt", actor="ada", reason="?")


def test_aliases_are_listed(models: Registry) -> None:
    _move(models, "candidate", A.digest)
    _move(models, "candidate", B.digest)
    models.put_artifact(C, name="chat")
    listed = [(record.name, record.alias, record.digest) for record in models.aliases("chat", "model")]
    assert listed == [("chat", "candidate", B.digest), ("chat", "latest", C.digest)]
    assert models.aliases("nobody") == []


def test_concurrent_moves_leave_a_chain(models: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: _move(models, "candidate", (A, B, C)[number % 3].digest), range(24)))
    events = models.alias_events("chat", "candidate")
    assert len(events) == 24
    assert [event.previous for event in events[1:]] == [event.digest for event in events[:-1]]
    assert models.alias("chat", "candidate", "model") == events[-1].digest


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from([A.digest, B.digest, C.digest, "rollback"]), max_size=12))
def test_moves_and_rollbacks_are_a_stack(models: Registry, steps: list[str]) -> None:
    alias, stack = fresh(), []
    written = 0
    for step in steps:
        if step != "rollback":
            _move(models, alias, step)
            written += 1
            if not stack or stack[-1] != step:
                stack.append(step)
        elif len(stack) > 1:
            stack.pop()
            assert _rollback(models, alias).digest == stack[-1]
            written += 1
        else:
            with pytest.raises(NotFoundError):
                _rollback(models, alias)
        assert models.alias("chat", alias, "model") == (stack[-1] if stack else None)
    events = models.alias_events("chat", alias, "model")
    assert len(events) == written
    assert all(later.seq > earlier.seq for earlier, later in itertools.pairwise(events))
    assert all(later.previous == earlier.digest for earlier, later in itertools.pairwise(events))


def _move(registry: Registry, alias: str, digest: str):
    return registry.move_alias("chat", alias, digest, kind="model", actor="ada", reason="because")


def _rollback(registry: Registry, alias: str):
    return registry.rollback("chat", alias, kind="model", actor="ada", reason="it was worse")
