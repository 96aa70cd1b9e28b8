"""The whole loop: it closes, it survives a kill, and it does nothing when there is nothing to do."""

import json
from collections import Counter

import pytest
from conftest import Lived

from llmray import artifact

pytestmark = [pytest.mark.ray, pytest.mark.serve, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_killed_driver_is_finished_by_the_next_call_without_repeating_steps(lived: Lived) -> None:
    assert "tune       done" in lived.first
    assert lived.second.returncode == 0, lived.second.stderr
    with lived.life.registry() as registry:
        runs = [run for run in registry.runs() if run.name == "lifecycle"]
        steps = [step for run in runs for step in registry.steps(run.run_id)]
    assert [run.status for run in runs][-2:] == ["done", "lost"]
    done = Counter((step.step, step.key) for step in steps if step.status == "done")
    assert set(done.values()) == {1}
    names = {name for name, _ in done}
    assert names >= {
        "curate",
        "newborn",
        "pretrain",
        "tune",
        "train",
        "evaluate",
        "converse",
        "preferences",
        "align",
        "canary",
    }
    cached = {step.step for step in registry_steps(lived, "cached")}
    assert {"curate", "newborn", "pretrain", "tune"} <= cached


def test_production_moved_twice_each_time_on_evidence(lived: Lived) -> None:
    with lived.life.registry() as registry:
        first, second = registry.alias_events("docs", "production", "model")
        assert registry.alias("docs", "production", "model") == second.digest
    for event in (first, second):
        assert event.evidence is not None
        assert event.evidence["decision"] == "promote"
        assert event.evidence["candidate"] == event.digest
    assert second.evidence["baseline"] == first.digest
    assert "preference_margin" in second.evidence["tasks"]


def test_monitor_was_quiet_then_alarmed_and_the_alarm_is_in_the_registry(lived: Lived) -> None:
    with lived.life.registry() as registry:
        *_, alarm = registry.events("drift.alarm")  # newest first; jobs/monitor.py may have looked again since
        record = next(one for one in registry.artifacts("traffic"))
        traffic = artifact.load(record.uri)
        outputs = registry.outputs(10_000)
        feedback = registry.feedback()
        served = registry.alias_events("docs", "production", "model")[0].digest
    assert traffic.report["quiet_on_usual"]
    assert traffic.report["alarm"]["event"] == alarm.id
    assert alarm.subject == served
    assert traffic.report["failed"] == 0
    assert {one.prompt_reference for one in outputs} == {"ask-docs@production"}
    assert {one.model_digest for one in outputs} >= {served}
    known = {one.id for one in outputs}
    assert feedback
    assert all(one.output_id in known and one.source == "simulated:word-overlap" and one.rule for one in feedback)


def test_canary_took_over_and_no_request_failed(lived: Lived) -> None:
    with lived.life.registry() as registry:
        [step] = [step for step in registry.last_steps("canary") if step.status == "done"]
    assert step.outputs is not None
    result = step.outputs["value"]
    assert (result["status"], result["failed"], result["errors"]) == ("done", 0, [])
    assert [one["weight"] for one in result["steps"]] == [20.0, 50.0, 100.0]
    assert result["requests"] >= 12


def test_unchanged_it_takes_everything_from_the_cache_and_starts_no_cluster(lived: Lived) -> None:
    again = lived.life.run("jobs/lifecycle.py", *lived.life.arguments, timeout_s=60)
    assert again.returncode == 0, again.stderr
    assert "0 steps run" in again.stdout
    assert "started a local Ray cluster" not in again.stderr
    with lived.life.registry() as registry:
        assert len(registry.alias_events("docs", "production", "model")) == 2


def test_report_needs_nothing_but_itself_and_tells_what_the_summary_tells(lived: Lived) -> None:
    page = (lived.life.home / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") >= 4
    assert "http-equiv" not in page
    assert 'src="' not in page
    assert "<link" not in page
    assert "drift alarm" in page
    for said in ("rollout", "docs@production", "next:", "report:"):
        assert said in lived.second.stdout


def test_lineage_leads_from_an_answer_to_the_raw_rows(lived: Lived) -> None:
    from llmray.registry.pedigree import pedigree

    with lived.life.registry() as registry:
        [newest] = registry.outputs(1)
        family = pedigree(registry, newest.id)
    roles = {edge.role for edge in family.ancestors}
    assert {"model", "prompt", "base", "data", "onto"} <= roles, json.dumps(family.as_json(), default=str)


def registry_steps(lived: Lived, status: str) -> list[object]:
    with lived.life.registry() as registry:
        return [step for run in registry.runs() for step in registry.steps(run.run_id) if step.status == status]
