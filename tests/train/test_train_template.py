"""Only what the assistant says is trained, its stop token included; templates that would train nothing are refused."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import tokenizer

from llmray.errors import InputError
from llmray.train.template import CHAT_TEMPLATE, check_template, conversations, encode_conversation, texts

TURNS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tokenizer()


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def trained_text(tiny: Any, messages: list[dict[str, str]]) -> str:
    ids, trained = encode_conversation(tiny, messages)
    return tiny.decode([token for token, mask in zip(ids, trained, strict=True) if mask])


def test_the_trained_tokens_are_the_answers_and_their_stop_tokens(tiny: Any) -> None:
    messages = [{"role": "system", "content": "Be short."}, *chat("one?", "1.", "two?", "2.")]
    assert trained_text(tiny, messages) == f"1.{tiny.eos_token}2.{tiny.eos_token}"


@given(contents=st.lists(TURNS, min_size=1, max_size=3))
@settings(deadline=None, max_examples=40)
def test_no_content_moves_the_mask(tiny: Any, contents: list[str]) -> None:
    """Not even one that looks like a role marker."""
    answers = [f"Assistant:\n{content}" for content in contents]
    messages = chat(*[turn for content, answer in zip(contents, answers, strict=True) for turn in (content, answer)])
    assert trained_text(tiny, messages) == "".join(answer + tiny.eos_token for answer in answers)


def test_what_a_generation_is_prompted_with_is_what_training_showed(tiny: Any) -> None:
    prompt = tiny.apply_chat_template(chat("one?"), tokenize=True, add_generation_prompt=True)["input_ids"]
    ids, trained = encode_conversation(tiny, chat("one?", "1."))
    assert ids[: len(prompt)] == prompt
    assert trained[: len(prompt) + 1] == [0] * len(prompt) + [1]


def test_long_conversations_are_cut_and_silent_ones_left_out_and_both_are_counted(tiny: Any) -> None:
    long = chat("short?", "word " * 50)
    late = chat("word " * 50, "never reached")
    rows = [(7, chat("a?", "b.")), (8, long), (9, late), (10, chat("no answer?", "")), (11, chat("nobody answers"))]
    examples, counts = conversations(tiny, rows, max_length=32)
    assert [example.row for example in examples] == [7, 8]
    assert len(examples[1].input_ids) == len(examples[1].trained) == 32
    assert counts == {"rows": 5, "truncated": 2, "untrainable": 3}


def test_pre_training_on_conversations_trains_what_everybody_said(tiny: Any) -> None:
    [example], _ = conversations(tiny, [(0, chat("a?", "b."))], max_length=64, all_tokens=True)
    assert set(example.trained) == {1}
    assert tiny.decode(example.input_ids).startswith(f"{tiny.bos_token}User:\na?")


@given(rows=st.lists(TURNS, max_size=5), max_length=st.integers(2, 40))
@settings(deadline=None, max_examples=40)
def test_texts_are_split_and_no_token_is_lost(tiny: Any, rows: list[str], max_length: int) -> None:
    examples, counts = texts(tiny, list(enumerate(rows)), max_length=max_length)
    for row, text in enumerate(rows):
        pieces = [list(example.input_ids) for example in examples if example.row == row]
        whole = [tiny.bos_token_id, *tiny(text)["input_ids"], tiny.eos_token_id]
        joined = [token for piece in pieces for token in piece]
        assert joined == whole[: len(joined)]
        assert len(whole) - len(joined) <= 1  # a last piece of one token has no token before it to be predicted from
        assert all(len(piece) <= max_length for piece in pieces)
    assert counts["rows"] == len(rows)
    assert all(set(example.trained) == {1} for example in examples)


REFUSED = [
    (None, "has no chat template: use an instruct model"),
    (CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", ""), "mask is all zeros"),
    (CHAT_TEMPLATE.replace("for message in messages", "for message in messages[-2:]"), r"loses turns \(first question"),
    (CHAT_TEMPLATE.replace("'] + eos_token -}}", "'] -}}"), "never trained, so the model would not stop"),
    (
        CHAT_TEMPLATE.replace(" + eos_token -}}{%- endgeneration -%}", " -}}{%- endgeneration -%}{{- eos_token -}}"),
        "never trained",
    ),
]


@pytest.mark.parametrize(("template", "message"), REFUSED, ids=["none", "unmarked", "forgetful", "endless", "outside"])
@pytest.mark.filterwarnings("ignore:.*generation:UserWarning:transformers")
def test_a_template_that_would_train_nothing_or_the_wrong_thing_is_refused(template: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_template(tokenizer(template))


def test_a_tokenizer_without_a_stop_token_is_refused() -> None:
    made = tokenizer()
    made.eos_token = None
    with pytest.raises(InputError, match="no stop token"):
        check_template(made)


def test_a_conversation_without_an_assistant_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match="mask is all zeros"):
        encode_conversation(tiny, chat("hello?"))
