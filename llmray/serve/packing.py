"""Outputs on their way to another process: each packed when its answer has ended, so that sending them costs the loop nothing.

Packed as a plain tuple, an output costs some ten microseconds. Rejected: packing a batch when it is sent (the loop, and
every stream on it, waits for a millisecond, and a thread would not help, since pickling holds the interpreter's lock),
and JSON (half a surrogate pair breaks it, and moments come back as texts).
"""

import pickle
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter

from llmray.outputs import Output

_NAMES = tuple(field.name for field in fields(Output))
_values = attrgetter(*_NAMES)


def pack(output: Output) -> bytes:
    """An output as bytes."""
    return pickle.dumps(_values(output), protocol=5)


def unpack(packed: Sequence[bytes]) -> list[Output]:
    """The outputs again.

    Only from processes of ours, as with anything that Ray carries.
    """
    return [Output(**dict(zip(_NAMES, pickle.loads(one), strict=True))) for one in packed]  # noqa: S301
