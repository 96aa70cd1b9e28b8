"""Pack documents of many lengths into blocks of one length, so that few tokens are padding.

Best-fit decreasing (Ding et al., "Fewer Truncations Improve Language Modeling", arXiv 2404.10830): the longest document
first, each into the fullest block that still has room. Position ids start again at 0 with every document; transformers'
SDPA and eager attention read the restarts as walls when `attention_mask` is None and the cache is off, so no document
sees another. Padding is a document of its own whose labels are ignored. Rejected: cutting a stream every N tokens
(documents see one another and lose their heads), and FlexAttention (no backward on CPU).
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

import numpy as np

from llmray.errors import InputError

IGNORED = -100
"""Label of a token that is not trained (PyTorch's ignore_index)."""

TooLong = Literal["truncate", "split", "refuse"]
"""What becomes of an example that is longer than a block; see `fit`."""

Row = int | str
"""How a person finds a row again: its number, behind its source's name where a snapshot has several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    input_ids: Sequence[int]
    trained: Sequence[int]
    """1 where the token is a target of the loss, 0 elsewhere; as long as `input_ids`."""
    row: Row
    """Row of the snapshot it came from, for error messages."""

    @property
    def num_targets(self) -> int:
        """Tokens that the loss is taken over: nothing predicts the first one."""
        return int(sum(self.trained[1:]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Token ids, labels and positions of one packed block, each of shape (max_length,), int64.

    `labels[t]` is the token that position t must predict, that is `input_ids[t + 1]` inside one document, or IGNORED.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    num_targets: int
    """Labels that are not IGNORED."""
    num_tokens: int
    """Tokens that are not padding."""
    rows: tuple[Row, ...]
    """Rows of the snapshot that lie in it, one for each document, in their order."""


def fit(
    examples: Sequence[Example], *, max_length: int, too_long: TooLong
) -> tuple[list[list[Example]], dict[str, int]]:
    """Each example in pieces of at most `max_length` tokens, and how many were cut, split, or left without a target.

    Truncated, an example loses its end. Split, it becomes windows with their masks as they were, each of which begins
    with the last token of the one before: only so has the first target of a window a token to be predicted from, and
    every target stays, once. Pieces without a target are left out.

    Raises:
        InputError: one is too long, and `too_long` is refuse.
    """
    longest = max(examples, key=lambda example: len(example.input_ids), default=None)
    if too_long == "refuse" and longest is not None and len(longest.input_ids) > max_length:
        raise InputError(
            f"row {longest.row} has {len(longest.input_ids)} tokens, more than train.max_length ({max_length}): raise "
            f"that, or choose train.too_long truncate or split"
        )
    counts = {"rows": len(examples), "truncated": 0, "split": 0, "untrainable": 0}
    fitting = []
    for example in examples:
        long = len(example.input_ids) > max_length
        counts["truncated"] += long and too_long == "truncate"
        counts["split"] += long and too_long == "split"
        starts = range(0, max(1, len(example.input_ids) - 1), max_length - 1) if too_long == "split" else [0]
        pieces = [
            Example(
                input_ids=example.input_ids[start : start + max_length],
                trained=example.trained[start : start + max_length],
                row=example.row,
            )
            for start in starts
        ]
        fitting.append([piece for piece in pieces if any(piece.trained[1:])])
        counts["untrainable"] += not fitting[-1]
    return fitting, counts


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Group items so that no group's lengths add up to more than `capacity`.

    Returns:
        groups of indices into `lengths`; every index in exactly one group; the same input gives the same groups.
    """
    assert all(0 < length <= capacity for length in lengths)
    groups: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # heaps of groups with room left
    rooms: list[int] = []  # sorted; never more than there are lengths, however many groups
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            group = heappop(by_room[room])
            if not by_room[room]:
                del rooms[at], by_room[room]
        else:
            room, group = capacity, len(groups)
            groups.append([])
        groups[group].append(index)
        if left := room - length:
            if left not in by_room:
                insort(rooms, left)
                by_room[left] = []
            heappush(by_room[left], group)
    return groups


def pack(examples: Sequence[Example], *, max_length: int, pad_id: int) -> list[Block]:
    """Blocks of `max_length` tokens that hold every example once; none of them may be longer."""
    groups = best_fit([len(example.input_ids) for example in examples], max_length)
    return [block_of([examples[index] for index in group], max_length=max_length, pad_id=pad_id) for group in groups]


def block_of(examples: Sequence[Example], *, max_length: int, pad_id: int) -> Block:
    """The block in which these examples lie, in this order."""
    input_ids = np.full(max_length, pad_id, dtype=np.int64)
    labels = np.full(max_length, IGNORED, dtype=np.int64)
    position_ids = np.zeros(max_length, dtype=np.int64)
    at = 0
    for example in examples:
        ids, trained = np.asarray(example.input_ids, dtype=np.int64), np.asarray(example.trained, dtype=bool)
        end = at + len(ids)
        input_ids[at:end] = ids
        labels[at : end - 1] = np.where(trained[1:], ids[1:], IGNORED)
        position_ids[at:end] = np.arange(len(ids))
        at = end
    position_ids[at:] = np.arange(max_length - at)
    return Block(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        num_targets=int((labels != IGNORED).sum()),
        num_tokens=at,
        rows=tuple(example.row for example in examples),
    )


def documents(block: Block) -> list[Block]:
    """The documents of a block, each in a block of its own that is as long as the document."""
    starts = np.flatnonzero(block.position_ids[: block.num_tokens] == 0)
    assert len(starts) == len(block.rows)
    return [
        Block(
            input_ids=block.input_ids[start:end],
            labels=block.labels[start:end],
            position_ids=block.position_ids[start:end],
            num_targets=int((block.labels[start:end] != IGNORED).sum()),
            num_tokens=int(end - start),
            rows=(row,),
        )
        for start, end, row in zip(starts, [*starts[1:], block.num_tokens], block.rows, strict=True)
    ]
