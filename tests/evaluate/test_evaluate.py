"""The whole evaluation on a cluster: items, report, and that the number of workers changes nothing."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from random_llama import conversation, model_artifact, snapshot

from llmray.artifact import Artifact
from llmray.errors import ConfigError, InputError, NotFoundError
from llmray.evaluate.evaluate import evaluate
from llmray.evaluate.gate import GatePolicy, Hold, Promote, decide
from llmray.evaluate.scores import load_scores

pytestmark = pytest.mark.ray
MODULES = ["os", "json", "base64", "collections"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = [
        conversation(f"Which module defines `f{i}`?", MODULES[i % 4], choices=MODULES, group=f"g{i // 2}")
        for i in range(80)
    ]
    rows += [conversation(f"What does `f{i}` do?", f"It does {i} things. " * (1 + i % 5)) for i in range(60)]
    rows.append({**conversation("seen in training", "never scored"), "split": "train"})
    return snapshot(tmp_path_factory.mktemp("data"), rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return model_artifact(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="module")
def evaluation(
    ray_cluster: None, model: Artifact, data: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    return evaluate(model.uri, data.uri, root_uri=str(tmp_path_factory.mktemp("root")), config={"why": "test"})


def test_the_report_and_the_items_agree(evaluation: Artifact, model: Artifact, data: Artifact) -> None:
    table = pq.read_table(evaluation.local() / "items.parquet")
    assert table.column_names == ["task", "id", "value", "weight", "metric", "cluster"]
    assert evaluation.parents == {"model": model.digest, "data": data.digest}
    assert evaluation.config["why"] == "test"
    scores = load_scores(evaluation.uri)
    assert (scores.model, scores.data) == (model.digest, data.digest)
    assert {name: entry["n"] for name, entry in evaluation.report.items()} == {"choice": 80, "heldout": 140}
    for name, entry in evaluation.report.items():
        assert entry["low"] <= entry["mean"] <= entry["high"]
        assert entry["mean"] == pytest.approx(scores.tasks[name].mean)
    assert evaluation.report["choice"]["clusters"] == 40


def test_a_cluster_with_room_for_one_of_two_workers_gives_the_same_bytes(
    evaluation: Artifact, model: Artifact, data: Artifact, tmp_path: Path
) -> None:
    others = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"] - 1}])
    ray.get(others.ready())
    try:
        again = evaluate(model.uri, data.uri, num_workers=2, root_uri=str(tmp_path))
    finally:
        ray.util.remove_placement_group(others)
    assert again.digest == evaluation.digest


def test_the_same_rows_for_every_model_and_the_gate_between_them(data: Artifact, tmp_path: Path) -> None:
    other = model_artifact(tmp_path, seed=1)
    one = model_artifact(tmp_path, seed=0)
    first, second = (
        load_scores(evaluate(m.uri, data.uri, tasks=["heldout"], max_rows=60, root_uri=str(tmp_path)).uri)
        for m in (one, other)
    )
    assert first.tasks["heldout"].ids == second.tasks["heldout"].ids
    policy = GatePolicy(tasks={"heldout": GatePolicy().tasks["heldout"]})
    better, worse = sorted((first, second), key=lambda scores: scores.tasks["heldout"].mean)
    assert isinstance(decide(better, worse, policy), Promote)
    assert isinstance(decide(worse, better, policy), Hold)


def test_nothing_of_the_workers_is_left(evaluation: Artifact) -> None:
    from ray.util.state import list_actors

    there = list_actors(ray.get_runtime_context().gcs_address, filters=[("state", "!=", "DEAD")])
    assert [actor for actor in there if "_Worker" in actor["class_name"]] == []


def test_what_cannot_be_evaluated_is_refused(
    ray_cluster: None, model: Artifact, data: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no_such_task"):
        evaluate(model.uri, data.uri, tasks=["no_such_task"])
    with pytest.raises(ConfigError, match="max_rows"):
        evaluate(model.uri, data.uri, max_rows=0)
    with pytest.raises(ConfigError, match="empty"):
        evaluate(model.uri, data.uri, tasks=[])
    with pytest.raises(InputError, match="no held-out row"):
        evaluate(model.uri, data.uri, tasks=["preference"])
    with pytest.raises(InputError, match="not a dataset"):
        evaluate(model.uri, model.uri)
    with pytest.raises(NotFoundError):
        evaluate(str(tmp_path / "nowhere"), data.uri)
    with pytest.raises(InputError, match="max_length"):
        evaluate(model.uri, data.uri, tasks=["heldout"], max_length=2, root_uri=str(tmp_path))


def test_a_folder_that_is_no_model_is_told_in_one_sentence(ray_cluster: None, data: Artifact, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        evaluate(str(tmp_path), data.uri, tasks=["heldout"], root_uri=str(tmp_path / "root"))
