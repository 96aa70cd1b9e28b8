"""The README's commands, as they stand there; only sizes are made smaller, and each such change must find its place."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Lived
from small_life import ROOT

from llmray import cli
from llmray.options import parse

README = (ROOT / "README.md").read_text()
SMALLER = {
    "max_steps=200)": "max_steps=4, num_workers=1), shape=lr.BaseModelSpec(hidden_size=64, num_heads=1, num_layers=1)",
    "core_seconds=600)": "core_seconds=300), search=lr.TuneSpec(num_trials=1, max_trial_s=120, teardown_s=20), "
    "spec=lr.TrainSpec(max_steps=3, method='lora', num_workers=1)",
    "config=best.config": "config={**best.config, 'max_steps': 40, 'lr': 1e-3, 'method': 'full', 'num_workers': 1}",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Every call of a program in the shell blocks, without its comment."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [
        words[words.index(program) + 1 :] for line in lines if program in (words := shlex.split(line, comments=True))
    ]


def test_every_job_that_is_named_takes_the_options_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [words for words in commands("python") if words[0].startswith("jobs/")]
    assert len(calls) >= 4
    for script, *arguments in calls:
        spec = importlib.util.spec_from_file_location(f"readme_{Path(script).stem}", ROOT / script)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        config = getattr(module, "Config", None) or module.LifecycleConfig
        if arguments != ["--help"]:
            parse(config, arguments, prog=script, description="")


@pytest.mark.ray
@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_sdk_as_shown(lived: Lived, tmp_path: Path) -> None:
    sdk, step, _ = blocks("python")
    for shown, smaller in SMALLER.items():
        assert sdk.count(shown) == 1, shown
        sdk = sdk.replace(shown, smaller)
    (tmp_path / "raw").symlink_to(lived.life.raw)
    (tmp_path / "sdk.py").write_text(f"{sdk}\nprint(report.report)\n{step}")
    done = subprocess.run(
        [sys.executable, "sdk.py"],
        cwd=tmp_path,
        env={**lived.life.environment, "LLMRAY_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report, rows = done.stdout.strip().splitlines()
    assert "nll_per_token" in report
    assert int(rows) > 100


@pytest.mark.ray
@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_look_around_works(
    lived: Lived, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMRAY_HOME", str(lived.life.home))
    calls = commands("llmray")
    assert [words[0] for words in calls][-1] == "rollback"
    for words in calls:
        assert cli.main(words) == 0, (words, capsys.readouterr().err)
    assert "docs@production is model docs:1" in capsys.readouterr().out
