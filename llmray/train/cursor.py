"""Which block of data comes when: (seed, next global index), and nothing about workers.

An endless order of blocks: epoch after epoch, each a permutation drawn from (seed, epoch). A global batch takes the
next G positions of it, across the end of an epoch where need be, so every block is seen once an epoch and none is
dropped to come out even. Workers take slices of the batch; their number never shows in the order. Rejected: a sampler
per worker, which drops or repeats rows to equalise them and cannot resume on another number of workers.
"""

from dataclasses import dataclass, replace

import numpy as np

from llmray.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    num_blocks: int
    """Blocks in the data."""
    seed: int
    """Seed of every epoch's order."""
    next_index: int = 0
    """Position in the endless order of the next block to be trained on."""

    def __post_init__(self) -> None:
        if self.num_blocks <= 0:
            raise InputError("there is nothing to train on: the snapshot has no train rows of this objective's shape")

    @property
    def epoch(self) -> int:
        """Whole passes over the data behind `next_index`."""
        return self.next_index // self.num_blocks

    def advance(self, count: int) -> "Cursor":
        """The cursor `count` blocks later."""
        return replace(self, next_index=self.next_index + count)

    def take(self, count: int) -> list[int]:
        """Blocks at the next `count` positions."""
        blocks = []
        position, left = self.next_index, count
        while left:
            epoch, start = divmod(position, self.num_blocks)
            part = epoch_order(self.num_blocks, seed=self.seed, epoch=epoch)[start : start + left].tolist()
            blocks += part
            position, left = position + len(part), left - len(part)
        return blocks


def epoch_order(num_blocks: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: a permutation of range(num_blocks), shape (num_blocks,), int64."""
    return np.random.default_rng([seed, epoch]).permutation(num_blocks)


def share(batch: list[int], *, rank: int, num_workers: int, micro_batch: int) -> list[list[int]]:
    """The micro-batches of one worker out of a global batch of num_workers · accumulation · micro_batch blocks.

    Micro-batches are dealt in turn, so that worker r's k-th is the batch's (k · num_workers + r)-th.
    """
    assert len(batch) % (num_workers * micro_batch) == 0
    stride = num_workers * micro_batch
    return [batch[at : at + micro_batch] for at in range(rank * micro_batch, len(batch), stride)]
