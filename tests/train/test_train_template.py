"""Only what the assistant says is trained, its stop token included; templates that would train nothing are refused."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import tokenizer

from llmray.errors import InputError
from llmray.train.named_templates import NAMED
from llmray.train.template import check_template, conversations, encode_conversation, texts, use_template

CHAT_TEMPLATE = NAMED["plain"].jinja
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
    assert [[example.row for example in those] for those in examples] == [[7], [8], [], [], []]
    assert len(examples[1][0].input_ids) == len(examples[1][0].trained) == 32
    assert counts == {"rows": 5, "truncated": 2, "split": 0, "untrainable": 3}
    examples, counts = conversations(tiny, rows, max_length=32, too_long="split")
    assert [bool(those) for those in examples] == [True, True, True, False, False]
    [_, whole] = encode_conversation(tiny, late)
    assert sum(sum(example.trained[1:]) for example in examples[2]) == sum(whole)
    assert counts == {"rows": 5, "truncated": 0, "split": 2, "untrainable": 2}
    with pytest.raises(
        InputError, match=r"row 9 has \d+ tokens, more than train\.max_length \(32\): raise that, or choose"
    ):
        conversations(tiny, rows, max_length=32, too_long="refuse")


def test_pre_training_on_conversations_trains_what_everybody_said(tiny: Any) -> None:
    [[example]], _ = conversations(tiny, [(0, chat("a?", "b."))], max_length=64, all_tokens=True)
    assert set(example.trained) == {1}
    assert tiny.decode(example.input_ids).startswith(f"{tiny.bos_token}User:\na?")


@given(rows=st.lists(TURNS, max_size=5), max_length=st.integers(2, 40))
@settings(deadline=None, max_examples=40)
def test_every_token_of_a_split_text_is_a_target_once(tiny: Any, rows: list[str], max_length: int) -> None:
    examples, counts = texts(tiny, list(enumerate(rows)), max_length=max_length)
    for text, pieces in zip(rows, examples, strict=True):
        whole = [tiny.bos_token_id, *tiny(text)["input_ids"], tiny.eos_token_id]
        assert [token for piece in pieces for token in piece.input_ids[1:]] == whole[1:]
        assert all(len(piece.input_ids) <= max_length and set(piece.trained) == {1} for piece in pieces)
    assert counts["rows"] == len(rows)
    assert counts["split"] == sum(len(pieces) > 1 for pieces in examples)


UNMARKED = CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
REFUSED = [
    (None, r"has no chat template: use an instruct model.*train\.template \(plain, chatml, llama3, gemma\)"),
    (UNMARKED, r"mask is all zeros.*train\.template plain has them"),
    (CHAT_TEMPLATE.replace("for message in messages", "for message in messages[-2:]"), r"loses turns \(turn 1 of user"),
    (CHAT_TEMPLATE.replace("'] + eos_token -}}", "'] -}}"), "never trained at the end of an answer, so the model"),
    (
        CHAT_TEMPLATE.replace(" + eos_token -}}{%- endgeneration -%}", " -}}{%- endgeneration -%}{{- eos_token -}}"),
        "never trained",
    ),
    (CHAT_TEMPLATE.replace("+ eos_token", "+ eos_token + 'Bye'"), "never trained at the end"),
    (
        CHAT_TEMPLATE.replace("'] + eos_token -}}", "'] + (eos_token if loop.last else '') -}}"),
        "never trained at the end",
    ),
    (
        "{%- generation -%}{{- messages | map(attribute='content') | join(eos_token) + eos_token -}}{%- endgeneration -%}",
        r"trains what others say \(turn 1 of user",
    ),
    ("{{- raise_exception('no two users') -}}" + CHAT_TEMPLATE, "refuses a conversation of user.*: no two users: name"),
]


@pytest.mark.parametrize(
    ("template", "message"),
    REFUSED,
    ids=["none", "unmarked", "forgetful", "endless", "outside", "chatty", "once", "greedy", "raising"],
)
@pytest.mark.filterwarnings("ignore:.*generation:UserWarning:transformers")
def test_a_template_that_would_train_nothing_or_the_wrong_thing_is_refused(template: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_template(tokenizer(template))


def test_a_template_is_held_to_the_roles_that_the_rows_have(tiny: Any) -> None:
    deaf = tokenizer(CHAT_TEMPLATE.replace("{%- else -%}", "{%- elif message['role'] != 'system' -%}"))
    check_template(deaf)
    rows = [(1, chat("a?", "b.")), (2, [{"role": "system", "content": "Be short."}, *chat("a?", "b.")])]
    with pytest.raises(InputError, match=r"loses turns \(turn 1 of system\), so the model would never see them: name"):
        conversations(deaf, rows, max_length=32)


def knowing(*tokens: str) -> Any:
    """The tiny tokenizer with more tokens, which a base model may have and train nothing with."""
    made = tokenizer(None)
    made.add_special_tokens({"additional_special_tokens": list(tokens)})
    return made


SPOKEN = {
    "plain": "<|bos|>System:\nBe short.\nUser:\none?\nAssistant:\n[1.<|eos|>]\nUser:\ntwo?\nAssistant:\n[2.<|eos|>]\n",
    "chatml": (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n"
        "[1.<|im_end|>]\n<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n[2.<|im_end|>]\n"
    ),
    "llama3": (
        "<|bos|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\none?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[1.<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\ntwo?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "[2.<|eot_id|>]"
    ),
    "gemma": (
        "<|bos|><start_of_turn>user\nBe short.\n\none?<end_of_turn>\n<start_of_turn>model\n[1.<end_of_turn>]\n"
        "<start_of_turn>user\ntwo?<end_of_turn>\n<start_of_turn>model\n[2.<end_of_turn>]\n"
    ),
}
"""A conversation in each published format, with what is trained in brackets."""


@pytest.mark.parametrize("name", NAMED)
def test_a_named_template_writes_its_format_and_trains_answers_with_their_stop_token(name: str) -> None:
    named = NAMED[name]
    words = knowing(*named.tokens, *([named.stop] if named.stop else []))
    use_template(words, name)
    check_template(words)
    messages = [{"role": "system", "content": "Be short."}, *chat("one?", "1.", "two?", "2.")]
    ids, trained = encode_conversation(words, messages)
    edges = [now - before for before, now in zip([0, *trained], [*trained, 0], strict=True)]
    said = "".join(
        {1: "[", -1: "]"}.get(edge, "") + (words.decode(token) if token is not None else "")
        for edge, token in zip(edges, [*ids, None], strict=True)
    )
    assert said == SPOKEN[name]
    prompt = words.apply_chat_template(messages[:2], tokenize=True, add_generation_prompt=True)["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert trained[: len(prompt) + 1] == [0] * len(prompt) + [1]
    assert words.eos_token == (named.stop or tiny_eos())


def tiny_eos() -> str:
    return str(tokenizer().eos_token)


def test_a_name_whose_tokens_the_tokenizer_would_take_apart_is_refused_with_those_that_fit() -> None:
    words = knowing("<start_of_turn>", "<end_of_turn>")
    with pytest.raises(
        InputError,
        match=r"template chatml writes <\|im_start\|> and <\|im_end\|>.*choose train\.template plain, gemma, or",
    ):
        use_template(words, "chatml")


def test_no_name_leaves_the_tokenizer_its_own(tiny: Any) -> None:
    use_template(tiny, "")
    assert tiny.chat_template == CHAT_TEMPLATE


def test_a_tokenizer_without_a_stop_token_is_refused() -> None:
    made = tokenizer()
    made.eos_token = None
    with pytest.raises(InputError, match="no stop token"):
        check_template(made)


def test_a_conversation_without_an_assistant_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match="mask is all zeros"):
        encode_conversation(tiny, chat("hello?"))
