"""One dataclass gives the flags, the YAML file and the help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from llmray.errors import (
    BudgetExhaustedError,
    ConfigError,
    GateRefusedError,
    InputError,
    LLMRayError,
    UnavailableError,
)
from llmray.options import parse, run_job


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 1e-3
    """Highest learning rate."""
    steps: int = 100
    """Optimizer steps."""
    secret: str = field(default="", metadata={"flag": False})
    """Filled in by code."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"train.lr ({self.lr}) must be above zero")


@dataclass(frozen=True, kw_only=True)
class Options:
    sources: list[str] = field(default_factory=list)
    """Files to read."""
    kind: Literal["sft", "dpo"] = "sft"
    """What is learned."""
    tasks: tuple[str, ...] = ("heldout",)
    """What is asked."""
    limit: int | None = 5
    """Rows at most."""
    quiet: bool = False
    """Say nothing."""
    loud: bool | None = None
    """Say all; by default as before."""
    train: Inner = field(default_factory=lambda: Inner(steps=7, secret="ours"))
    """How it is learned."""


def options(*argv: str) -> Options:
    return parse(Options, argv, prog="job", description="A job.")


def test_no_flags_give_the_defaults_also_those_that_a_config_presets_in_another() -> None:
    got = options()
    assert (got.sources, got.kind, got.tasks, got.limit) == ([], "sft", ("heldout",), 5)
    assert (got.train.lr, got.train.steps) == (1e-3, 7)


def test_flags_fill_nested_configs_lists_tuples_and_nulls() -> None:
    got = options(
        "--sources", "a.jsonl", "b c.parquet", "--kind", "dpo", "--train.lr", "0.5", "--tasks", "choice", "mine:task",
        "--limit", "null",
    )  # fmt: skip
    assert got == Options(
        sources=["a.jsonl", "b c.parquet"],
        kind="dpo",
        tasks=("choice", "mine:task"),
        limit=None,
        train=Inner(lr=0.5, steps=7, secret=got.train.secret),
    )


def test_lists_and_switches_as_people_write_them() -> None:
    assert options("--tasks=a", "--quiet").tasks == ("a",)
    assert options("--quiet").quiet
    assert options("--quiet", "--limit", "3").quiet
    assert not options("--quiet", "false").quiet
    assert not options("--quiet=false").quiet
    assert options("--loud", "--quiet").loud
    assert (options().loud, options("--loud", "false").loud) == (None, False)
    assert options("--tasks", "[ab]*.jsonl").tasks == ("[ab]*.jsonl",)
    assert options("--tasks", "[a, b]").tasks == ("a", "b")


def test_a_file_fills_them_too_and_later_flags_win(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("kind: dpo\nsources: [a, b]\ntrain: {lr: 0.25, steps: 9}\n")
    got = options("--config", str(tmp_path / "job.yaml"), "--train.lr", "0.5")
    assert (got.kind, got.sources, got.train.lr, got.train.steps) == ("dpo", ["a", "b"], 0.5, 9)
    got = options("--train.lr", "0.5", "--config", str(tmp_path / "job.yaml"))
    assert got.train.lr == 0.25


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--train.rl", "1"], r"train\.rl"),
        (["--train.steps", "many"], "many"),
        (["--kind", "ppo"], "ppo"),
        (["--train.lr", "-1"], r"train\.lr \(-1\.0\) must be above zero"),
        (["--train.secret", "x"], r"train\.secret"),
        (["--config", "/no/such.yaml"], r"/no/such\.yaml"),
        (["stray"], "stray"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=named):
        options(*argv)


def test_an_unknown_key_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("train: {learning_rate: 0.25}\n")
    with pytest.raises(ConfigError, match="learning_rate"):
        options("--config", str(tmp_path / "job.yaml"))


def test_help_says_what_every_flag_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        options("--help")
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in ("--train.lr", "Highest learning rate.", "default: 0.001", "Files to read.", "--config", "default: 7"):
        assert text in said
    assert "--train.secret" not in said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LLMRayError("x"), 1),
        (ConfigError("x"), 2),
        (InputError("x"), 2),
        (GateRefusedError("x"), 3),
        (BudgetExhaustedError("x"), 4),
        (UnavailableError("x"), 75),
        (KeyboardInterrupt(), 130),
        (None, 0),
    ],
    ids=repr,
)
def test_a_job_ends_with_the_code_of_its_error_and_one_line(
    error: BaseException | None, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmray.console.setup", lambda: None)
    seen = []

    def job(config: Options) -> None:
        seen.append(config.train.lr)
        if error is not None:
            raise error

    assert run_job(job, Options, ["--train.lr", "0.5"], prog="job", description="A job.") == code
    assert seen == [0.5]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == (error is not None)
    assert said.err.startswith("job: " if error is not None else "")


def test_an_unknown_option_ends_a_job_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmray.console.setup", lambda: None)
    started: list[Options] = []
    assert run_job(started.append, Options, ["--trian.lr", "1"], prog="job", description="A job.") == 2
    assert started == []
    assert "trian.lr" in capsys.readouterr().err


def test_our_own_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmray.console.setup", lambda: None)

    def job(_: Options) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_job(job, Options, [], prog="job", description="A job.")
