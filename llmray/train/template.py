"""Turn conversations and texts into token ids and the mask of the tokens that are trained.

The tokenizer's chat template, or a named one (`named_templates.py`), marks what the assistant said with
`{% generation %}`; the mask comes from there. Silent failures are refused: a mask of zeros (nothing would be trained),
a template that loses turns, one that trains what others say, and one whose stop token is never trained (the model would
never stop). Rejected: finding the assistant's turns by searching for a response marker in the tokens; a marker inside a
message then trains the wrong half.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from llmray import storage
from llmray.errors import InputError
from llmray.train.named_templates import NAMED
from llmray.train.packing import Example, Row, TooLong, fit

Message = Mapping[str, str]

_ROUNDS = ("user", "assistant") * 2


def load_tokenizer(uri: str, template: str = "") -> Any:
    """The tokenizer of a model folder or hub id, with the chat template of that name or its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(storage.local_copy_or_name(uri))
    use_template(tokenizer, template)
    return tokenizer


def use_template(tokenizer: Any, name: str) -> None:
    """Give a tokenizer the template of that name, and its stop token; nothing where the name is empty.

    Raises:
        InputError: the tokenizer does not know the tokens that the template writes.
    """
    if not name:
        return
    if unknown := _unknown(tokenizer, name):
        fitting = ", ".join(other for other in NAMED if not _unknown(tokenizer, other))
        raise InputError(
            f"train.template {name} writes {' and '.join(unknown)}, which the tokenizer does not know as one token: "
            f"choose train.template {fitting or '(empty) for its own'}, or a model that has them"
        )
    tokenizer.chat_template = NAMED[name].jinja
    if (stop := NAMED[name].stop) is not None:
        tokenizer.eos_token = stop


def check_template(tokenizer: Any, roles: Sequence[str] = _ROUNDS) -> None:
    """Hold a tokenizer's chat template to what training needs, on a conversation in which these roles take turns.

    Raises:
        InputError: no chat template, no assistant mask, a lost turn, another's turn in the mask, or a stop token that
            would not be trained at the end of an answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template: use an instruct model, or pre-train with objective pretrain, or name "
            f"one with train.template ({', '.join(NAMED)})"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no stop token (eos_token): set one in tokenizer_config.json, or choose a train.template "
            f"that brings one ({', '.join(name for name, named in NAMED.items() if named.stop)})"
        )
    turns = [f"turn {at} of {role}" for at, role in enumerate(roles, 1)]
    messages = [{"role": role, "content": content} for role, content in zip(roles, turns, strict=True)]
    ids, trained = encode_conversation(tokenizer, messages)
    text = tokenizer.decode(ids)
    if lost := [turn for turn in turns if turn not in text]:
        raise InputError(
            f"the chat template loses turns ({', '.join(lost)}), so the model would never see them: name another with "
            f"train.template, or take these turns out of the rows"
        )
    answers = list(_answers(tokenizer, ids, trained))
    spoken = "".join(text for _, text in answers)
    if wrong := [turn for turn, role in zip(turns, roles, strict=True) if role != "assistant" and turn in spoken]:
        raise InputError(
            f"the chat template trains what others say ({', '.join(wrong)}): close its {{% generation %}} block before"
        )
    if not all(stops for stops, _ in answers):
        raise InputError(
            f"the stop token {tokenizer.eos_token!r} is never trained at the end of an answer, so the model would not "
            f"stop: write it inside the template's {{% generation %}} block, as the last, or name a train.template"
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
            "{% generation %} … {% endgeneration %} around what the assistant says, and the rows an assistant turn; "
            f"train.template {', '.join(name for name in NAMED if not _unknown(tokenizer, name))} has them"
        )
    return ids, trained


def conversations(
    tokenizer: Any,
    rows: Sequence[tuple[Row, Sequence[Message]]],
    *,
    max_length: int,
    too_long: TooLong = "truncate",
    all_tokens: bool = False,
) -> tuple[list[list[Example]], dict[str, int]]:
    """The examples of each conversation, and how many were cut, split, or left with nothing to train.

    Args:
        rows: (row, messages).
        too_long: what becomes of those longer than `max_length` tokens; see `packing.fit`.
        all_tokens: train on what everybody said (pre-training), not on the assistant alone.

    Raises:
        InputError: the template fails what the rows need of it, or a row is too long and `too_long` refuses that.
    """
    spoken = [
        any(message["role"] == "assistant" and message["content"] for message in messages) for _, messages in rows
    ]
    said_by = (
        tuple(message["role"] for message in said) for (_, said), speaks in zip(rows, spoken, strict=True) if speaks
    )
    for roles in dict.fromkeys((_ROUNDS, *said_by)):
        check_template(tokenizer, roles)
    encoded = iter(_encode([said for (_, said), speaks in zip(rows, spoken, strict=True) if speaks], tokenizer))
    whole = []
    for (row, _), speaks in zip(rows, spoken, strict=True):
        ids, trained = next(encoded) if speaks else ([], [])
        whole.append(Example(input_ids=ids, trained=[1] * len(ids) if all_tokens else trained, row=row))
    return fit(whole, max_length=max_length, too_long=too_long)


def texts(
    tokenizer: Any, rows: Sequence[tuple[Row, str]], *, max_length: int, too_long: TooLong = "split"
) -> tuple[list[list[Example]], dict[str, int]]:
    """The examples of each plain text: bos + text + eos, every token but bos trained; and the counts of `fit`.

    Args:
        rows: (row, text).

    Raises:
        InputError: a text is too long and `too_long` refuses that, or the tokenizer has no stop token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no stop token (eos_token) to end a text: set one in tokenizer_config.json")
    encoded = tokenizer([text for _, text in rows], add_special_tokens=False)["input_ids"] if rows else []
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    whole = []
    for (row, _), ids in zip(rows, encoded, strict=True):
        all_ids = [*head, *ids, tokenizer.eos_token_id]
        whole.append(Example(input_ids=all_ids, trained=[1] * len(all_ids), row=row))
    return fit(whole, max_length=max_length, too_long=too_long)


def _answers(tokenizer: Any, ids: Sequence[int], trained: Sequence[int]) -> Iterator[tuple[bool, str]]:
    """Of each stretch that is trained, whether it ends in the stop token (but for white space), and its text."""
    for is_trained, stretch in groupby(zip(ids, trained, strict=True), key=lambda pair: pair[1]):
        if is_trained:
            tokens = [token for token, _ in stretch]
            last = max((at for at, token in enumerate(tokens) if token == tokenizer.eos_token_id), default=None)
            stops = last is not None and not tokenizer.decode(tokens[last + 1 :]).strip()
            yield stops, tokenizer.decode(tokens)


def _unknown(tokenizer: Any, name: str) -> list[str]:
    """Tokens of a named template that the tokenizer would take apart."""
    named = NAMED[name]
    wanted = [*named.tokens, *([named.stop] if named.stop else [])]
    return [token for token in wanted if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1]


def _encode(conversations: Sequence[Sequence[Message]], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    if not conversations:
        return []
    from jinja2 import TemplateError

    try:
        encoded = tokenizer.apply_chat_template(
            [list(messages) for messages in conversations],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in conversations[0])
        raise InputError(
            f"the chat template refuses a conversation of {roles}: {error}: name another with train.template, or mend "
            f"these rows"
        ) from error
    return list(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True))
