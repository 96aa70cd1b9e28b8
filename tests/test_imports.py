"""The front door is light: neither Ray nor torch is loaded before somebody needs it."""

import subprocess
import sys

import pytest

HEAVY = {"ray", "torch", "transformers", "deepspeed", "pandas", "sqlalchemy", "matplotlib"}


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        ("llmray", set()),
        ("llmray.errors, llmray.digest, llmray.storage, llmray.artifact, llmray.reference, llmray.resources", set()),
        ("llmray.options, llmray.console, llmray.cluster", set()),
        ("llmray.cli", {"sqlalchemy"}),
        ("llmray.flow.step, llmray.flow.identity, llmray.flow.inputs, llmray.flow.traffic", {"sqlalchemy"}),
        ("llmray.train.shape, llmray.train.memory, llmray.train.flops", set()),
        ("llmray.train.spec, llmray.train.trainer, llmray.train.packing, llmray.train.cursor", {"pandas"}),
    ],
)
def test_what_an_import_loads(modules: str, allowed: set[str]) -> None:
    code = f"import sys, {modules}; print(*{HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= allowed


def test_a_public_name_stays_what_it_is_when_a_package_of_that_name_is_loaded() -> None:
    code = """
import types, llmray as lr
verbs = [name for name in lr.__all__ if name[0].islower()]
before = {name: getattr(lr, name) for name in verbs}
import llmray.align.spec, llmray.evaluate.gate, llmray.tune.spec, llmray.train.spec
from llmray.evaluate.gate import GatePolicy
from llmray import evaluate
assert {name: getattr(lr, name) for name in verbs} == before
assert not [name for name, verb in before.items() if isinstance(verb, types.ModuleType) or not callable(verb)]
assert lr.GatePolicy is GatePolicy and lr.evaluate is evaluate
assert isinstance(llmray.train, types.ModuleType)
assert set(verbs) < set(dir(lr))
print(len(verbs))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8
