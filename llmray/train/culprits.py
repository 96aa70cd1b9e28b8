"""Which rows of a batch made its loss, or its gradient, no number: each is tried alone, by all ranks in step.

A document must be alone to be judged: attention multiplies what it must not see by zero, and zero times NaN is NaN, so
in a packed block one bad document spoils them all. A gradient is judged where it reaches the embeddings: there rows are
still apart, no weight's gradient is touched, and ZeRO may hold the weights in shards. Rejected: a backward pass for each
row into the weights' gradients, which DeepSpeed reduces and partitions as they come.
Legend: B documents, T tokens, H hidden width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from llmray.train.divergence import Blame
from llmray.train.packing import IGNORED, Block, Row

_ROUNDS_WITHOUT_A_SOUND_ROW = 16
"""After so many the weights are believed to be lost."""

T = TypeVar("T")


def blame(
    suspects: Sequence[tuple[Row, T]],
    are_sound: Callable[[Sequence[T]], Sequence[bool]],
    *,
    at_once: int,
    spare: T,
    knows_sound: bool,
) -> Blame:
    """The rows that are bad alone, as far as the first that is found on any rank; every rank must call it together.

    Args:
        suspects: (row, what to try) of this rank, which may have none.
        are_sound: whether each is sound; called equally often on every rank, since ZeRO-3 gathers weights in it.
        at_once: how many are tried together.
        spare: tried where this rank has nothing left.
        knows_sound: whether this rank knows something in the batch to be sound.
    """
    sound = False
    bad: set[Row] = set()
    at = tried = 0
    while True:
        mine = suspects[at : at + at_once]
        verdicts = are_sound([what for _, what in mine] or [spare])[: len(mine)]
        found = [row for (row, _), fine in zip(mine, verdicts, strict=True) if not fine]
        at += at_once
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, (found, len(mine), at < len(suspects), knows_sound))
        for rows, count, _, knows in everywhere:
            bad.update(rows)
            tried += count
            sound = sound or knows or len(rows) < count
        more = any(left for _, _, left, _ in everywhere)
        if not more or (bad and (sound or at >= _ROUNDS_WITHOUT_A_SOUND_ROW * at_once)):
            return Blame(rows=sorted(bad, key=_order), found=bool(bad), all_bad=bool(bad) and not sound and tried > 1)


def rows_of_batch(rows: Sequence[Row]) -> Blame:
    """All rows of the batch, none of which is at fault more than another."""
    return Blame(rows=sorted(set(rows), key=_order))


def sound_documents(model: Any, documents: Sequence[Block], *, device: str) -> list[bool]:
    """Whether each document's loss and gradient are numbers when nothing else is in its attention."""
    length = max(document.num_tokens for document in documents)

    def stack(name: str, rest: Callable[[Block], np.ndarray]) -> torch.Tensor:
        padded = [np.append(getattr(one, name), rest(one)[: length - one.num_tokens]) for one in documents]
        return torch.from_numpy(np.stack(padded)).to(device)

    labels_BT = stack("labels", lambda _: np.full(length, IGNORED))
    model.eval()
    with embedded(model) as seen:
        logits_BTV = model(
            # A document's own first token fills it up: it is as sound as the document.
            input_ids=stack("input_ids", lambda one: np.full(length, one.input_ids[0])),
            position_ids=stack("position_ids", lambda _: np.arange(length)),
            attention_mask=None,
            use_cache=False,
        ).logits
    losses_BT = cross_entropy(logits_BTV.float().transpose(1, 2), labels_BT, ignore_index=IGNORED, reduction="none")
    [gradient_BTH] = torch.autograd.grad(losses_BT.sum(), seen[:1])
    sound_B = losses_BT.isfinite().all(1) & gradient_BTH.isfinite().all(2).all(1)
    return [bool(sound) for sound in sound_B]


@contextmanager
def embedded(model: Any) -> Iterator[list[torch.Tensor]]:
    """The embeddings of the forward passes inside the block, which a gradient can be taken to even if frozen."""
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output_BTH: torch.Tensor) -> torch.Tensor:
        seen.append(output_BTH if output_BTH.requires_grad else output_BTH.detach().requires_grad_())
        return seen[-1]

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _order(row: Row) -> tuple[str, int]:
    """Numbers by size, behind the names of their sources."""
    source, _, number = str(row).rpartition(":")
    return source, int(number)
