"""Which replica: the choice alone, and within Serve's router."""

import asyncio
import collections
import math
import warnings
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray Serve's own, from pydantic, as it is imported
    from ray.serve._private.common import DeploymentHandleSource, DeploymentID
    from ray.serve.request_router import ReplicaID

from llmray.serve.engine import EngineRequest
from llmray.serve.engines import ModelArgs
from llmray.serve.routing import NEVER_TOO_MANY, SHARE, AffinityRouter, in_order, prefix_key, ranked, replica_options

NAMES = st.lists(st.text("abcdef0123456789", min_size=4, max_size=8), min_size=1, max_size=12, unique=True)


@given(names=NAMES, keys=st.lists(st.text(), max_size=200))
def test_no_replica_gets_more_than_its_share(names: list[str], keys: list[str]) -> None:
    loads = dict.fromkeys(names, 0)
    for number, key in enumerate(keys):
        loads[in_order(key, loads)[0]] += 1
        assert max(loads.values()) <= max(NEVER_TOO_MANY, math.ceil(SHARE * (number + 1) / len(names)))


@given(names=NAMES, key=st.text(), gone=st.integers(0))
def test_only_keys_of_a_replica_that_goes_move(names: list[str], key: str, gone: int) -> None:
    order = ranked(key, names)
    left = [name for name in names if name != names[gone % len(names)]]
    assert ranked(key, left) == [name for name in order if name in left]
    assert sorted(in_order(key, dict.fromkeys(names, 3))) == sorted(names)


def test_keys_spread_evenly_and_a_popular_one_overflows_to_the_same_neighbour() -> None:
    names = [f"replica{number}" for number in range(8)]
    counts = collections.Counter(ranked(f"user{number}", names)[0] for number in range(8000))
    assert min(counts.values()) > 850
    first, second = ranked("popular", names)[:2]
    busy = dict.fromkeys(names, 10)
    assert in_order("popular", busy)[0] == first
    assert in_order("popular", busy | {first: 14})[:1] == [second]
    assert in_order("popular", busy | {first: 14})[-1] == first


def chat(*turns: tuple[str, str]) -> EngineRequest:
    return EngineRequest(id="a", messages=tuple({"role": role, "content": content} for role, content in turns))


def test_turns_of_a_chat_and_prompts_that_begin_alike_share_a_key() -> None:
    begin = (("system", "Be brief."), ("user", "What is a list?"))
    assert prefix_key(chat(*begin)) == prefix_key(chat(*begin, ("assistant", "An array."), ("user", "And a tuple?")))
    assert prefix_key(chat(*begin)) != prefix_key(chat(("system", "Be brief."), ("user", "What is a set?")))
    long = "x" * 5000
    assert prefix_key(EngineRequest(id="a", prompt=long + "1")) == prefix_key(EngineRequest(id="b", prompt=long + "2"))
    assert prefix_key(EngineRequest(id="a", prompt=(1, 2, 3))) == "1,2,3"
    assert prefix_key(EngineRequest(id="a", prompt="")) is None
    assert in_order("\ud800", {"a": 0, "b": 0})
    assert prefix_key(chat(("user", None))) is not None  # type: ignore[arg-type]


def router(by: str, replicas: list[Any]) -> AffinityRouter:
    made = AffinityRouter(
        DeploymentID(name="Model", app_name="model"),
        DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    made.initialize_state(by=by)
    for replica in replicas:
        made.replica_queue_len_cache.update(replica.replica_id, 0)
    return made


def pending(request: EngineRequest | None, number: int = 0) -> Any:
    return SimpleNamespace(
        args=[] if request is None else [request],
        metadata=SimpleNamespace(internal_request_id=f"request{number}"),
        routing_context=SimpleNamespace(should_backoff=False),
    )


def test_router_keeps_a_session_and_gives_others_the_less_busy_of_two() -> None:
    deployment = DeploymentID(name="Model", app_name="model")
    replicas: list[Any] = [SimpleNamespace(replica_id=ReplicaID(f"r{number}", deployment)) for number in range(5)]

    async def scenario() -> None:
        made = router("session", replicas)
        asked = pending(EngineRequest(id="a", prompt="x", session="eve"))
        [[first], *rest] = await made.choose_replicas(replicas, asked)
        assert (len(rest), asked.routing_context.should_backoff) == (4, True)
        assert (await made.choose_replicas(replicas[::-1], asked))[0] == [first]
        made.replica_queue_len_cache.update(first.replica_id, 9)
        assert (await made.choose_replicas(replicas, asked))[0] == rest[0]
        for other in (pending(EngineRequest(id="b", prompt="x")), pending(None)):
            two, three = await made.choose_replicas(replicas, other)
            assert (len(two), len({id(one) for one in two + three})) == (2, 5)
        firsts = {id((await made.choose_replicas(replicas, pending(None, n)))[0][0]) for n in range(50)}
        assert len(firsts) == 5
        prefix = router("prefix", replicas)
        same = [await prefix.choose_replicas(replicas, pending(EngineRequest(id=i, prompt="abc"))) for i in "ab"]
        assert same[0] == same[1]

    asyncio.run(scenario())


def test_options_name_serves_router() -> None:
    assert replica_options(ModelArgs(uri="", digest="", num_replicas=3)) == {"num_replicas": 3}
    found = replica_options(ModelArgs(uri="", digest="", max_replicas=3, routing="prefix"))
    assert found["autoscaling_config"].max_replicas == 3
    assert found["request_router_config"].get_request_router_class().__name__ == "AffinityRouter"
