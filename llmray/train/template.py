"""Turn conversations and texts into token ids and the mask of the tokens that are trained.

The tokenizer's chat template marks what the assistant said with `{% generation %}`; the mask comes from there. Three
silent failures are refused: a mask of zeros (nothing would be trained), a template that loses turns, and one whose
stop token is never trained (the model would never stop). Rejected: finding the assistant's turns by searching for a
response marker in the tokens; a marker inside a message then trains the wrong half.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llmray.errors import InputError
from llmray.train.packing import Example, Row

Message = Mapping[str, str]

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- 'Assistant:\n' -}}"
    "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}"
    "{{- '\n' -}}"
    "{%- else -%}"
    "{{- message['role'] | capitalize + ':\n' + message['content'] + '\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\n' -}}{%- endif -%}"
)
"""Role markers are ordinary words, which a small model can learn; the stop token ends every answer.

A marker ends in a line break, never a space: byte-level tokens swallow the space before a word, so the prompt of a
generation would else end in a token that training never showed there.
"""


def check_template(tokenizer: Any) -> None:
    """Hold a tokenizer's chat template to what training needs, on a conversation of two rounds.

    Raises:
        InputError: no chat template, no assistant mask, a lost turn, or a stop token that would not be trained.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template: use an instruct model, or pre-train with objective pretrain"
        )
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no stop token (eos_token): set one in tokenizer_config.json")
    turns = ["first question", "first answer", "second question", "second answer"]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": content} for role, content in zip(roles, turns, strict=True)]
    ids, trained = encode_conversation(tokenizer, messages)
    text = tokenizer.decode(ids)
    if lost := [turn for turn in turns if turn not in text]:
        raise InputError(f"the chat template loses turns ({', '.join(lost)}): the model would never see them")
    if not any(mask and token == tokenizer.eos_token_id for token, mask in zip(ids, trained, strict=True)):
        raise InputError(
            f"the stop token {tokenizer.eos_token!r} is never trained, so the model would not stop: "
            f"write it inside the template's {{% generation %}} block"
        )


def encode_conversation(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and 1 for each token that the assistant must produce.

    Raises:
        InputError: the mask is all zeros.
    """
    ids, trained = _encode([list(messages)], tokenizer)[0]
    if not any(trained):
        raise InputError(
            "the assistant mask is all zeros, so nothing would be trained: the chat template needs "
            "{% generation %} … {% endgeneration %} around what the assistant says, and the rows an assistant turn"
        )
    return ids, trained


def conversations(
    tokenizer: Any, rows: Sequence[tuple[Row, Sequence[Message]]], *, max_length: int, all_tokens: bool = False
) -> tuple[list[Example], dict[str, int]]:
    """Examples of conversations, cut at `max_length` tokens, and how many were cut or left with nothing to train.

    Args:
        rows: (row, messages).
        all_tokens: train on what everybody said (pre-training), not on the assistant alone.
    """
    check_template(tokenizer)
    examples, counts = [], {"rows": len(rows), "truncated": 0, "untrainable": 0}
    spoken = [
        (row, list(messages))
        for row, messages in rows
        if any(message["role"] == "assistant" and message["content"] for message in messages)
    ]
    encoded = _encode([messages for _, messages in spoken], tokenizer) if spoken else []
    for (row, _), (ids, trained) in zip(spoken, encoded, strict=True):
        counts["truncated"] += len(ids) > max_length
        mask = [1] * len(ids) if all_tokens else trained
        if any(mask[1:max_length]):
            examples.append(Example(input_ids=ids[:max_length], trained=mask[:max_length], row=row))
    counts["untrainable"] = len(rows) - len(examples)
    return examples, counts


def texts(tokenizer: Any, rows: Sequence[tuple[Row, str]], *, max_length: int) -> tuple[list[Example], dict[str, int]]:
    """Examples of plain texts: bos + text + eos, split where longer than `max_length`; every token but bos is trained.

    Args:
        rows: (row, text).
    """
    examples, counts = [], {"rows": len(rows), "split": 0}
    encoded = tokenizer([text for _, text in rows], add_special_tokens=False)["input_ids"] if rows else []
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for (row, _), ids in zip(rows, encoded, strict=True):
        whole = [*head, *ids, tokenizer.eos_token_id]
        counts["split"] += len(whole) > max_length
        for at in range(0, len(whole), max_length):
            piece = whole[at : at + max_length]
            if len(piece) > 1:
                examples.append(Example(input_ids=piece, trained=[1] * len(piece), row=row))
    return examples, counts


def _encode(conversations: Sequence[Sequence[Message]], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    encoded = tokenizer.apply_chat_template(
        list(conversations), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True))
