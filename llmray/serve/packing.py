"""Outputs on their way to another process: packed one by one, with the event loop free in between.

Pickling a batch of 256 as it is keeps the loop, and every stream on it, waiting for milliseconds; a thread would not
help, since pickling holds the interpreter's lock. A record as a plain tuple packs in two microseconds. Rejected: JSON
(half a surrogate pair breaks it, and moments come back as texts).
"""

import asyncio
import pickle
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import TypeVar

from llmray.serve.ports import OutputRecord

Kept = TypeVar("Kept")

_NAMES = tuple(field.name for field in fields(OutputRecord))
_values = attrgetter(*_NAMES)
_AT_ONCE = 16
"""Records packed before others get their turn."""


async def pack(outputs: Sequence[OutputRecord]) -> list[bytes]:
    """Each output as bytes."""
    packed = []
    for number, output in enumerate(outputs, start=1):
        packed.append(pickle.dumps(_values(output), protocol=5))
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return packed


def unpack(packed: Sequence[bytes], kind: Callable[..., Kept]) -> list[Kept]:
    """The outputs again, as `kind`, which has the fields of `OutputRecord`.

    Only from processes of ours, as with anything that Ray carries.
    """
    return [kind(**dict(zip(_NAMES, pickle.loads(one), strict=True))) for one in packed]  # noqa: S301
