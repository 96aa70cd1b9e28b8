"""The reference and the traffic never share a row or a group."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from usual_traffic import questions

from llmray.errors import InputError
from llmray.monitor.reference import make_reference, usual_messages


def snapshot(folder: Path, texts: list[str]) -> str:
    rows = [
        {
            "id": f"r{i:05}",
            "shape": "messages",
            "split": "train" if i % 10 == 0 else "validation",
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}],
            "choices": ["yes", "no"] if i % 10 == 1 else None,
            "group": f"g{i // 4}",
        }
        for i, text in enumerate(texts)
    ]
    (folder / "kept").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "kept" / "part-00000.parquet")
    return str(folder)


def test_one_message_a_group_and_no_group_on_both_sides(tmp_path: Path) -> None:
    texts = questions()[:400]
    reference, fresh = usual_messages(snapshot(tmp_path, texts), share=0.6)
    assert not set(reference) & set(fresh)
    groups = [texts.index(text) // 4 for text in reference + fresh]
    assert len(groups) == len(set(groups)) == 100
    assert 45 < len(reference) < 75
    assert all(texts.index(text) % 10 > 1 for text in reference + fresh)


def test_limit_and_empty(tmp_path: Path) -> None:
    uri = snapshot(tmp_path, questions()[:40])
    assert len(usual_messages(uri, limit=3)[0]) == 3
    with pytest.raises(InputError, match="no heldout conversation"):
        usual_messages(uri, split="heldout")


def test_the_reference_does_not_depend_on_order_or_repeats() -> None:
    texts = questions()[:100]
    assert make_reference(texts).calibration == make_reference(texts[::-1] + texts[:5]).calibration


def test_calibration_looks_like_fresh_traffic() -> None:
    texts = questions()
    reference = make_reference(texts[:400])
    fresh = reference.score.scores(texts[400:600])
    calibration = sorted(reference.calibration)
    share_below_median = sum(score < calibration[100] for score in fresh) / 200
    assert 0.38 < share_below_median < 0.62


def test_too_few_messages_are_refused() -> None:
    with pytest.raises(InputError, match="60 different"):
        make_reference(["the same"] * 100)
