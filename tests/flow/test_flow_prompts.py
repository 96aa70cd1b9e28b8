"""Prompts for programs, on a registry of their own."""

import pytest

import llmray as lr
from llmray.errors import GateRefusedError, InputError, NotFoundError


def test_a_prompt_from_its_first_version_to_a_protected_label() -> None:
    first = lr.put_prompt("ask", "What is {x}?", settings={"temperature": 0.0})
    second = lr.put_prompt("ask", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{x}?"}])
    assert (first.version, second.version, second.variables) == (1, 2, ["x"])
    assert lr.prompt("ask@latest").digest == second.digest
    assert lr.label_prompt("ask@production", 1).versions == {"1": 1}
    assert lr.label_prompt("ask@production", {1: 90, "ask@latest": 10}).versions == {"1": 90, "2": 10}
    assert lr.rollback_label("ask@production").versions == {"1": 1}
    lr.protect_label("ask@production")
    with pytest.raises(GateRefusedError):
        lr.label_prompt("ask@production", 2)
    assert lr.label_prompt("ask@production", 2, evidence={"decision": "promote"}).protected
    lr.protect_label("ask@production", False)
    lr.delete_label("ask@production")
    with pytest.raises(NotFoundError):
        lr.prompt("ask@production")
    with pytest.raises(InputError, match="is no label"):
        lr.delete_label("ask:1")
    with pytest.raises(InputError, match="temprature"):
        lr.put_prompt("ask", "x", settings={"temprature": 1})
