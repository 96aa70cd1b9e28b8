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
        ("llmray.train.spec, llmray.train.trainer, llmray.train.packing, llmray.train.cursor", {"pandas"}),
    ],
)
def test_what_an_import_loads(modules: str, allowed: set[str]) -> None:
    code = f"import sys, {modules}; print(*{HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= allowed
