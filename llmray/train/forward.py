"""How packed blocks go through a model, and whether it keeps the documents of a block apart.

Position ids that start again are walls to transformers' SDPA and eager attention where no attention mask is given and
the cache is off. A model that reads them otherwise would be trained on what it must not see, and nothing would say so:
it is tried once, before the first step. Rejected: a list of architectures, which knows no model of tomorrow.
Legend: B blocks, T tokens of a block, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from llmray.errors import InputError
from llmray.train.packing import IGNORED, Block

_HALF = 8
"""Tokens of each of the two documents that are tried."""
_LEAK = 0.01
"""What may come through the walls, as a share of what comes through without them; rounding stays far below."""


def token_losses(model: Any, blocks: Sequence[Block], device: str) -> torch.Tensor:
    """Negative log-likelihood of each position's target, 0 where it is ignored; shape (B, T), float32."""

    def stack(arrays: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    labels_BT = stack([block.labels for block in blocks])
    logits_BTV = _logits(
        model, stack([block.input_ids for block in blocks]), stack([block.position_ids for block in blocks])
    )
    losses = cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(labels_BT)


def check_walls(engine: Any, *, model: str, vocabulary: int, device: str) -> None:
    """Try whether what one document says changes what the model makes of the next in its block; all ranks together.

    Args:
        engine: in evaluation afterwards.
        model: what the user calls it.

    Raises:
        InputError: it does.
    """
    ids_T = torch.arange(2 * _HALF, device=device)
    other_T = torch.where(ids_T < _HALF, ids_T + 2 * _HALF, ids_T)
    engine.eval()
    with torch.no_grad():
        logits_BTV = _logits(
            engine,
            torch.stack([ids_T, other_T] * 2) % vocabulary,
            torch.stack([ids_T % _HALF] * 2 + [ids_T] * 2),
        ).float()
    changed_BT = (logits_BTV[::2, _HALF:] - logits_BTV[1::2, _HALF:]).abs().amax(-1)
    packed, running_on = changed_BT.amax(-1).tolist()
    if packed > _LEAK * running_on:
        raise InputError(
            f"{model} lets documents that are packed into one block see one another, and only packed blocks are trained: "
            f"its attention must take position_ids that start again for walls, as that of Llama, Qwen3, Mistral, Gemma "
            f"and GPT-NeoX does in transformers, with attention 'sdpa' or 'eager' and no cache"
        )


def _logits(model: Any, input_ids_BT: torch.Tensor, position_ids_BT: torch.Tensor) -> torch.Tensor:
    output = model(input_ids=input_ids_BT, position_ids=position_ids_BT, attention_mask=None, use_cache=False)
    logits_BTV: torch.Tensor = output.logits
    return logits_BTV
