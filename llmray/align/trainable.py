"""Which preference rows can teach something under a tokenizer and a length, and what of the others.

A row whose prompt alone fills the length has no answer left, and one whose answers differ only beyond it has no
difference left (7% of a well-known set). Both would pass in silence: the loss is simply log 2 there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmray.align.spec import AlignSpec
from llmray.data.snapshot import load_rows
from llmray.errors import InputError
from llmray.train.packing import Row
from llmray.train.template import check_template


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainable:
    conversations: Sequence[Mapping[str, Any]]
    """`prompt`, `chosen` and `rejected`, each a list of one role/content message: the form that TRL renders."""
    rows: Sequence[Row]
    """Where each comes from."""
    counts: Mapping[str, int]
    """Rows read; left out because the prompt is too long or the answers are alike once cut; cut; and pairs used."""


def trainable_pairs(spec: AlignSpec, tokenizer: Any) -> Trainable:
    """The train rows of shape preference that can be learned from, in the order of their ids.

    Raises:
        InputError: there are none, no answer fits into `align.max_length`, or the tokenizer has no usable template.
    """
    check_template(tokenizer)
    columns = ["id", "prompt", "chosen", "rejected", "source", "row"]
    rows = load_rows(spec.data, shape="preference", split="train", columns=columns).sort_by("id").to_pylist()
    if not rows:
        raise InputError(
            f"{spec.data} has no train rows of shape 'preference': collect preferences or corrections first"
        )
    used: list[Mapping[str, Any]] = []
    origins: list[Row] = []
    several = len({row["source"] for row in rows}) > 1
    counts = {"rows": len(rows), "prompt_too_long": 0, "alike_when_cut": 0, "cut": 0}
    needed = 0
    whole_answers = False
    for row in rows:
        conversation = {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        prompt = _encode(tokenizer, conversation["prompt"], add_generation_prompt=True)
        chosen, rejected = (
            up_to_stop(_encode(tokenizer, conversation["prompt"] + conversation[side]), tokenizer.eos_token_id)
            for side in ("chosen", "rejected")
        )
        needed = max(needed, len(chosen), len(rejected))
        if len(prompt) >= spec.max_length:
            counts["prompt_too_long"] += 1
        elif chosen[: spec.max_length] == rejected[: spec.max_length]:
            counts["alike_when_cut"] += 1
        else:
            counts["cut"] += max(len(chosen), len(rejected)) > spec.max_length
            whole_answers |= min(len(chosen), len(rejected)) <= spec.max_length
            used.append(conversation)
            origins.append(f"{row['source']}:{row['row']}" if several else row["row"])
    if not whole_answers:
        raise InputError(
            f"align.max_length ({spec.max_length}) cuts every answer of {spec.data}: "
            f"the longest needs {needed} tokens with its prompt"
        )
    return Trainable(conversations=used, rows=origins, counts={**counts, "pairs": len(used)})


def up_to_stop(ids: Sequence[int], stop: int) -> list[int]:
    """The ids up to the last stop token: what a template writes after it is nothing that a model must learn to say."""
    end = next((at for at in range(len(ids), 0, -1) if ids[at - 1] == stop), len(ids))
    return list(ids[:end])


def _encode(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, add_generation_prompt=add_generation_prompt
    )
    return list(encoded["input_ids"])
