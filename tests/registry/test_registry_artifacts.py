"""Artifacts, versions under a name, references, lineage."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_values import artifact, fresh

from llmray.errors import InputError, NotFoundError
from llmray.registry.records import Edge
from llmray.registry.registry import Registry


def test_versions_count_up_and_latest_follows(registry: Registry) -> None:
    first = registry.put_artifact(artifact("one", config={"a": 1}), name="docs")
    second = registry.put_artifact(artifact("two"), name="docs")
    again = registry.put_artifact(artifact("two"), name="docs")
    third = registry.put_artifact(artifact("one"), name="docs")
    assert [record.version for record in (first, second, again, third)] == [1, 2, 2, 1]
    assert first.digest == third.digest
    assert registry.resolve("docs@latest").digest == first.digest
    assert registry.resolve("docs:2") == second
    assert [(record.name, record.version) for record in registry.artifacts(name="docs")] == [("docs", 2), ("docs", 1)]
    assert first.manifest == {"parents": {}, "config": {"a": 1}, "report": {}}
    assert len(registry.alias_events("docs", "latest")) == 3


def test_an_artifact_without_a_name_is_found_by_digest(registry: Registry) -> None:
    record = registry.put_artifact(artifact("one"))
    assert (record.name, record.version) == (None, None)
    assert registry.resolve(record.digest[:12]) == record == registry.artifact(record.digest)
    assert registry.artifacts(kind="dataset") == [record]
    assert registry.artifacts(kind="model") == []


def test_bytes_that_moved_are_found_where_they_are_now(registry: Registry) -> None:
    before = artifact("one", report={"rows": 1})
    registry.put_artifact(before)
    registry.put_artifact(replace(before, uri="s3://bucket/one", report={"rows": 2}))
    record = registry.artifact(before.digest)
    assert (record.uri, record.manifest["report"]) == ("s3://bucket/one", {"rows": 2})


def test_one_name_may_have_several_kinds(registry: Registry) -> None:
    data = registry.put_artifact(artifact("one"), name="docs")
    model = registry.put_artifact(artifact("one", kind="model"), name="docs")
    assert registry.resolve("docs@latest", "dataset") == data
    assert registry.resolve("docs:1", "model") == model
    with pytest.raises(InputError, match="docs:1 is a dataset and a model"):
        registry.resolve("docs:1")


def test_a_reference_to_nothing_says_what_there_is(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="there is no named artifact yet"):
        registry.resolve("docs@latest")
    registry.put_artifact(artifact("one"), name="docs")
    registry.put_artifact(artifact("two"), name="docs")
    for reference, message in (
        ("dox@latest", "no artifact is called dox; there are docs"),
        ("docs@best", "docs has versions 1 to 2 and the aliases latest"),
        ("docs:7", "docs has versions 1 to 2 and the aliases latest"),
        ("0" * 12, "no artifact has a digest that begins with 000000000000"),
    ):
        with pytest.raises(NotFoundError, match=message):
            registry.resolve(reference)
    with pytest.raises(NotFoundError, match="no model is called docs; there is no named model yet"):
        registry.resolve("docs@latest", "model")
    with pytest.raises(InputError, match="is no reference"):
        registry.resolve("docs")


def test_a_digest_prefix_that_fits_two_is_refused(registry: Registry) -> None:
    for end in "01":
        registry.put_artifact(replace(artifact("x"), digest="ab" * 31 + "c" + end))
    with pytest.raises(InputError, match="several artifacts"):
        registry.resolve("ab" * 20)


def test_nonsense_is_not_registered(registry: Registry) -> None:
    with pytest.raises(InputError, match="cannot be a name"):
        registry.put_artifact(artifact("one"), name="My Docs")
    with pytest.raises(NotFoundError, match="no run nope"):
        registry.put_artifact(artifact("one"), name="docs", run_id="nope")
    with pytest.raises(InputError, match=r"cannot keep this"):
        registry.put_artifact(artifact("one", report={"loss": float("nan")}), name="docs")
    assert registry.artifacts() == []
    registry.put_artifact(artifact("one"))
    with pytest.raises(InputError, match="registered as a dataset"):
        registry.put_artifact(replace(artifact("one"), kind="model"))


def test_concurrent_writers_never_share_a_version(registry: Registry) -> None:
    made = [artifact(f"content {number}") for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda one: registry.put_artifact(one, name="docs"), made))
    assert sorted(record.version or 0 for record in records) == list(range(1, 25))
    assert {registry.resolve(f"docs:{record.version}").digest for record in records} == {one.digest for one in made}
    newest = max(records, key=lambda record: record.version or 0)
    assert registry.alias("docs", "latest", "dataset") == newest.digest


def test_lineage_up_and_down(registry: Registry) -> None:
    raw = artifact("raw")
    clean = artifact("clean", parents={"source": raw.digest})
    base = artifact("base", kind="model", parents={"data": raw.digest})
    model = artifact("model", kind="model", parents={"data": clean.digest, "base": base.digest})
    for one in (raw, clean, base, model, model):
        registry.put_artifact(one)
    registry.link("answer-1", model.digest, "model")
    assert registry.ancestors("answer-1")[0] == Edge(child="answer-1", parent=model.digest, role="model")
    assert {(edge.child, edge.role, edge.parent) for edge in registry.ancestors(model.digest)} == {
        (model.digest, "data", clean.digest),
        (model.digest, "base", base.digest),
        (clean.digest, "source", raw.digest),
        (base.digest, "data", raw.digest),
    }
    assert {edge.child for edge in registry.descendants(raw.digest)} == {
        clean.digest, base.digest, model.digest, "answer-1",
    }  # fmt: skip
    assert registry.ancestors("nobody") == []


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edges=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20))
def test_lineage_is_reachability_even_with_cycles(registry: Registry, edges: list[tuple[int, int]]) -> None:
    number = fresh()
    for child, parent in edges:
        registry.link(f"{number}/{child}", f"{number}/{parent}", "made from")
    reached, todo = set(), {0}
    while todo:
        reached |= todo
        todo = {parent for child, parent in edges if child in todo} - reached
    expected = {(f"{number}/{child}", f"{number}/{parent}") for child, parent in edges if child in reached}
    found = registry.ancestors(f"{number}/0")
    assert {(edge.child, edge.parent) for edge in found} == expected
    assert len(found) == len(expected)
