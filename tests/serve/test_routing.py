"""Which replica is a key's own."""

import collections
import math

from hypothesis import given
from hypothesis import strategies as st

from llmray.serve.engine import EngineRequest
from llmray.serve.routing import NEVER_TOO_MANY, SHARE, key_of, prefix_key, ranked, replica_for

NAMES = st.lists(st.text("abcdef0123456789", min_size=4, max_size=8), min_size=1, max_size=12, unique=True)


@given(names=NAMES, keys=st.lists(st.text(), max_size=200))
def test_no_replica_gets_more_than_its_share(names: list[str], keys: list[str]) -> None:
    loads = dict.fromkeys(names, 0)
    for number, key in enumerate(keys):
        loads[replica_for(key, loads)] += 1
        assert max(loads.values()) <= max(NEVER_TOO_MANY, math.ceil(SHARE * (number + 1) / len(names)))


@given(names=NAMES, key=st.text(), gone=st.integers(0))
def test_only_keys_of_a_replica_that_goes_move(names: list[str], key: str, gone: int) -> None:
    order = ranked(key, names)
    left = [name for name in names if name != names[gone % len(names)]]
    assert ranked(key, left) == [name for name in order if name in left]
    assert replica_for(key, dict.fromkeys(names, 3)) == order[0]


def test_keys_spread_evenly_and_a_popular_one_overflows_to_the_same_neighbour() -> None:
    names = [f"replica{number}" for number in range(8)]
    counts = collections.Counter(ranked(f"user{number}", names)[0] for number in range(8000))
    assert min(counts.values()) > 850
    first, second = ranked("popular", names)[:2]
    busy = dict.fromkeys(names, 10)
    assert replica_for("popular", busy) == first
    assert replica_for("popular", busy | {first: 14}) == second


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
    assert replica_for("\ud800", {"a": 0, "b": 0}) in ("a", "b")
    assert prefix_key(chat(("user", None))) is not None  # type: ignore[arg-type]


def test_routing_says_what_the_key_is() -> None:
    request = EngineRequest(id="a", prompt="abc", session="eve")
    assert [key_of(name, request) for name in ("power_of_two", "prefix", "session")] == [None, "abc", "eve"]
