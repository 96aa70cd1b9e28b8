"""Differences between versions."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_values import START

from llmray import artifact
from llmray.digest import digest_of
from llmray.errors import InputError, NotFoundError
from llmray.registry.differences import differing_fields, differing_rows, why_again
from llmray.registry.records import StepRecord

STEP = StepRecord(
    step_run_id="s", run_id="r", step="dedup", key="k", fields={"code": "c"}, status="done", outputs={},
    started_at=START, finished_at=START, seconds=1.0,
)  # fmt: skip


def _snapshot(root: Path, texts: list[str]) -> str:
    rows = [
        {"id": digest_of(text), "shape": "text", "text": text, "messages": None, "source": "a.jsonl", "row": number}
        for number, text in enumerate(texts)
    ]
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    with artifact.draft("dataset", root_uri=str(root)) as draft:
        (draft.folder / "kept").mkdir()
        for part in range(2):
            table = pa.Table.from_pylist(
                rows[part::2],
                schema=pa.schema(
                    [("id", pa.string()), ("shape", pa.string()), ("text", pa.string()), ("messages", messages),
                     ("source", pa.string()), ("row", pa.int64())]
                ),
            )  # fmt: skip
            pq.write_table(table, draft.folder / "kept" / f"part-{part}.parquet")
        return draft.seal().uri


def test_rows_are_compared_by_id(tmp_path: Path) -> None:
    before, after = _snapshot(tmp_path, ["one", "two", "three"]), _snapshot(tmp_path, ["two", "three", "four", "five"])
    found = differing_rows(before, after, examples=1)
    assert (found.kept, found.added, found.removed) == (2, 2, 1)
    assert [example.text for example in found.removed_examples] == ["one"]
    assert found.added_examples[0].text in ("four", "five")
    assert found.added_examples[0].source == "a.jsonl"
    same = differing_rows(before, before)
    assert (same.kept, same.added, same.removed, same.added_examples) == (3, 0, 0, [])


def test_rows_that_are_gone_are_named(tmp_path: Path) -> None:
    before = _snapshot(tmp_path, ["one"])
    with pytest.raises(NotFoundError, match="does not exist"):
        differing_rows(before, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="kept/ is gone"):
        differing_rows(before, str(tmp_path / "empty"))
    (tmp_path / "other" / "kept").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other" / "kept" / "part-0.parquet")
    with pytest.raises(InputError, match="column id"):
        differing_rows(before, str(tmp_path / "other"))


def test_fields_are_compared_at_any_depth() -> None:
    before = {"config": {"lr": 0.1, "steps": 9}, "parents": {}, "gone": None}
    after = {"config": {"lr": 0.2, "steps": 9}, "parents": {"data": "d"}}
    changes = [(change.field, change.before, change.after) for change in differing_fields(before, after)]
    assert changes == [
        ("config.lr", 0.1, 0.2),
        ("gone", None, None),
        ("parents", {}, None),
        ("parents.data", None, "d"),
    ]


_values = st.recursive(
    st.one_of(st.none(), st.integers(0, 3), st.text("ab", max_size=2)),
    lambda inner: st.dictionaries(st.text("xyz", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=6,
)
_mappings = st.dictionaries(st.text("xyz", min_size=1, max_size=2), _values, max_size=4)


@given(before=_mappings, after=_mappings)
def test_no_change_means_equal_and_sides_mirror(before: dict, after: dict) -> None:
    changes = differing_fields(before, after)
    assert (changes == []) == (before == after)
    mirrored = [replace(change, before=change.after, after=change.before) for change in changes]
    assert differing_fields(after, before) == mirrored


@pytest.mark.parametrize(
    ("newer", "older", "reason"),
    [
        (STEP, None, "for the first time"),
        (replace(STEP, status="cached"), STEP, "in the cache"),
        (replace(STEP, key="l", fields={"code": "d"}), STEP, "because this changed: code"),
        (STEP, replace(STEP, status="failed"), "did not finish"),
        (STEP, STEP, "the cached result was gone"),
    ],
)
def test_why_a_step_ran_again(newer: StepRecord, older: StepRecord | None, reason: str) -> None:
    assert reason in why_again(newer, older)
