"""What is pure stays light: only the shell loads Ray, and nothing loads torch."""

import subprocess
import sys
from pathlib import Path

import llmray.data

ROOT = Path(llmray.data.__path__[0])
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.rglob("*.py") if path.stem != "__init__"
)


def loaded_by(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*{{'ray', 'torch'}} & set(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_pure_modules_load_neither_ray_nor_torch() -> None:
    pure = [f"llmray.data.{name}" for name in MODULES if name not in ("curate", "tasks")]
    assert len(pure) > 15
    assert loaded_by(*pure) == set()


def test_the_shell_does_not_load_torch() -> None:
    assert "torch" not in loaded_by("llmray.data.curate")
