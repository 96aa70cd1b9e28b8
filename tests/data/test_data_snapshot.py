"""Snapshots written from records, read back and compared."""

from typing import Any

import pytest

from llmray import artifact
from llmray.data.diff import diff
from llmray.data.rows import parse_row
from llmray.data.snapshot import load_rows, write_snapshot
from llmray.data.tables import SNAPSHOT
from llmray.errors import ConfigError, InputError, NotFoundError

PREFERENCE = {"prompt": "p", "chosen": "c", "rejected": "r", "group": "g"}
CORRECTION = {"question": "q", "answer": "a", "choices": ["a", "b"]}


def test_rows_come_back_by_shape_and_split() -> None:
    records: list[dict[str, Any]] = [PREFERENCE, CORRECTION, *({"text": f"row {number}"} for number in range(200))]
    made = write_snapshot(records, source="feedback", heldout_fraction=0.3)
    table = load_rows(made.uri)
    assert table.schema.equals(SNAPSHOT)
    assert table.num_rows == 202
    assert table["id"].to_pylist() == sorted(parse_row(record).id for record in records)
    (preference,) = load_rows(made.uri, shape="preference").to_pylist()
    assert {name: preference[name] for name in PREFERENCE} == PREFERENCE
    assert (preference["source"], preference["row"]) == ("feedback", 1)
    (task,) = load_rows(made.uri, shape="messages").to_pylist()
    assert task["messages"] == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert task["choices"] == ["a", "b"]
    heldout = load_rows(made.uri, shape="text", split="heldout", columns=["text"])
    assert 35 < heldout.num_rows < 85
    assert heldout.schema.names == ["text"]
    assert artifact.verify(made) == []


def test_the_same_records_in_another_order_are_the_same_snapshot() -> None:
    one = write_snapshot([PREFERENCE, CORRECTION], source="feedback")
    again = write_snapshot([PREFERENCE, PREFERENCE, CORRECTION], source="feedback")
    assert load_rows(one.uri, columns=["id"]).equals(load_rows(again.uri, columns=["id"]))
    assert write_snapshot([PREFERENCE, CORRECTION], source="feedback").digest == one.digest


def test_rows_of_a_group_share_a_side() -> None:
    records = [{"text": f"row {number}", "group": f"g{number % 10}"} for number in range(300)]
    written = write_snapshot(records, source="s", heldout_fraction=0.4, validation_fraction=0.2)
    table = load_rows(written.uri)
    sides: dict[str, set[str]] = {}
    for row in table.to_pylist():
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert {side for one in sides.values() for side in one} == {"train", "validation", "heldout"}


def test_onto_keeps_old_rows_and_names_the_parent() -> None:
    old = write_snapshot([{"text": "a"}, {"text": "b"}], source="first", heldout_fraction=0.5)
    new = write_snapshot([{"text": "b"}, {"text": "c"}], source="second", onto=old.uri)
    assert new.parents == {"onto": old.digest}
    rows = {row["text"]: row for row in load_rows(new.uri).to_pylist()}
    assert {text: row["source"] for text, row in rows.items()} == {"a": "first", "b": "first", "c": "second"}
    before = {row["text"]: row["split"] for row in load_rows(old.uri).to_pylist()}
    assert rows["b"]["split"] == before["b"]


def test_diff_by_row() -> None:
    one = write_snapshot([{"text": "a"}, {"text": "b"}, PREFERENCE], source="s")
    other = write_snapshot([{"text": "b"}, {"text": "c"}, CORRECTION, PREFERENCE], source="s")
    made = diff(one.uri, other.uri, examples=1)
    assert (made.added, made.removed, made.kept, made.moved) == (2, 1, 2, 0)
    assert made.removed_examples == [{"id": parse_row({"text": "a"}).id, "shape": "text", "excerpt": "a"}]
    assert len(made.added_examples) == 1
    same = diff(one.uri, one.uri)
    assert (same.added, same.removed, same.kept) == (0, 0, 3)


def test_what_cannot_be_a_snapshot() -> None:
    with pytest.raises(InputError, match="record 2 of s is no row: text is a number"):
        write_snapshot([{"text": "a"}, {"text": 5}], source="s")
    with pytest.raises(InputError, match="holds no rows"):
        write_snapshot([], source="s")
    with pytest.raises(NotFoundError, match="no dataset snapshot"):
        load_rows("/nowhere/at/all")
    made = write_snapshot([{"text": "a"}], source="s")
    with pytest.raises(ConfigError, match="no column 'txt'"):
        load_rows(made.uri, columns=["txt"])
