"""The exception tree: what a shell sees, and that every error survives a process border."""

import ast
import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import cloudpickle

import llmray
from llmray import errors
from llmray.errors import LLMRayError

ROOT = Path(llmray.__path__[0])
NEVER_LEAVE = {"RowError", "ClientLeftError", "CutShortError"}
"""Caught in the module that raises them, so no user sees them."""


def declared() -> Iterator[tuple[str, str, str]]:
    """(module, class, base) of every exception class in llmray's sources."""
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(["llmray", *path.relative_to(ROOT).with_suffix("").parts])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Exception")):
                yield module, node.name, ast.unparse(node.bases[0])


@pytest.mark.parametrize(
    ("name", "code", "kind"),
    [
        ("LLMRayError", 1, "unknown"),
        ("UserError", 2, "user"),
        ("ConfigError", 2, "user"),
        ("InputError", 2, "user"),
        ("NotFoundError", 2, "user"),
        ("GateRefusedError", 3, "user"),
        ("BudgetExhaustedError", 4, "user"),
        ("UnavailableError", 75, "system"),
        ("StoppedError", 75, "system"),
    ],
)
def test_the_tree_as_it_is_drawn(name: str, code: int, kind: str) -> None:
    error = getattr(errors, name)
    assert (error.exit_code, error.kind) == (code, kind)
    [line] = [line for line in (errors.__doc__ or "").splitlines() if line.strip(" │├└─").startswith(f"{name} ")]
    assert str(code) in line or error.exit_code == error.__base__.exit_code


def test_every_error_is_of_the_tree_and_survives_a_process_border() -> None:
    found = [(module, name) for module, name, _ in declared() if name not in NEVER_LEAVE]
    assert len(found) > 8
    for module, name in found:
        kind = getattr(importlib.import_module(module), name)
        assert issubclass(kind, LLMRayError), f"{module}.{name} stands outside the tree"
        assert kind.exit_code in {1, 2, 3, 4, 75}
        for pickler in (pickle, cloudpickle):
            error = kind("the message", 7)
            there = pickle.loads(pickler.dumps(error))
            assert type(there) is kind
            assert (there.args, vars(there)) == (error.args, vars(error))


def test_what_stands_outside_the_tree_is_nothing_but_what_never_leaves() -> None:
    outside = {name for _, name, base in declared() if base.endswith(("Exception", "ValueError", "RuntimeError"))}
    assert outside == NEVER_LEAVE | {"LLMRayError"}
