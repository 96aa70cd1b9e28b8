"""Runs and steps."""

import pytest
from registry_values import START

from llmray.errors import InputError, NotFoundError
from llmray.registry.registry import Registry


def test_a_run_from_start_to_end(registry: Registry) -> None:
    started = registry.start_run("curate", config={"threshold": 0.8}, actor="ada")
    assert (started.run_id, started.status, started.project, started.finished_at) == (
        "id0001", "running", "default", None,
    )  # fmt: skip
    assert started.started_at > START
    registry.finish_run(started.run_id, "failed", error="the disk is full")
    ended = registry.run(started.run_id)
    assert (ended.status, ended.error, ended.config) == ("failed", "the disk is full", {"threshold": 0.8})
    assert ended.finished_at is not None
    assert ended.finished_at > ended.started_at
    assert ended.finished_at.utcoffset() is not None


def test_a_run_goes_on_under_its_own_id(registry: Registry) -> None:
    first = registry.start_run("lifecycle", config={"a": 1}, run_id="mine")
    registry.finish_run("mine", "stopped")
    again = registry.start_run("lifecycle", config={"a": 2}, run_id="mine")
    assert (again.status, again.finished_at, again.started_at) == ("running", None, first.started_at)
    assert again.config == {"a": 2}
    assert len(registry.runs()) == 1


def test_a_run_id_is_not_shared_between_names(registry: Registry) -> None:
    registry.start_run("curate", config={}, run_id="mine")
    with pytest.raises(InputError, match="choose another run id"):
        registry.start_run("train", config={}, run_id="mine")


def test_unknown_projects_and_runs_are_refused(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="create_project"):
        registry.start_run("curate", config={}, project="nowhere")
    for call in (
        lambda: registry.run("none"),
        lambda: registry.finish_run("none", "done"),
        lambda: registry.start_step("none", "dedup", key="k", fields={}),
        lambda: registry.finish_step("none", "done", outputs=None, seconds=1.0),
    ):
        with pytest.raises(NotFoundError, match="none"):
            call()


def test_runs_are_listed_newest_first_by_project(registry: Registry) -> None:
    registry.create_project("other")
    for number in range(3):
        registry.start_run("curate", config={}, run_id=f"r{number}")
    registry.start_run("curate", config={}, run_id="elsewhere", project="other")
    assert [run.run_id for run in registry.runs(limit=2)] == ["elsewhere", "r2"]
    assert [run.run_id for run in registry.runs(project="default")] == ["r2", "r1", "r0"]


def test_steps_in_order_and_the_last_two_across_runs(registry: Registry) -> None:
    for number in range(3):
        run = registry.start_run("curate", config={}, run_id=f"r{number}")
        step = registry.start_step(run.run_id, "dedup", key=f"k{number}", fields={"code": f"c{number}"})
        registry.finish_step(step, "done", outputs={"dataset": "d"}, seconds=1.5)
        registry.start_step(run.run_id, "filter", key="f", fields={})
    steps = registry.steps("r1")
    assert [(step.step, step.status, step.seconds) for step in steps] == [
        ("dedup", "done", 1.5),
        ("filter", "running", None),
    ]
    assert (steps[0].outputs, steps[1].outputs) == ({"dataset": "d"}, None)
    assert [step.fields for step in registry.last_steps("dedup")] == [{"code": "c2"}, {"code": "c1"}]
    assert registry.step_names() == ["dedup", "filter"]
