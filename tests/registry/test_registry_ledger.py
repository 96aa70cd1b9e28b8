"""Spend and events."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from registry_values import Clock

from llmray.errors import NotFoundError
from llmray.registry.registry import Registry


def test_spend_is_summed_by_run_and_step(registry: Registry) -> None:
    registry.create_project("other")
    registry.start_run("lifecycle", config={}, run_id="one")
    registry.start_run("curate", config={}, run_id="two", project="other")
    registry.add_spend("one", "train", core_seconds=10, gpu_seconds=1, money=0.5)
    registry.add_spend("two", "curate", core_seconds=3, gpu_seconds=0)
    registry.add_spend("one", "tune", core_seconds=5, gpu_seconds=0)
    registry.add_spend("one", "train", core_seconds=2.5, gpu_seconds=2, money=0.25)
    rows = [(row.run, row.step, row.core_seconds, row.gpu_seconds, row.money) for row in registry.spend()]
    assert rows == [
        ("lifecycle", "train", 12.5, 3, 0.75), ("curate", "curate", 3, 0, 0), ("lifecycle", "tune", 5, 0, 0),
    ]  # fmt: skip
    assert [row.run_id for row in registry.spend("other")] == ["two"]
    with pytest.raises(NotFoundError, match="no run nope"):
        registry.add_spend("nope", "train", core_seconds=1, gpu_seconds=0)


def test_events_newest_first(registry: Registry, clock: Clock) -> None:
    first = registry.add_event("drift.alarm", "model-a", {"statistic": 9.5})
    since = clock.now + timedelta(seconds=1)
    registry.add_event("gate.refused", "model-b", {})
    last = registry.add_event("drift.alarm", "model-b", {"statistic": 12})
    assert [event.id for event in registry.events("drift.alarm")] == [last, first]
    assert [event.subject for event in registry.events(limit=1)] == ["model-b"]
    assert [event.kind for event in registry.events(since=since)] == ["drift.alarm", "gate.refused"]
    assert registry.events("drift.alarm")[1].payload == {"statistic": 9.5}


def test_an_alarm_is_one_event_however_many_record_it_at_once(registry: Registry) -> None:
    alarm = {"alarm_id": "a1", "model_digest": "model-a", "statistic": 9.5}
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(registry.add_alarm, [alarm] * 20)) == {"a1"}
    registry.add_alarm({**alarm, "alarm_id": "a2", "model_digest": "model-b"})
    events = registry.events("drift.alarm")
    assert [(event.id, event.subject) for event in events] == [("a2", "model-b"), ("a1", "model-a")]
    assert events[1].payload == alarm
