"""Promotion: only evidence moves `production`, every move can be undone, and a refusal is remembered.

Only the scoring of a model is replaced here, by values written down for it; the rest is as in earnest.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmray import artifact
from llmray.artifact import Artifact
from llmray.digest import canonical_json
from llmray.errors import ConfigError, GateRefusedError, InputError, UnavailableError
from llmray.evaluate.gate import GatePolicy, TaskPolicy
from llmray.evaluate.scores import ITEMS, SCHEMA, SUBJECT
from llmray.flow.promote import Verdict, promote, promoted_before, settle, weigh
from llmray.flow.stages.evaluate import EvaluateConfig, evaluate
from llmray.registry.registry import Registry
from llmray.serve.canary import RolloutResult

CONFIG = EvaluateConfig(tasks=("heldout",), max_rows=60)
POLICY = GatePolicy(tasks={"heldout": TaskPolicy(direction="lower", margin=0.05)})

SKILL: dict[str, float] = {}
"""Mean loss by the digest of a model."""
SCORED: list[str] = []


def score(model_uri: str, data_uri: str, **options: Any) -> Artifact:
    """What `llmray.evaluate.evaluate` would write, of a model whose losses are known."""
    model = options["parents"]["model"]
    SCORED.append(model)
    noise = np.random.default_rng(0).normal(size=(2, options["max_rows"]))
    own = np.random.default_rng(int(model[:8], 16)).normal(size=options["max_rows"])
    losses = SKILL[model] + 0.5 * noise[0] + 0.02 * own
    rows = [
        {"task": "heldout", "id": f"{n:04}", "value": float(loss), "weight": 1.0, "metric": "nll_per_token"}
        for n, loss in enumerate(losses)
    ]
    with artifact.draft("evaluation") as draft:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), draft.folder / ITEMS)
        (draft.folder / SUBJECT).write_bytes(canonical_json(options["parents"]))
        return draft.seal(
            parents=options["parents"], config=options["config"], report={"heldout": {"mean": float(losses.mean())}}
        )


@pytest.fixture(autouse=True)
def known_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    SKILL.clear()
    SCORED.clear()
    monkeypatch.setattr(importlib.import_module("llmray.evaluate.evaluate"), "evaluate", score)
    monkeypatch.setattr("llmray.cluster.connect", lambda: None)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry.open() as opened:
        yield opened


@pytest.fixture
def data(registry: Registry) -> Artifact:
    with artifact.draft("dataset") as draft:
        (draft.folder / "rows").write_text("rows")
        made = draft.seal()
    registry.put_artifact(made, name="docs")
    return made


Make = Callable[..., Artifact]


@pytest.fixture
def make(registry: Registry) -> Make:
    def model(name: str | None, loss: float, base: Artifact | None = None) -> Artifact:
        with artifact.draft("model") as draft:
            (draft.folder / "weights").write_text(f"{name} {loss}")
            made = draft.seal(parents={} if base is None else {"base": base.digest})
        SKILL[made.digest] = loss
        registry.put_artifact(made, name=name)
        return made

    return model


def production(registry: Registry) -> str | None:
    return registry.alias("chat", "production", "model")


def ask(registry: Registry, model: Artifact, evidence: Artifact, **more: Any) -> Verdict:
    return promote(registry, model.digest, evidence=evidence.digest, actor="ada", policy=POLICY, **more)


def test_the_first_model_is_held_against_what_it_was_made_from(registry: Registry, data: Artifact, make: Make) -> None:
    base = make(None, 3.0)
    chat = make("chat", 2.0, base)
    proof = evaluate(chat, data, CONFIG)
    verdict = ask(registry, chat, proof)
    assert verdict.promoted
    assert verdict.reasons == ()
    assert production(registry) == chat.digest
    [event] = registry.alias_events("chat", "production", "model")
    assert (event.type, event.actor, event.previous) == ("move", "ada", None)
    assert event.evidence is not None
    assert event.evidence["decision"] == "promote"
    assert (event.evidence["candidate"], event.evidence["baseline"]) == (chat.digest, base.digest)
    assert event.evidence["candidate_evaluation"] == proof.digest
    baseline = registry.artifact(event.evidence["baseline_evaluation"])
    assert baseline.manifest["parents"] == {"model": base.digest, "data": data.digest}
    assert baseline.manifest["config"]["evaluate"]["max_rows"] == CONFIG.max_rows
    assert event.evidence["tasks"]["heldout"]["low"] > 0.8


def test_a_better_model_takes_over_from_the_one_in_production_and_a_rollback_undoes_it(
    registry: Registry, data: Artifact, make: Make
) -> None:
    base = make(None, 3.0)
    one, two = make("chat", 2.0, base), make("chat", 1.5, base)
    ask(registry, one, evaluate(one, data, CONFIG))
    verdict = ask(registry, two, evaluate(two, data, CONFIG))
    assert verdict.evidence["baseline"] == one.digest
    assert production(registry) == two.digest
    assert sorted(SCORED) == sorted([one.digest, two.digest, base.digest])  # each model once, then from the cache
    registry.rollback("chat", "production", kind="model", actor="bob", reason="complaints")
    assert production(registry) == one.digest


def test_what_was_replaced_comes_back_only_if_it_is_better_than_what_replaced_it(
    registry: Registry, data: Artifact, make: Make
) -> None:
    base = make(None, 3.0)
    one, two = make("chat", 2.0, base), make("chat", 1.5, base)
    for model in (one, two):
        ask(registry, model, evaluate(model, data, CONFIG))
    with pytest.raises(GateRefusedError, match="worse than the baseline"):
        ask(registry, one, evaluate(one, data, CONFIG))
    assert production(registry) == two.digest
    remembered = promoted_before(registry, one, name="chat", alias="production")
    assert remembered is not None
    assert remembered.evidence["baseline"] == base.digest
    assert promoted_before(registry, base, name="chat", alias="production") is None


def test_a_model_that_is_no_better_is_refused_and_the_refusal_remembered(
    registry: Registry, data: Artifact, make: Make
) -> None:
    base = make(None, 3.0)
    one, worse, same = make("chat", 2.0, base), make("chat", 2.4, base), make("chat", 2.0001, base)
    ask(registry, one, evaluate(one, data, CONFIG))
    for model, reason in ((worse, "worse than the baseline"), (same, "no task is shown to be better")):
        with pytest.raises(GateRefusedError, match=f"chat@production stays where it is: .*{reason}"):
            ask(registry, model, evaluate(model, data, CONFIG))
        assert production(registry) == one.digest
        event = registry.events("gate.refused", limit=1)[0]
        assert event.subject == model.digest
        assert event.payload["decision"] == "hold"
        assert reason in " ".join(event.payload["reasons"])
    assert [run.status for run in registry.runs() if run.name == "promote"] == ["refused", "refused", "done"]
    assert len(registry.alias_events("chat", "production", "model")) == 1


def test_without_superiority_a_model_that_is_as_good_may_pass(registry: Registry, data: Artifact, make: Make) -> None:
    base = make(None, 2.0)
    same = make("chat", 2.0001, base)
    policy = GatePolicy(tasks=POLICY.tasks, superiority="none")
    proof = evaluate(same, data, CONFIG)
    assert promote(registry, "chat:1", evidence=proof.uri, actor="ada", policy=policy).promoted
    assert production(registry) == same.digest


def test_evidence_about_another_model_is_refused(registry: Registry, data: Artifact, make: Make) -> None:
    base = make(None, 3.0)
    good, other = make("chat", 1.0, base), make("chat", 2.0, base)
    proof = evaluate(good, data, CONFIG)
    with pytest.raises(InputError, match=f"not about model {other.digest[:12]}: evaluate it first"):
        ask(registry, other, proof)
    with pytest.raises(InputError, match="is of kind dataset, and one of kind evaluation is needed"):
        promote(registry, "chat@latest", evidence=data.uri, actor="ada", policy=POLICY)
    assert production(registry) is None


def test_a_model_without_a_name_or_without_anything_to_compare_with_is_refused(
    registry: Registry, data: Artifact, make: Make
) -> None:
    nameless, alone = make(None, 1.0), make("chat", 1.5)
    with pytest.raises(InputError, match="has no name, so no alias can point at it"):
        ask(registry, nameless, evaluate(nameless, data, CONFIG))
    with pytest.raises(InputError, match="nothing to compare"):
        ask(registry, alone, evaluate(alone, data, CONFIG))
    assert production(registry) is None


def test_another_name_and_another_alias_may_be_asked_for(registry: Registry, data: Artifact, make: Make) -> None:
    base = make("base", 3.0)
    chat = make("chat", 2.0, base)
    ask(registry, chat, evaluate(chat, data, CONFIG), to="canary", name="helper")
    assert registry.alias("helper", "canary", "model") == chat.digest
    assert production(registry) is None


def test_promoting_what_is_there_already_changes_nothing(registry: Registry, data: Artifact, make: Make) -> None:
    chat = make("chat", 2.0, make(None, 3.0))
    proof = evaluate(chat, data, CONFIG)
    first = ask(registry, chat, proof)
    again = ask(registry, chat, proof)
    assert again == first
    assert len(registry.alias_events("chat", "production", "model")) == 1


def test_weighing_moves_nothing(registry: Registry, data: Artifact, make: Make) -> None:
    chat = make("chat", 2.0, make(None, 3.0))
    verdict = weigh(
        registry, chat, name="chat", alias="production", evidence=evaluate(chat, data, CONFIG), policy=POLICY
    )
    assert verdict.promoted
    assert production(registry) is None
    assert registry.events() == []


def test_a_verdict_is_carried_out_to_the_letter(registry: Registry, make: Make) -> None:
    chat = make("chat", 2.0)
    no = Verdict(promoted=False, reasons=("too slow", "too dear"), evidence={"decision": "hold"})
    with pytest.raises(GateRefusedError, match="stays where it is: too slow; too dear"):
        settle(registry, chat, no, name="chat", alias="production", actor="ada")
    forged = Verdict(promoted=True, reasons=(), evidence={"decision": "hold", "replaces": None})
    with pytest.raises(GateRefusedError, match="the evidence says 'hold'"):
        settle(registry, chat, forged, name="chat", alias="production", actor="ada")
    assert production(registry) is None


def test_of_two_who_weigh_against_the_same_model_one_is_told_to_weigh_again(
    registry: Registry, data: Artifact, make: Make
) -> None:
    base = make(None, 3.0)
    first, second = make("chat", 2.0, base), make("chat", 1.0, base)
    verdicts = [
        weigh(registry, one, name="chat", alias="production", evidence=evaluate(one, data, CONFIG), policy=POLICY)
        for one in (first, second)
    ]
    settle(registry, first, verdicts[0], name="chat", alias="production", actor="ada")
    with pytest.raises(UnavailableError, match="chat@production has moved to"):
        settle(registry, second, verdicts[1], name="chat", alias="production", actor="bob")
    assert production(registry) == first.digest
    ask(registry, second, evaluate(second, data, CONFIG))
    assert production(registry) == second.digest


def test_the_alias_that_moves_is_that_of_the_name_in_the_reference(
    registry: Registry, data: Artifact, make: Make
) -> None:
    model = make("chat", 2.0, make(None, 3.0))
    registry.put_artifact(model, name="other")
    proof = evaluate(model, data, CONFIG).digest
    with pytest.raises(InputError, match="is called chat and other"):
        promote(registry, model.digest, evidence=proof, actor="ada", policy=POLICY)
    promote(registry, "chat@latest", evidence=proof, actor="ada", policy=POLICY)
    assert production(registry) == model.digest
    assert registry.alias("other", "production", "model") is None


def test_settings_of_an_evaluation_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.tasks is empty"):
        EvaluateConfig(tasks=())
    with pytest.raises(ConfigError, match=r"evaluate\.num_workers \(0\)"):
        EvaluateConfig(num_workers=0)
    with pytest.raises(ConfigError, match=r"evaluate\.max_rows \(0\)"):
        EvaluateConfig(max_rows=0)
    with pytest.raises(ConfigError, match=r"evaluate\.gpus_per_worker \(-1\)"):
        EvaluateConfig(gpus_per_worker=-1)
    assert EvaluateConfig(**{**asdict(CONFIG), "tasks": list(CONFIG.tasks)}) == CONFIG


def test_evidence_whose_files_are_gone_is_not_believed(registry: Registry, data: Artifact, make: Make) -> None:
    chat = make("chat", 2.0, make(None, 3.0))
    proof = evaluate(chat, data, CONFIG)
    (Path(proof.uri) / artifact.MANIFEST).unlink()
    with pytest.raises(InputError, match="holds no artifact"):
        ask(registry, chat, proof)


def rolled(status: Literal["done", "rolled_back"], *, judged: bool = True) -> Callable[[Artifact], RolloutResult]:
    return lambda model: RolloutResult(status=status, reason="as told", digest=model.digest, judged=judged)


def test_alias_moves_only_when_the_rollout_is_done(registry: Registry, data: Artifact, make: Make) -> None:
    chat = make("chat", 2.0, make(None, 3.0))
    proof = evaluate(chat, data, CONFIG)
    with pytest.raises(GateRefusedError, match="rolled_back") as refused:
        ask(registry, chat, proof, roll_out=rolled("rolled_back"))
    assert refused.value.exit_code == 3
    with pytest.raises(UnavailableError, match="without a verdict"):
        ask(registry, chat, proof, roll_out=rolled("rolled_back", judged=False))
    assert production(registry) is None
    assert ask(registry, chat, proof, roll_out=rolled("done")).promoted
    assert production(registry) == chat.digest


def test_what_the_gate_refuses_meets_nobody(registry: Registry, data: Artifact, make: Make) -> None:
    worse = make("chat", 3.5, make(None, 3.0))
    met: list[Artifact] = []

    def roll_out(model: Artifact) -> RolloutResult:
        met.append(model)
        return rolled("done")(model)

    with pytest.raises(GateRefusedError, match="stays where it is"):
        ask(registry, worse, evaluate(worse, data, CONFIG), roll_out=roll_out)
    assert (met, production(registry)) == ([], None)
