"""Which replicas a gateway knows, and which of them it chooses, over real connections."""

import asyncio
import random
from dataclasses import replace

import pytest
from bare_replica import Replica, ask, run, text_of

from llmray.errors import UnavailableError
from llmray.serve.balancer import Balancer
from llmray.serve.channel import Door


class Cluster:
    """What Serve says of replicas."""

    def __init__(self, *replicas: Replica, routing: str = "power_of_two") -> None:
        self.doors: dict[str, Door] = {}
        self.replicas = list(replicas)
        self.routing = routing
        self.woken = 0
        self.asleep = False
        self.now = 0.0
        self.balancer = Balancer(self.find, self.wake, clock=lambda: self.now, draw=random.Random(1))

    async def find(self) -> list[Door]:
        if self.asleep:
            return []
        return await self.all_doors()

    async def all_doors(self) -> list[Door]:
        for replica in self.replicas:
            if replica.name not in self.doors:
                self.doors[replica.name] = await replica.door(self.routing)
        return [self.doors[replica.name] for replica in self.replicas]

    async def wake(self) -> Door:
        self.woken += 1
        if not (doors := await self.all_doors()):
            raise UnavailableError("there is no replica")
        return doors[0]

    async def looked(self) -> None:
        """Have the balancer look, as it does after a while."""
        self.now += 10
        await self.balancer._look()


def test_a_gateway_that_starts_finds_all_replicas_before_it_sends() -> None:
    async def scenario() -> None:
        cluster = Cluster(Replica("a"), Replica("b"))
        found = await asyncio.gather(*(text_of(cluster.balancer.submit(ask("a b"))) for _ in range(40)))
        assert (found, cluster.woken) == (["a b"] * 40, 0)
        assert min(len(replica.answered) for replica in cluster.replicas) > 5

    run(scenario())


def test_a_model_that_sleeps_is_asked_for_by_each_request_and_joined_once() -> None:
    async def scenario() -> None:
        cluster = Cluster(Replica())
        cluster.asleep = True
        found = await asyncio.gather(*(text_of(cluster.balancer.submit(ask("a b"))) for _ in range(20)))
        assert (found, cluster.woken) == (["a b"] * 20, 20)
        assert len(cluster.replicas[0].server._callers) == 1
        none = Cluster()
        with pytest.raises(UnavailableError, match="no replica"):
            await text_of(none.balancer.submit(ask("a b")))

    run(scenario())


def test_a_question_that_hangs_is_no_reason_to_wait_for_a_replica_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmray.serve.balancer.LOOK_S", 0.01)

    class Hanging(Cluster):
        async def wake(self) -> Door:
            self.woken += 1
            self.asleep = False
            await asyncio.Event().wait()
            raise AssertionError

    async def scenario() -> None:
        cluster = Hanging(Replica())
        cluster.asleep = True
        assert await text_of(cluster.balancer.submit(ask("a b"))) == "a b"
        assert cluster.woken == 1

    run(scenario())


def test_a_request_that_was_turned_away_goes_to_another_replica() -> None:
    async def scenario() -> None:
        old, new = Replica("old"), Replica("new")
        cluster = Cluster(old)
        await cluster.looked()
        cluster.replicas = [new]
        leaving = asyncio.ensure_future(old.server.leave())
        await asyncio.sleep(0)
        assert await text_of(cluster.balancer.submit(ask("over there", 7))) == "over there"
        assert (old.answered, new.answered) == ([], ["7"])
        await leaving

    run(scenario())


def test_replicas_that_come_are_used_and_those_that_go_are_left() -> None:
    async def scenario() -> None:
        one, two, three = (Replica(name) for name in "abc")
        cluster = Cluster(one)
        await cluster.looked()
        cluster.replicas = [one, two, three]
        await cluster.looked()
        for number in range(60):
            await text_of(cluster.balancer.submit(ask("x", number)))
        assert min(len(replica.answered) for replica in (one, two, three)) > 5
        cluster.replicas = [three]
        await cluster.looked()
        assert len(cluster.balancer._channels) == 3  # once may be a slip
        await cluster.looked()
        three.answered.clear()
        for number in range(10):
            await text_of(cluster.balancer.submit(ask("x", number)))
        assert len(three.answered) == 10

    run(scenario())


def test_the_less_busy_of_two_and_a_sessions_own() -> None:
    async def scenario() -> None:
        busy, idle = Replica("busy", open_gate=False), Replica("idle")
        cluster = Cluster(busy)
        held = [cluster.balancer.submit(ask("held on", number)) for number in range(3)]
        for events in held:
            await anext(events)
        cluster.replicas.append(idle)
        await cluster.looked()
        for number in range(8):
            await text_of(cluster.balancer.submit(ask("x", number)))
        assert len(idle.answered) == 8
        for events in held:
            await events.aclose()
        sessions = Cluster(Replica("a"), Replica("b"), Replica("c"), routing="session")
        await sessions.looked()
        for number in range(9):
            await text_of(sessions.balancer.submit(ask("x", number, session="eve")))
        assert sorted(len(replica.answered) for replica in sessions.replicas) == [0, 0, 9]

    run(scenario())


def test_what_other_gateways_have_under_way_counts_until_a_look_says_otherwise() -> None:
    async def scenario() -> None:
        busy, idle = Replica("busy", open_gate=False), Replica("idle")
        other, cluster = Cluster(busy), Cluster(busy, idle)
        held = [other.balancer.submit(ask("held on", number)) for number in range(3)]
        for events in held:
            await anext(events)
        cluster.doors = {"busy": replace(other.doors["busy"], under_way=3)}
        for number in range(5):
            await text_of(cluster.balancer.submit(ask("x", number)))
        assert len(idle.answered) == 5
        cluster.doors["busy"] = other.doors["busy"]
        await cluster.looked()
        assert [channel.under_way for channel in cluster.balancer._channels.values()] == [0, 0]
        for events in held:
            await events.aclose()

    run(scenario())
