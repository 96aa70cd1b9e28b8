"""What is remembered of lookups, bounded: the least lately used goes first.

Right and wrong answers each have a shelf of their own, so that a flood of wrong names or keys pushes out only wrong ones.
Rejected: `functools.lru_cache` (it knows no time and cannot forget one entry).
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

MOST_WRONG = 1_000
MOST_LOOKUPS = 16
"""Lookups of one kind at one time: a flood of wrong ones must not drown the registry."""


class Shelf(Generic[Key, Value]):
    def __init__(self, most: int) -> None:
        """Remember `most` at most."""
        self._most = most
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Value | None:
        """What is remembered; None for nothing."""
        if (value := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Remember, and forget the one that nobody asked for longest where there are too many."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def forget(self, key: Key) -> None:
        """Remember nothing of it."""
        self._kept.pop(key, None)
