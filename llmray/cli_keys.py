"""`llmray keys`: API keys of the gateway, and what a project may use.

A key is shown once, when it is made; the registry keeps its hash. Whoever makes the first key of a project makes the
project, and its user an editor of it.
"""

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from llmray.cli import Answer, _actor, _count, _table, _time
from llmray.errors import NotFoundError
from llmray.registry.records import Quota
from llmray.registry.registry import Registry

SCOPES = ("infer", "feedback", "prompts", "metrics")


def add_commands(add: Callable[..., argparse.ArgumentParser], within: Any) -> None:
    """Put the commands under `llmray keys`."""
    create_parser = add("create", create, within)
    create_parser.add_argument("project")
    create_parser.add_argument("--user", default=_actor(), help="whom the key stands for (default: you)")
    create_parser.add_argument("--scopes", nargs="+", choices=SCOPES, default=[], help="what it allows (default: all)")
    create_parser.add_argument("--days", type=_count, help="days until it ends (default: never)")
    add("list", list_keys, within).add_argument("--project", help="only this project")
    add("revoke", revoke, within).add_argument("key", help="its id, or the key itself")
    quota_parser = add("quota", quota, within)
    quota_parser.add_argument("project")
    quota_parser.add_argument("--requests", type=_limit, default=..., help="requests a minute, or none")
    quota_parser.add_argument("--tokens", type=_limit, default=..., help="tokens a minute, or none")


def create(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Make a key; it is shown this once."""
    project, user, scopes = arguments.project, arguments.user, arguments.scopes
    ends = None if arguments.days is None else datetime.now(UTC) + timedelta(days=arguments.days)
    try:
        key = registry.issue_token(project, user, scopes, ends)
    except NotFoundError:  # the first key of this user here
        registry.create_project(project)
        registry.add_member(project, user, "editor")
        key = registry.issue_token(project, user, scopes, ends)
    lasts = "until it is revoked" if ends is None else f"until {_time(ends)}"
    text = f"{key}\n\nfor {_scopes(scopes)} as {user} of {project}, {lasts}; it is not shown again"
    return Answer(value={"key": key, "project": project, "user": user, "scopes": scopes, "expires_at": ends}, text=text)


def list_keys(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Keys, without their secrets."""
    found = registry.tokens(arguments.project)
    rows = [
        [one.id, one.project, one.user, _scopes(one.scopes), _time(one.created_at), _moment(one.expires_at), _moment(one.revoked_at)]
        for one in found
    ]  # fmt: skip
    return Answer(value=found, text=_table("id project user scopes made ends revoked", rows, "no keys yet"))


def revoke(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """End a key; gateways stop taking it within seconds."""
    registry.revoke_token(arguments.key)
    return Answer(value={"revoked": True}, text="revoked: gateways stop taking it within seconds")


def quota(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """What a project may use a minute, as it is or from now on."""
    now = registry.quota(arguments.project)
    requests = now.requests_per_minute if arguments.requests is ... else arguments.requests
    tokens = now.tokens_per_minute if arguments.tokens is ... else arguments.tokens
    wanted = Quota(requests_per_minute=requests, tokens_per_minute=tokens)
    if wanted != now:
        registry.set_quota(arguments.project, wanted)
    text = f"{arguments.project}: {requests or 'unlimited'} requests and {tokens or 'unlimited'} tokens a minute"
    return Answer(value=wanted, text=text)


def _limit(text: str) -> int | None:
    return None if text == "none" else _count(text)


def _scopes(scopes: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(sorted(scopes)) or "everything"


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else _time(moment)
