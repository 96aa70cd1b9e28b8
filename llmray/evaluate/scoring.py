"""Log-likelihoods of what an assistant says, computed with a Hugging Face model on one thread.

Batches come ready made and keep their shape whatever the number of workers, so a value does not change in its last bit
when the cluster does. Padding is on the right: under a causal mask nothing before it can see it. Rejected:
`labels=` with the model's own loss (one mean over the batch, not a sum per row), and generation.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmray.errors import InputError
from llmray.evaluate.tasks import Likelihood, Request

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Scorer:
    """A model in memory that says how likely it finds the assistant's turns of conversations."""

    def __init__(self, folder: Path, *, max_length: int, device: str = "cpu", threads: int = 1) -> None:
        """Load model and tokenizer.

        Args:
            folder: a Hugging Face folder.
            max_length: tokens that a conversation is cut to.
            device: `cpu` or `cuda`.
            threads: OpenMP threads; more than one a replica collapses on busy small machines.
        """
        torch.set_num_threads(threads)
        self._max_length = max_length
        self._device = device
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"the model in {folder} cannot be loaded: {error}") from error
        if not self._tokenizer.chat_template:
            raise InputError(f"{folder} has no chat template: evaluation needs one in tokenizer_config.json")
        self._marks_generation = bool(_GENERATION.search(self._tokenizer.chat_template))

    @torch.inference_mode()
    def score(self, batch: Sequence[Request]) -> list[Likelihood]:
        """One likelihood per request, in order; the whole batch is one forward pass."""
        whole = [self._encode(request) for request in batch]
        encoded = [self._cut(request, *parts) for request, parts in zip(batch, whole, strict=True)]
        length = max(len(tokens) for tokens, _ in encoded)
        ids_BT = torch.zeros((len(batch), length), dtype=torch.long)
        attend_BT = torch.zeros((len(batch), length), dtype=torch.long)
        scored_BT = torch.zeros((len(batch), length), dtype=torch.bool)
        for row, (tokens, scored) in enumerate(encoded):
            ids_BT[row, : len(tokens)] = torch.tensor(tokens)
            attend_BT[row, : len(tokens)] = 1
            scored_BT[row, : len(tokens)] = torch.tensor(scored)
        scored_BT[:, 0] = False  # nothing predicts the first token
        ids_BT, attend_BT, scored_BT = (t.to(self._device) for t in (ids_BT, attend_BT, scored_BT))
        logits_BTV = self._model(input_ids=ids_BT, attention_mask=attend_BT, use_cache=False).logits[:, :-1]
        picked_BT = scored_BT[:, 1:]
        logits_NV = logits_BTV[picked_BT].float()
        target_N = ids_BT[:, 1:][picked_BT]
        loglik_N = logits_NV.gather(1, target_N[:, None])[:, 0] - logits_NV.logsumexp(dim=1)
        per_token_BT = torch.zeros(picked_BT.shape, dtype=torch.float64, device=self._device)
        per_token_BT[picked_BT] = loglik_N.double()
        totals, counts = per_token_BT.sum(dim=1).tolist(), picked_BT.sum(dim=1).tolist()
        return [
            Likelihood(total, count, _assistant_bytes(request, self._marks_generation), len(tokens) <= self._max_length)
            for request, (tokens, _), total, count in zip(batch, whole, totals, counts, strict=True)
        ]

    def _encode(self, request: Request) -> tuple[list[int], list[bool]]:
        messages = [dict(message) for message in request.messages]
        if messages[-1]["role"] != "assistant":
            raise InputError(
                f"a conversation to score must end with the assistant's turn, got {messages[-1]['role']!r}"
            )
        if self._marks_generation:
            encoded = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            tokens, scored = list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]
        else:
            tokens, scored = self._encode_last_turn(messages)
        return tokens, scored

    def _cut(self, request: Request, tokens: list[int], scored: list[bool]) -> tuple[list[int], list[bool]]:
        kept = slice(None, self._max_length) if request.keep == "start" else slice(-self._max_length, None)
        return tokens[kept], scored[kept]

    def _encode_last_turn(self, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
        """For a template that does not mark the assistant's part: what comes after the prompt is the last turn."""
        render = self._tokenizer.apply_chat_template
        whole = render(messages, tokenize=False)
        prompt = render(messages[:-1], tokenize=False, add_generation_prompt=True)
        if not whole.startswith(prompt):
            raise InputError(
                "the chat template's prompt is not the start of its conversation: mark {% generation %} in it"
            )
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [end > len(prompt) for _, end in encoded["offset_mapping"]]


def _assistant_bytes(request: Request, every_turn: bool) -> int:
    turns = [message["content"] for message in request.messages if message["role"] == "assistant"]
    return sum(len(text.encode()) for text in (turns if every_turn else turns[-1:]))
