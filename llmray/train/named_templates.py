"""Chat templates by name, for models that come with none, or with one that does not mark what the assistant says.

Each writes a published format, and marks with `{% generation %}` what is trained: the answer and the stop token behind
it. A name is refused where the tokenizer does not know its tokens: new ones would need embeddings that nobody trained.
Rejected: guessing the format from the model's name, which is wrong for the next fine-tune of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedTemplate:
    jinja: str
    """The template; knows `messages`, `add_generation_prompt`, `bos_token` and `eos_token`."""
    stop: str | None = None
    """Token that ends a turn, and becomes the tokenizer's stop token; None for the one that it has."""
    tokens: tuple[str, ...] = ()
    """The other tokens that the tokenizer must know as one."""


_PLAIN = (
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

_CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- message['content'] + '<|im_end|>' -}}"
    "{%- endif -%}"
    "{{- '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

_LLAMA3 = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|eot_id|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- message['content'] + '<|eot_id|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)

_GEMMA = (
    "{{- bos_token -}}"
    "{%- set said = namespace(before='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{%- set said.before = said.before + message['content'] + '\n\n' -%}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<start_of_turn>model\n' -}}"
    "{%- generation -%}{{- message['content'] + '<end_of_turn>' -}}{%- endgeneration -%}"
    "{{- '\n' -}}"
    "{%- else -%}"
    "{{- '<start_of_turn>' + message['role'] + '\n' + said.before + message['content'] + '<end_of_turn>\n' -}}"
    "{%- set said.before = '' -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
)
"""Gemma knows no system turn: what it says stands before what the user says next."""

NAMED: Mapping[str, NamedTemplate] = {
    "plain": NamedTemplate(jinja=_PLAIN),
    "chatml": NamedTemplate(jinja=_CHATML, stop="<|im_end|>", tokens=("<|im_start|>",)),
    "llama3": NamedTemplate(jinja=_LLAMA3, stop="<|eot_id|>", tokens=("<|start_header_id|>", "<|end_header_id|>")),
    "gemma": NamedTemplate(jinja=_GEMMA, stop="<end_of_turn>", tokens=("<start_of_turn>",)),
}
