"""Which replica gets a request, where its KV cache may be worth something: by session, or by how its prompt begins.

Rendezvous hashing (Thaler and Ravishankar, 1998) ranks the replicas for each key: when a replica comes or goes, only the
keys that it wins or loses move. A popular key must not bury its replica, so one that has more than its share of the
requests under way is passed over (consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2018);
the next in rank is the same for all requests of that key, so the overflow finds a warm cache too. Rejected: a tree of every
prompt seen (state for each gateway that must follow what engines evict; worth it when prompts share long beginnings in
many ways).
"""

import hashlib
import math
from collections.abc import Iterable, Mapping

from llmray.serve.engine import EngineRequest

PREFIX_CHARACTERS = 1024
"""How much of a prompt's beginning makes its key."""
SHARE = 1.25
"""Requests under way that a replica may have, relative to the mean."""
NEVER_TOO_MANY = 4
"""Or so many, whatever the mean is: among few requests, one more is no imbalance."""


def ranked(key: str, names: Iterable[str]) -> list[str]:
    """Names by rendezvous hashing: the first is the key's own."""

    def weight(name: str) -> bytes:
        return hashlib.blake2b(f"{name}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    return sorted(names, key=weight)


def replica_for(key: str, loads: Mapping[str, int]) -> str:
    """The first in a key's rank that has not more than its share.

    Args:
        loads: requests under way, by replica.
    """
    bound = max(NEVER_TOO_MANY, math.ceil(SHARE * (sum(loads.values()) + 1) / len(loads)))
    order = ranked(key, loads)
    return next((name for name in order if loads[name] < bound), order[0])


def session_key(request: EngineRequest) -> str | None:
    """What the requests of a conversation or person share."""
    return request.session


def prefix_key(request: EngineRequest) -> str | None:
    """How a prompt begins, at most to the end of what the person said first: later turns of a chat have the same key."""
    if request.messages is None:
        text = request.prompt if isinstance(request.prompt, str) else ",".join(map(str, request.prompt or ()))
    else:
        parts = []
        for message in request.messages:
            parts.append(f"{message['role']}\0{message.get('content') or ''}\0")
            if message["role"] == "user":
                break
        text = "".join(parts)
    return text[:PREFIX_CHARACTERS] or None


def key_of(routing: str, request: EngineRequest) -> str | None:
    """What decides which replica is a request's own; None where any will do.

    Args:
        routing: `power_of_two`, `prefix` or `session`.
    """
    return {"power_of_two": lambda _: None, "prefix": prefix_key, "session": session_key}[routing](request)
