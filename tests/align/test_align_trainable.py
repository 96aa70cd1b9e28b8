"""What a tokenizer and a length leave of preference rows."""

from pathlib import Path
from typing import Any

import pytest
from preferences import base, records, snapshot

from llmray.align.spec import AlignSpec
from llmray.align.trainable import trainable_pairs, up_to_stop
from llmray.artifact import Artifact
from llmray.data.snapshot import write_snapshot
from llmray.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base(tmp_path_factory.mktemp("model")).uri)


def spec(data: Artifact, **options: Any) -> AlignSpec:
    return AlignSpec(model="m", data=data.uri, **options)


def test_pairs_come_as_conversations_whose_answers_end_at_the_stop_token(tokenizer: Any, tmp_path: Path) -> None:
    found = trainable_pairs(spec(snapshot(tmp_path, records(3))), tokenizer)
    assert found.counts == {"rows": 3, "prompt_too_long": 0, "alike_when_cut": 0, "cut": 0, "pairs": 3}
    assert {c["prompt"][0]["content"] for c in found.conversations} == {row["prompt"] for row in records(3)}
    [first, *_] = found.conversations
    assert [message["role"] for side in ("prompt", "chosen", "rejected") for message in first[side]] == [
        "user",
        "assistant",
        "assistant",
    ]
    ids = tokenizer.apply_chat_template(first["prompt"] + first["chosen"], tokenize=True, return_dict=True)["input_ids"]
    assert ids[-1] != tokenizer.eos_token_id
    assert up_to_stop(ids, tokenizer.eos_token_id)[-1] == tokenizer.eos_token_id


def test_up_to_stop_keeps_everything_where_nothing_stops() -> None:
    assert up_to_stop([5, 6, 7], 9) == [5, 6, 7]
    assert up_to_stop([5, 9, 6, 9, 7], 9) == [5, 9, 6, 9]
    assert up_to_stop([], 9) == []


def test_long_prompts_and_answers_alike_once_cut_are_left_out_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        *records(2),
        {"prompt": "x y z " * 60, "chosen": "yes", "rejected": "no"},
        {"prompt": "Say it.", "chosen": "a b c " * 60 + "yes", "rejected": "a b c " * 60 + "no"},
        {"prompt": "Say it.", "chosen": "short", "rejected": "q w e " * 60},
    ]
    found = trainable_pairs(spec(snapshot(tmp_path, rows), max_length=96), tokenizer)
    assert found.counts == {"rows": 5, "prompt_too_long": 1, "alike_when_cut": 1, "cut": 1, "pairs": 3}
    assert len(found.conversations) == 3


def test_a_length_that_cuts_every_answer_is_refused_with_what_is_needed(tokenizer: Any, tmp_path: Path) -> None:
    data = snapshot(tmp_path, [{"prompt": "Say.", "chosen": "yes " * 40, "rejected": "no " * 40}])
    with pytest.raises(InputError, match=r"align\.max_length \(16\) cuts every answer") as refused:
        trainable_pairs(spec(data, max_length=16), tokenizer)
    needed = int(str(refused.value).rpartition("needs ")[2].split()[0])
    assert trainable_pairs(spec(data, max_length=needed), tokenizer).counts["cut"] == 0


def test_a_snapshot_without_preferences_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    data = write_snapshot([{"text": "plain"}], source="test", root_uri=str(tmp_path))
    with pytest.raises(InputError, match="has no train rows of shape 'preference'"):
        trainable_pairs(spec(data), tokenizer)


def test_preferences_that_are_all_held_out_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    data = write_snapshot(records(2), source="test", root_uri=str(tmp_path), heldout_fraction=0.999999)
    with pytest.raises(InputError, match="has no train rows of shape 'preference'"):
        trainable_pairs(spec(data), tokenizer)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(base(tmp_path).uri)
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        trainable_pairs(spec(snapshot(tmp_path, records(1))), bare)
