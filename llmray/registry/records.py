"""What the registry returns and takes: frozen values, detached from any session, safe to send between processes.

Every `datetime` is timezone-aware and in UTC. Rejected: ORM objects (they drag a session along and load rows behind the
caller's back).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

RunStatus = Literal["running", "done", "failed", "refused", "stopped", "lost"]
StepStatus = Literal["running", "done", "failed", "cached"]
FeedbackKind = Literal["thumb", "rating", "correction", "preference"]
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
class Output:
    """One answer of a served model and everything that made it."""

    id: str
    at: datetime
    prompt_digest: str | None = None
    prompt_reference: str | None = None
    """What the caller asked for, `ask-docs@production` say."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]]
    """As rendered and sent to the model."""
    completion: str
    finish_reason: str
    model_digest: str
    variant: str
    quantization: str
    engine: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float | None
    """Seconds from the request to the first token; None where there was none."""
    latency_s: float
    adapter: str | None = None
    choice: int = 0
    """Which of the answers to its request."""
    request_id: str | None = None
    """What the answers of one request share; None where it is the only one."""
    documents: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """What was retrieved for it."""
    project: str | None = None
    key_id: str | None = None
    cost: float | None = None
    """Money, by the price list; None without one."""
    cached_tokens: int = 0
    """Prompt tokens whose KV was there already."""
    text_kept: bool = True
    """Whether messages, variables and completion were kept."""
    shadow_of: str | None = None
    """For a shadow's answer: the output that the client got."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """What somebody, or a named rule, thought of an output."""

    id: str
    output_id: str
    kind: FeedbackKind
    value: Mapping[str, Any]
    other_output_id: str | None = None
    """The output that a preference compares with."""
    source: str
    """Who said so: a user, or the name of a simulated annotator."""
    rule: str | None = None
    """The rule a simulated annotator went by."""
    at: datetime


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
