"""Published files, read as they come: needs LLMRAY_DATA, the folder that holds them."""

import os
from collections import Counter

import pytest

from llmray.data.readers import Found, Quarantined, Reading, Record, read

pytestmark = pytest.mark.data


def records(name: str, reading: Reading | None = None) -> list[Record]:
    folder = os.environ.get("LLMRAY_DATA")
    if not folder:
        pytest.skip(f"LLMRAY_DATA names no folder with {name}")
    return list(read(f"{folder}/{name}", reading))


def test_transcripts_of_preferences() -> None:
    found = records("hh_harmless_pairs.jsonl.gz")
    rows = [record.row for record in found if isinstance(record, Found)]
    bad = [record for record in found if isinstance(record, Quarantined)]
    # In five of them the two sides part before their last turn.
    assert (len(rows), len(bad)) == (1151, 5)
    assert all("turns after what it shares" in record.reason for record in bad)
    assert not any("\n\nHuman:" in (row.chosen or "") for row in rows)
    assert not any(text.startswith("Assistant:") for row in rows for text in (row.chosen or "", row.prompt or ""))


def test_questions_and_answers() -> None:
    found = records("gsm8k_train.jsonl")
    assert Counter(type(record) for record in found) == {Found: 7473}


def test_tabs_without_a_header() -> None:
    reading = Reading(header=("sentence", "label"), columns={"text": "sentence"})
    found = records("sst2_train.tsv", reading)
    assert Counter(type(record) for record in found) == {Found: 6920}
    assert [record.number for record in found] == list(range(1, 6921))


def test_tabs_in_a_file_of_another_name_with_quotes_that_mean_nothing() -> None:
    reading = Reading(formats={"mrpc*": "tsv"}, columns={"text": "#2 String"}, quotes=False)
    found = records("mrpc_train.txt", reading)
    assert Counter(type(record) for record in found) == {Found: 4076}
    first = found[0]
    assert isinstance(first, Found)
    assert (first.row.text or "").startswith('Referring to him as only "the witness"')


def test_plays_by_the_speech() -> None:
    found = records("tinyshakespeare.txt", Reading(text_rows="paragraph"))
    assert Counter(type(record) for record in found) == {Found: 7222}
