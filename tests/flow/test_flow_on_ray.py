"""A user's own step as a Ray task, and a promotion with real scores."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from llmray import artifact
from llmray.artifact import Artifact
from llmray.data.snapshot import write_snapshot
from llmray.errors import GateRefusedError, InputError
from llmray.evaluate.gate import policy_for
from llmray.evaluate.scores import load_scores
from llmray.flow.promote import promote
from llmray.flow.stages.evaluate import EvaluateConfig, evaluate
from llmray.flow.step import charge, step, work_folder
from llmray.registry.registry import Registry
from llmray.resources import Resources
from llmray.train.base_model import BaseModelSpec, make_base

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import what lies beside a test


class OwnError(Exception):
    """A user's exception with more than a message."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)
        self.row = row


@step(resources=Resources(cpu=0.5))
def shout(data: Artifact, *, mark: str) -> dict[str, object]:
    import ray

    charge(core_seconds=100.0)
    (work_folder() / "note").write_text("here")
    with artifact.draft("dataset") as draft:
        (draft.folder / "text").write_text((data.local() / "text").read_text().upper() + mark)
        made = draft.seal(parents={"from": data.digest})
    cores = ray.get_runtime_context().get_assigned_resources()["CPU"]
    return {"made": made, "pid": os.getpid(), "cores": cores}


@step(resources=Resources(cpu=0.5))
def fail(how: str) -> None:
    raise OwnError(7, "bad row") if how == "own" else InputError("no such column: name another")


def test_a_step_with_resources_runs_as_a_task_and_is_recorded_like_any_other(
    ray_cluster: None, llmray_home: Path
) -> None:
    with artifact.draft("dataset") as draft:
        (draft.folder / "text").write_text("quiet")
        data = draft.seal()
    result = shout(data, mark="!")
    again = shout(data, mark="!")
    made = result["made"]
    assert isinstance(made, Artifact)
    assert (made.local() / "text").read_text() == "QUIET!"
    assert made.local().is_relative_to(llmray_home)
    assert not list((llmray_home / "work").glob("*"))
    assert result["pid"] != os.getpid()
    assert result["cores"] == 0.5
    assert again == result
    with Registry.open() as registry:
        assert [record.status for record in registry.last_steps("shout")] == ["cached", "done"]
        assert registry.artifact(made.digest).manifest["parents"] == {"from": data.digest}
        [spent] = registry.spend()
    assert spent.core_seconds > 100.0


@pytest.mark.parametrize(("how", "expected"), [("own", OwnError), ("ours", InputError)])
def test_its_error_comes_back_as_it_was_raised(ray_cluster: None, how: str, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught:
        fail(how)
    assert type(caught.value) is expected
    assert caught.value.args == ((7, "bad row") if how == "own" else ("no such column: name another",))
    with Registry.open() as registry:
        assert [record.status for record in registry.last_steps("fail")] == ["failed"]


def random_model(seed: int) -> Artifact:
    """A tiny model that is sure of itself, each seed of something else."""
    import torch
    from transformers import AutoModelForCausalLM

    words = write_snapshot([{"text": "It does many things."}], source="test")
    shape = BaseModelSpec(vocab_size=320, hidden_size=64, intermediate_size=64, num_layers=1, num_heads=1, seed=seed)
    base = make_base(words.uri, shape)
    model = AutoModelForCausalLM.from_pretrained(base.uri)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.mul_(15)
    with artifact.draft("model") as draft:
        shutil.copytree(base.uri, draft.folder, dirs_exist_ok=True)
        (draft.folder / artifact.MANIFEST).unlink()
        model.save_pretrained(draft.folder)
        return draft.seal()


def test_a_promotion_from_the_scoring_to_the_alias(ray_cluster: None) -> None:
    """Two random models are scored in earnest; the better one passes the gate, and the other then does not."""
    rows = [{"question": f"What does f{n} do?", "answer": f"It does {n} things."} for n in range(60)]
    data = write_snapshot(rows, source="test", heldout_fraction=1.0)
    models = [random_model(seed) for seed in (0, 1)]
    config = EvaluateConfig(tasks=("heldout",), max_length=64)
    proofs = [evaluate(model, data, config) for model in models]
    order = sorted((0, 1), key=lambda n: load_scores(proofs[n].uri).tasks["heldout"].mean)
    better, worse = (models[n] for n in order)
    with Registry.open() as registry:
        for model in (worse, better):
            registry.put_artifact(model, name="chat")
        registry.put_artifact(data, name="docs")
        registry.move_alias("chat", "canary", worse.digest, kind="model", actor="ada", reason="first")
        verdict = promote(
            registry,
            "chat:2",
            to="canary",
            evidence=proofs[order[0]].digest,
            actor="ada",
            policy=policy_for(["heldout"]),
        )
        assert verdict.evidence["baseline"] == worse.digest
        assert registry.alias("chat", "canary", "model") == better.digest
        with pytest.raises(GateRefusedError, match="worse than the baseline"):
            promote(registry, worse.digest, to="canary", evidence=proofs[order[1]].digest, actor="ada", name="chat")
