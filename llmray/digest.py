"""Digests of content, of configuration and of code: what a cache key and a lineage edge are made of.

Everything is SHA-256 over canonical JSON (RFC 8785 in spirit: sorted keys, no white space, UTF-8, 1.0 written as 1) or
over raw bytes.
Rejected: pickling (differs between versions), `hash()` (differs between processes), xxhash (no defence against a
crafted collision, and hashing is never where the time goes here).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

_BLOCK_BYTES = 1 << 20
_EXACT = 2.0**53
"""Below it every whole number is a float of its own."""


def canonical_json(value: Any) -> bytes:
    """Encode plain values, mappings, sequences, dataclasses, enums and paths so that equal values give equal bytes.

    Raises:
        TypeError: a value of another type, a mapping key that is no string, or a number that is not finite.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: Any) -> str:
    """Hexadecimal SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of raw bytes."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a local file's bytes, read block by block."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def fraction_of(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone: the same row falls on the same side of a split for ever."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise TypeError(f"{value} has no canonical JSON: use a finite number or None")
            return int(value) if value.is_integer() and abs(value) < _EXACT else value
        case Enum():
            return _plain(value.value)
        case PurePath():
            return str(value)
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise TypeError(f"canonical JSON needs string keys, got {sorted(map(repr, value))}")
            return {key: _plain(item) for key, item in value.items()}
        case set() | frozenset():
            return sorted((_plain(item) for item in value), key=repr)
        case Iterable():
            return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no canonical JSON")
