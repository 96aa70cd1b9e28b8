"""Which replica gets a request, where its KV cache may be worth something: by session, or by how its prompt begins.

Rendezvous hashing (Thaler and Ravishankar, 1998) ranks the replicas for each key: when a replica comes or goes, only the
keys that it wins or loses move. A popular key must not bury its replica, so one that has more than its share of the
requests under way is passed over (consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2018);
the next in rank is the same for all requests of that key, so the overflow finds a warm cache too. A request without a
key gets the less busy of two replicas. Rejected: Serve's experimental `ConsistentHashRouter` (it passes a replica over
only when that is full, knows no prompts, and needs mmh3), and a tree of every prompt seen (state for each gateway that
must follow what engines evict; worth it when prompts share long beginnings in many ways).

Serve loads the router by value in each process that has a handle to the model.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from llmray.serve.engine import EngineRequest
from llmray.serve.engines import ModelArgs
from llmray.serve.scaling import autoscaling_config

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


def in_order(key: str, loads: Mapping[str, int]) -> list[str]:
    """Replicas to try for a key, in order.

    Args:
        loads: requests under way, by replica.
    """
    bound = max(NEVER_TOO_MANY, math.ceil(SHARE * (sum(loads.values()) + 1) / max(len(loads), 1)))
    order = ranked(key, loads)
    return [name for name in order if loads[name] < bound] + [name for name in order if loads[name] >= bound]


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


class AffinityRouter(RequestRouter):
    """Serve's router by `in_order`; each request keeps the replica that was chosen for it."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Take `by`: `session` or `prefix`."""
        self._key_of = {"session": session_key, "prefix": prefix_key}[kwargs["by"]]

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # once all were tried, wait before the next round
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        request = pending_request.args[0] if pending_request.args else None
        key = self._key_of(request) if isinstance(request, EngineRequest) else None
        if key is None:
            order = ranked(pending_request.metadata.internal_request_id, by_name)
            return [[by_name[name] for name in part] for part in (order[:2], order[2:]) if part]
        loads = {name: self._under_way(replica.replica_id) for name, replica in by_name.items()}
        return [[by_name[name]] for name in in_order(key, loads)]

    def _under_way(self, replica_id: ReplicaID) -> int:
        """As far as this process knows; zero for one that it has not heard of lately."""
        return self.replica_queue_len_cache.get(replica_id) or 0


def replica_options(args: ModelArgs) -> dict[str, Any]:
    """How many replicas a model has, and which of them gets a request: options of a Serve deployment."""
    scaling = autoscaling_config(args)
    options: dict[str, Any] = (
        {"num_replicas": args.num_replicas} if scaling is None else {"autoscaling_config": scaling}
    )
    if args.routing != "power_of_two":
        options["request_router_config"] = RequestRouterConfig(
            request_router_class="llmray.serve.routing.AffinityRouter", request_router_kwargs={"by": args.routing}
        )
    return options
