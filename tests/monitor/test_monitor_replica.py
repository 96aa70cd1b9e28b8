"""The replica with an in-memory sink: alarms once, keeps undelivered ones, and comes back after a restart."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from usual_traffic import SHAKESPEARE, questions

from llmray.errors import InputError, NotFoundError
from llmray.monitor.replica import MonitorReplica, Observation

USUAL = questions()


class Sink:
    """Takes alarms, unless it is down."""

    def __init__(self, *, down: bool = False) -> None:
        self.down = down
        self.alarms: list[Mapping[str, Any]] = []

    async def alarm(self, payload: Mapping[str, Any]) -> None:
        if self.down:
            raise ConnectionError("registry is away")
        self.alarms.append(payload)


def seen(texts: list[str], *, model: str = "m1") -> list[Observation]:
    return [
        Observation(output_id=f"o{i}", at=float(i), model_digest=model, variant="stable", text=text, completion="")
        for i, text in enumerate(texts)
    ]


def replica(sink: Sink | None, **options: Any) -> MonitorReplica:
    return MonitorReplica(USUAL[:300], alerts=sink, clock=lambda: 5.0, **options)


def test_quiet_on_usual_traffic_then_one_alarm() -> None:
    sink = Sink()

    async def story() -> dict[str, Any]:
        monitor = replica(sink)
        await monitor.observe(seen(USUAL[300:400]))
        quiet = await monitor.status()
        assert (quiet["alarm"], quiet["alarms"], quiet["observed"]) == (False, 0, 100)
        for text in SHAKESPEARE:
            await monitor.observe(seen([text]))
        return await monitor.status()

    status = asyncio.run(story())
    assert status["alarm"] is True
    assert status["statistic"] >= status["threshold"] == 10_000
    assert status["observed"] == 120
    [alarm] = sink.alarms
    assert (alarm["model_digest"], alarm["at"]) == ("m1", 5.0)
    assert 100 < alarm["after"] <= 110
    assert alarm["recent"][-1]["score"] > alarm["usual_score_95"]


def test_models_are_judged_apart() -> None:
    async def story() -> dict[str, Any]:
        monitor = replica(None)
        await monitor.observe(seen(USUAL[300:350], model="m1") + seen(SHAKESPEARE, model="m2"))
        return await monitor.status()

    models = asyncio.run(story())["models"]
    assert (models["m1"]["state"], models["m2"]["state"]) == ("quiet", "alarm")


def test_an_alarm_waits_for_a_sink_that_is_down() -> None:
    sink = Sink(down=True)

    async def story() -> None:
        monitor = replica(sink)
        await monitor.observe(seen(SHAKESPEARE))
        assert (await monitor.status())["undelivered"] == 1
        sink.down = False
        assert (await monitor.status())["undelivered"] == 0

    asyncio.run(story())
    assert len(sink.alarms) == 1


def test_calls_that_come_while_an_alarm_is_delivered_do_not_deliver_it_again() -> None:
    class SlowSink(Sink):
        async def alarm(self, payload: Mapping[str, Any]) -> None:
            await asyncio.sleep(0)
            await super().alarm(payload)

    sink = SlowSink()

    async def story() -> None:
        monitor = replica(sink)
        await asyncio.gather(monitor.observe(seen(SHAKESPEARE)), *(monitor.status() for _ in range(5)))

    asyncio.run(story())
    assert len(sink.alarms) == 1


def test_a_sink_that_hangs_holds_nobody_else_up() -> None:
    class HangingSink(Sink):
        def __init__(self) -> None:
            super().__init__()
            self.let = asyncio.Event()

        async def alarm(self, payload: Mapping[str, Any]) -> None:
            await self.let.wait()
            await super().alarm(payload)

    async def story() -> None:
        sink = HangingSink()
        monitor = replica(sink)
        first = asyncio.ensure_future(monitor.observe(seen(SHAKESPEARE)))
        await asyncio.sleep(0)
        await monitor.observe(seen(USUAL[300:310], model="m2"))
        assert (await monitor.status())["undelivered"] == 1
        sink.let.set()
        await first
        assert (await monitor.status())["undelivered"] == 0
        assert len(sink.alarms) == 1

    asyncio.run(story())


def test_a_replica_that_died_goes_on_where_it_was(tmp_path: Path) -> None:
    uri = str(tmp_path / "state.json")
    sink = Sink(down=True)

    async def story() -> None:
        straight = replica(None)
        for part in (SHAKESPEARE[:3], SHAKESPEARE[3:]):
            await straight.observe(seen(part))
        first = replica(sink, state_uri=uri)
        await first.observe(seen(SHAKESPEARE[:3]))
        second = replica(sink, state_uri=uri)
        await second.observe(seen(SHAKESPEARE[3:]))
        assert (await second.status())["models"] == (await straight.status())["models"]
        sink.down = False
        await replica(sink, state_uri=uri).observe([])

    asyncio.run(story())
    assert len(sink.alarms) == 1


def test_state_of_another_reference_is_not_taken_up(tmp_path: Path) -> None:
    uri = str(tmp_path / "state.json")

    async def story() -> None:
        await replica(None, state_uri=uri).observe(seen(SHAKESPEARE))
        other = MonitorReplica(USUAL[:200], state_uri=uri)
        assert (await other.status())["observed"] == 0

    asyncio.run(story())


def test_after_a_reset_anew_the_same_drift_is_found_again_as_an_alarm_of_its_own() -> None:
    sink = Sink()

    async def story() -> None:
        monitor = replica(sink)
        await monitor.observe(seen(SHAKESPEARE))
        await monitor.reset("m1", "other people come in", anew=True)
        assert (await monitor.status())["models"]["m1"]["n"] == 0
        await monitor.observe([{**one, "output_id": f"{one['output_id']}-again"} for one in seen(SHAKESPEARE)])

    asyncio.run(story())
    first, second = sink.alarms
    assert first["alarm_id"] != second["alarm_id"]


def test_reset_needs_a_known_model_and_a_reason() -> None:
    async def story() -> None:
        monitor = replica(None)
        await monitor.observe(seen(SHAKESPEARE))
        with pytest.raises(NotFoundError):
            await monitor.reset("m9", "why")
        with pytest.raises(InputError):
            await monitor.reset("m1", "")
        await monitor.reset("m1", "retrained on plays")
        assert (await monitor.status())["alarm"] is False

    asyncio.run(story())
