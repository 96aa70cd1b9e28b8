"""Cache entries and leases."""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_values import PROCESSES, START, fresh

from llmray.registry.registry import Registry


def test_a_result_is_found_by_its_key(registry: Registry) -> None:
    assert registry.cache_get("k1") is None
    registry.cache_put("k1", step="dedup", fields={"code": "c1"}, outputs={"value": 1})
    registry.cache_put("k2", step="dedup", fields={"code": "c2"}, outputs={"value": 2})
    registry.cache_put("k3", step="train", fields={}, outputs={})
    entry = registry.cache_get("k1")
    assert entry is not None
    assert (entry.step, entry.fields, entry.outputs) == ("dedup", {"code": "c1"}, {"value": 1})
    assert [entry.key for entry in registry.cache_entries("dedup", 5)] == ["k2", "k1"]
    assert [entry.key for entry in registry.cache_entries("dedup", 1)] == ["k2"]


def test_a_newer_result_replaces_the_older(registry: Registry) -> None:
    for value in (1, 2):
        registry.cache_put("k", step="dedup", fields={}, outputs={"value": value})
    entry = registry.cache_get("k")
    assert entry is not None
    assert entry.outputs == {"value": 2}


def test_a_lease_from_hand_to_hand(registry: Registry) -> None:
    assert registry.acquire_lease("k", "ada", 10, START)
    assert not registry.acquire_lease("k", "bob", 10, START + timedelta(seconds=9))
    assert registry.lease_owner("k") == "ada"
    assert registry.renew_lease("k", "ada", 10, START + timedelta(seconds=9))
    assert not registry.acquire_lease("k", "bob", 10, START + timedelta(seconds=18))
    registry.release_lease("k", "bob")
    assert registry.lease_owner("k") == "ada"
    assert registry.acquire_lease("k", "bob", 10, START + timedelta(seconds=19))
    assert not registry.renew_lease("k", "ada", 10, START + timedelta(seconds=20))
    registry.release_lease("k", "bob")
    assert registry.lease_owner("k") is None


def test_a_lease_goes_by_the_registrys_clock_by_default(registry: Registry) -> None:
    """The test clock moves a second on with every look."""
    assert registry.acquire_lease("k", "ada", 2.5)
    assert not registry.acquire_lease("k", "bob", 2.5)
    assert registry.renew_lease("k", "ada", 0.5)
    assert not registry.renew_lease("k", "ada", 0.5)
    assert registry.acquire_lease("k", "bob", 2.5)


_moves = st.tuples(
    st.sampled_from(["acquire", "renew", "release"]),
    st.sampled_from(["ada", "bob"]),
    st.integers(1, 6),
    st.integers(0, 4),
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(_moves, max_size=15))
def test_leases_do_what_a_model_of_them_does(registry: Registry, moves: list[tuple[str, str, int, int]]) -> None:
    key, now, holder = fresh(), START, None
    for verb, owner, ttl_s, wait_s in moves:
        now += timedelta(seconds=wait_s)
        mine = holder is not None and holder[0] == owner
        over = holder is None or holder[1] <= now
        until = now + timedelta(seconds=ttl_s)
        if verb == "acquire":
            assert registry.acquire_lease(key, owner, ttl_s, now) == (mine or over)
            holder = (owner, until) if mine or over else holder
        elif verb == "renew":
            assert registry.renew_lease(key, owner, ttl_s, now) == (mine and not over)
            holder = (owner, until) if mine and not over else holder
        else:
            registry.release_lease(key, owner)
            holder = None if mine else holder
        assert registry.lease_owner(key) == (holder[0] if holder else None)


def test_of_many_processes_one_gets_the_lease(registry: Registry, url: str) -> None:
    barrier = PROCESSES.Barrier(6)
    with PROCESSES.Pool(6, initializer=_remember, initargs=(barrier,)) as pool:
        wins = pool.map(_take_all, [(url, f"process {number}") for number in range(6)], chunksize=1)
    taken = [key for mine in wins for key in mine]
    assert sorted(taken) == [f"k{number:02}" for number in range(20)]


_barrier = None


def _remember(barrier: object) -> None:
    global _barrier  # noqa: PLW0603
    _barrier = barrier


def _take_all(job: tuple[str, str]) -> list[str]:
    url, owner = job
    with Registry.open(url) as registry:
        _barrier.wait(60)
        return [key for n in range(20) if registry.acquire_lease(key := f"k{n:02}", owner, 60, START)]


@pytest.mark.parametrize("owner", ["ada", "bob"])
def test_releasing_what_nobody_has_is_harmless(registry: Registry, owner: str) -> None:
    registry.release_lease("k", owner)
    assert registry.lease_owner("k") is None
