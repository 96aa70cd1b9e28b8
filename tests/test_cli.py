"""The `llmray` command, on a registry with a small life in it."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmray import artifact
from llmray.artifact import Artifact
from llmray.cli import main
from llmray.digest import digest_of
from llmray.outputs import Feedback, Output
from llmray.registry.registry import Registry

AT = datetime(2026, 1, 31, 13, tzinfo=UTC)


@pytest.fixture
def life(tmp_path: Path) -> dict[str, Any]:
    """Two snapshots, two models, a prompt, an answer with feedback, an alarm, two runs."""
    with Registry.open() as registry:
        for number, lr in enumerate(("0.1", "0.2")):
            run = registry.start_run("lifecycle", config={}, run_id=f"run-{number}", actor="ada")
            step = registry.start_step(run.run_id, "train", key=f"k{number}", fields={"step": "train", "config.lr": lr})
            registry.add_spend(run.run_id, "train", core_seconds=60, gpu_seconds=0, money=0.01)
            registry.finish_step(step, "done", outputs={}, seconds=30.0)
            registry.finish_run(run.run_id, "done")
        data = [_snapshot(tmp_path, texts) for texts in (["one", "two"], ["two", "three", "four"])]
        for one in data:
            registry.put_artifact(one, name="docs")
        models = []
        for number, one in enumerate(data):
            model = Artifact(
                kind="model", digest=digest_of(f"model {number}"), uri=f"/m{number}", parents={"data": one.digest},
                config={"lr": number + 0.1, "steps": 10}, report={"loss": 2.0 - number},
            )  # fmt: skip
            models.append(registry.put_artifact(model, name="chat"))
            registry.move_alias(
                "chat", "production", model.digest, kind="model", actor="ada", reason="won",
                evidence={"decision": "promote"},
            )  # fmt: skip
        prompts = [
            registry.put_prompt(
                "ask", messages=[{"role": "user", "content": text}], settings={}, message=text[:5], author="ada"
            )
            for text in ("What is {x}?", "Explain {x}.")
        ]
        registry.put_outputs([_output(models[1].digest, prompts[1].digest)])
        registry.put_feedback(
            Feedback(id="f1", output_id="answer-1", kind="thumb", value={"up": False}, source="bob", at=AT)
        )
        registry.add_event("drift.alarm", models[1].digest, {"statistic": 9.5})
    return {"data": data, "models": models, "prompts": prompts}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def says(call: Callable[..., tuple[int, str, str]], life: dict[str, Any]) -> Callable[..., str]:
    """Runs a command that succeeds; also checks that its JSON is JSON."""

    def run(*argv: str) -> str:
        code, out, err = call(*argv)
        assert (code, err) == (0, "")
        return out

    return run


def test_runs_and_their_steps(says: Callable[..., str]) -> None:
    lines = says("runs").splitlines()
    assert lines[0].split() == ["run", "name", "status", "actor", "started", "took"]
    assert [line.split()[0] for line in lines[2:]] == ["run-1", "run-0"]
    assert len(says("runs", "--limit", "1").splitlines()) == 3
    assert "train  done    30.0 s" in says("runs", "run-1")
    assert [run["run_id"] for run in json.loads(says("runs", "--json"))] == ["run-1", "run-0"]


def test_lineage_of_an_answer_leads_to_its_data(says: Callable[..., str], life: dict[str, Any]) -> None:
    tree = says("lineage", "answer-1")
    assert "output answer-1 'It joins.'" in tree
    assert f"  model: model chat:2 {life['models'][1].digest[:12]}\n    data: dataset docs:2" in tree
    assert "  prompt: prompt ask:2" in tree
    assert "  feedback: thumb from bob: {'up': False}" in tree
    assert "  adapter: adapter legal" in tree
    assert "  document: document {'id': 'page-7', 'score': 0.5}" in tree
    for fact in ('variables: {"x": "os.path.join"}', 'quantization: "nf4"', "cost: 0.25", 'request_id: "request-1"'):
        assert f"  {fact}" in tree
    down = says("lineage", "docs:2")
    assert "  data: model chat:2" in down
    assert "model: output answer-1" in says("lineage", "chat@production")
    assert "prompt: output answer-1" in says("lineage", "ask@latest")
    value = json.loads(says("lineage", "answer-1", "--json"))
    assert value["node"] == "answer-1"
    assert {edge["role"] for edge in value["ancestors"]} == {"model", "prompt", "data", "adapter", "document"}


def test_diff_of_datasets_prompts_and_models(says: Callable[..., str]) -> None:
    data = says("diff", "docs:1", "docs:2", "--examples", "1")
    assert "rows: 1 kept, 2 added, 1 removed" in data
    assert data.count("\n  + ") == data.count("\n  - ") == 1
    assert says("diff", "ask:1", "ask:2").splitlines()[-2:] == ["-What is {x}?", "+Explain {x}."]
    model = says("diff", "chat:1", "chat:2")
    assert [line.split() for line in model.splitlines() if line.startswith(("config", "report"))] == [
        ["config.lr", "0.1", "1.1"],
        ["report.loss", "2.0", "1.0"],
    ]
    assert json.loads(says("diff", "docs:1", "docs:2", "--json"))["rows"]["added"] == 2


def test_cache_explain_names_the_field(says: Callable[..., str]) -> None:
    text = says("cache", "explain", "train")
    assert "it ran because this changed: config.lr" in text
    assert ["config.lr", "0.1", "0.2"] in [line.split() for line in text.splitlines()]
    changes = json.loads(says("cache", "explain", "train", "--json"))["changes"]
    assert changes == [{"field": "config.lr", "before": "0.1", "after": "0.2"}]


def test_rollback_is_an_event(says: Callable[..., str], call: Callable[..., Any], life: dict[str, Any]) -> None:
    said = says("rollback", "chat@production", "--reason", "worse")
    assert said.startswith(
        f"chat@production is model chat:1 {life['models'][0].digest[:12]} again; it was model chat:2"
    )
    history = says("aliases", "chat")
    assert "rollback" in history.splitlines()[-1]
    assert "worse" in history.splitlines()[-1]
    code, _, err = call("rollback", "chat@production")
    assert (code, err.count("\n")) == (2, 1)
    assert "nothing to go back to" in err


def test_prompts_from_a_file_to_a_split_and_back(
    says: Callable[..., str], call: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "ask.yaml"
    file.write_text("messages: [{role: user, content: 'Tell me of {x}.'}]\nsettings: {temperature: 0}\n")
    assert says("prompts", "create", "ask", "--file", str(file), "--message", "warmer").startswith("ask:3 ")
    assert says("prompts", "create", "ask", "--user", "What is {x}?").startswith("ask:1 ")
    assert says("prompts", "show", "ask:3").endswith("[user]\nTell me of {x}.\n")
    assert "+temperature = 0" in says("prompts", "diff", "ask:1", "ask:3")
    says("prompts", "label", "ask@production", "1")
    said = says("prompts", "label", "ask@production", "1=90", "3=10", "--reason", "try it")
    assert said == "ask@production names ask:1 90%, ask:3 10% now; it was ask:1\n"
    assert "production 90%" in says("prompts", "list", "ask")
    assert says("prompts", "rollback", "ask@production") == "ask@production names ask:1 now; it was ask:1\n"
    says("prompts", "protect", "ask@production")
    assert "production*" in says("prompts", "list")
    assert call("prompts", "label", "ask@production", "3")[0] == 3
    assert call("prompts", "delete-label", "ask@production")[0] == 3
    (tmp_path / "verdict.json").write_text('{"decision": "promote"}')
    says("prompts", "label", "ask@production", "3", "--evidence", str(tmp_path / "verdict.json"))
    assert len(says("prompts", "verdict", "ask:3", str(tmp_path / "verdict.json")).strip()) > 8
    says("prompts", "protect", "ask@production", "--off")
    assert says("prompts", "delete-label", "ask@production") == "ask@production names nothing now; it was ask:3\n"
    events = [event["type"] for event in json.loads(says("prompts", "history", "ask@production", "--json"))]
    assert events == ["move", "move", "rollback", "protect", "move", "unprotect", "delete"]
    assert call("prompts", "show", "ask@production")[0] == 2


def test_small_lists(says: Callable[..., str], llmray_home: Path) -> None:
    assert says("spend").splitlines()[-1].split() == ["total", "120", "0", "0.02"]
    assert says("spend").split()[:6] == ["run", "name", "step", "core_s", "gpu_s", "money"]
    (llmray_home / "prices.yaml").write_text("{currency: EUR, core_hour: 0.04}")
    assert says("spend").split()[5] == "EUR"
    assert "model chat:2" in says("alarms")
    assert "bob" in says("feedback")
    assert says("feedback", "--source", "nobody") == "no feedback\n"
    assert "It joins." in says("outputs")
    shown = says("outputs", "answer-1")
    for part in ("model chat:2", "prompt ask:2", "legal", "page-7", "0.25", "request-1"):
        assert part in shown
    assert json.loads(says("outputs", "answer-1", "--json"))["feedback"][0]["value"] == {"up": False}


def test_an_empty_registry_says_so(call: Callable[..., tuple[int, str, str]]) -> None:
    for argv, text in (
        (("runs",), "no runs yet"),
        (("spend",), "nothing spent yet"),
        (("alarms",), "no alarm"),
        (("feedback",), "no feedback"),
        (("prompts", "list"), "no prompts yet"),
        (("outputs",), "no outputs yet"),
    ):
        assert call(*argv) == (0, f"{text}\n", "")
        assert json.loads(call(*argv, "--json")[1]) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lineage", "nothing@latest"], "no artifact is called nothing; there are chat, docs"),
        (["lineage", "what?"], "is no reference"),
        (["diff", "docs:1", "chat:1"], "docs:1 is a dataset and chat:1 a model"),
        (["diff", "docs:1", "ask:1"], "compare two of a kind"),
        (["cache", "explain", "sing"], "no step 'sing' has run; steps that have: train"),
        (["rollback", "chat:1"], "is no alias"),
        (["rollback", "chat@best"], "there is no alias chat@best"),
        (["promote", "chat:1", "--evidence", "nope@latest"], "no evaluation is called nope"),
        (["promote", "chat:1"], "--evidence"),
        (["outputs", "none"], "there is no output none"),
        (["runs", "none"], "there is no run none"),
        (["runs", "--limit", "0"], "must be a whole number from 1"),
        (["prompts", "list", "nope"], "there are ask"),
        (["prompts", "show", "ask:9"], "ask has versions up to 2"),
        (["prompts", "label", "ask:1", "2"], "is no label"),
        (["prompts", "label", "ask@production", "1=many"], "write VERSION=WEIGHT"),
        (["prompts", "label", "ask@production", "1", "1=2"], "the same version"),
        (["prompts", "label", "ask@production", "9"], "ask has versions up to 2"),
        (["prompts", "rollback", "ask@production"], "no prompt alias ask@production"),
        (["prompts", "history", "ask@production"], "there is no label ask@production"),
        (["prompts", "create", "ask"], "give --file, or the texts"),
        (["prompts", "create", "ask", "--file", "/nowhere.yaml"], "cannot be read"),
        (["prompts", "create", "ask", "--user", "{a.b}"], "is no placeholder"),
        (["prompts", "create", "ask", "--user", "a", "--set", "temperature=hot"], "settings.temperature"),
        (["aliases", "nope"], "names that have: ask, chat, docs"),
        (["dance"], "invalid choice"),
        ([], "required"),
    ],
)
def test_errors_are_one_line_and_exit_2(
    life: dict[str, Any], call: Callable[..., tuple[int, str, str]], argv: list[str], message: str
) -> None:
    code, out, err = call(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert err.startswith("llmray: ")


def test_a_database_that_is_away_exits_75(
    call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMRAY_DATABASE_URL", f"sqlite:///{tmp_path}")
    code, _, err = call("runs")
    assert (code, err.count("\n")) == (75, 1)


def test_help(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for name in ("runs", "lineage", "diff", "cache", "promote", "rollback", "spend", "alarms", "feedback", "aliases"):
        assert f"    {name} " in out


def test_the_command_loads_neither_ray_nor_torch() -> None:
    code = "import sys, llmray.cli; print([name for name in ('ray', 'torch', 'pyarrow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_reader_that_leaves_early_is_no_error(life: dict[str, Any]) -> None:
    done = subprocess.run(
        f"{sys.executable} -m llmray.cli runs | true", shell=True, check=True, capture_output=True, text=True
    )
    assert done.stderr == ""


def _snapshot(root: Path, texts: list[str]) -> Artifact:
    table = pa.table(
        {
            "id": [digest_of(text) for text in texts],
            "text": texts,
            "source": ["a.jsonl"] * len(texts),
            "row": list(range(len(texts))),
        }
    )
    with artifact.draft("dataset", root_uri=str(root)) as draft:
        (draft.folder / "kept").mkdir()
        pq.write_table(table, draft.folder / "kept" / "part-0.parquet")
        return draft.seal(report={"rows": len(texts)})


def _output(model: str, prompt: str) -> Output:
    return Output(
        id="answer-1",
        at=AT,
        prompt_digest=prompt,
        prompt_reference="ask@production",
        variables={"x": "os.path.join"},
        messages=[{"role": "user", "content": "Explain os.path.join."}],
        completion="It joins.",
        finish_reason="stop",
        model_digest=model,
        variant="stable",
        quantization="nf4",
        engine="hf",
        sampling={"temperature": 0.0},
        prompt_tokens=5,
        completion_tokens=3,
        ttft_s=0.02,
        latency_s=0.1,
        adapter="legal",
        documents=[{"id": "page-7", "score": 0.5}],
        request_id="request-1",
        cost=0.25,
    )
