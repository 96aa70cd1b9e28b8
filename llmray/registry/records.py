"""What the registry returns and takes: frozen values, detached from any session, safe to send between processes.

Every `datetime` is timezone-aware and in UTC. Rejected: ORM objects (they drag a session along and load rows behind the
caller's back).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

RunStatus = Literal["running", "done", "failed", "refused", "stopped", "lost"]
StepStatus = Literal["running", "done", "failed", "cached"]
Role = Literal["owner", "editor", "viewer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    run_id: str
    name: str
    project: str
    actor: str | None
    owner: str | None
    """The process that runs it."""
    status: RunStatus
    config: Mapping[str, Any]
    started_at: datetime
    finished_at: datetime | None
    error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    step_run_id: str
    run_id: str
    step: str
    key: str
    """Cache key: the digest of `fields`."""
    fields: Mapping[str, str]
    """What the key was made of: field name to digest or value."""
    status: StepStatus
    outputs: Mapping[str, Any] | None
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactRecord:
    digest: str
    kind: str
    uri: str
    name: str | None
    """The name it was last registered under or looked up by; None if it has none."""
    version: int | None
    manifest: Mapping[str, Any]
    """`parents`, `config` and `report`, as the artifact was sealed with."""
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """`child` was made from `parent`, which played `role`."""

    child: str
    parent: str
    role: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AliasRecord:
    kind: str
    name: str
    alias: str
    digest: str
    """What it names; of a split, the heaviest."""
    weights: Mapping[str, float] | None = None
    """Of a split: digests and their shares of the traffic, relative to one another."""
    updated_at: datetime
    protected: bool = False
    """Whether it moves only with a gate's evidence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AliasEvent:
    seq: int
    """Position in the log of all alias events."""
    kind: str
    name: str
    alias: str
    type: Literal["move", "rollback", "delete", "protect", "unprotect"]
    digest: str | None
    """What the alias names from here on; of a split, the heaviest; None for nothing."""
    weights: Mapping[str, float] | None = None
    """Of a split: digests and their shares of the traffic, relative to one another."""
    previous: str | None
    """What it named before; None for nothing."""
    actor: str
    reason: str
    evidence: Mapping[str, Any] | None
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    name: str
    version: int
    digest: str
    """Digest of messages and settings."""
    messages: Sequence[Mapping[str, str]]
    """`{"role", "content"}` each; `{variable}` marks where a value goes, `{{` and `}}` are braces."""
    variables: Sequence[str]
    settings: Mapping[str, Any]
    message: str
    """Why this version was made."""
    author: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheEntry:
    key: str
    step: str
    fields: Mapping[str, str]
    outputs: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class SpendRecord:
    """What one step of one run has cost."""

    run_id: str
    run: str
    """Name of the run."""
    project: str
    step: str
    core_seconds: float
    gpu_seconds: float
    money: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRecord:
    id: str
    kind: str
    """`drift.alarm`, say."""
    subject: str
    """Digest or id of what it is about."""
    payload: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRecord:
    """A token as it is kept; its secret is not."""

    id: str
    project: str
    user: str
    scopes: frozenset[str]
    """Empty for all."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """What a project may use; None for no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who a token stands for and what it allows."""

    project: str
    user: str
    role: Role
    scopes: frozenset[str]
    token_id: str
