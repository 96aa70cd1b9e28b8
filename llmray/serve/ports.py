"""What serving asks of the rest of the house: prompts in; outputs, feedback and observations out.

Serving never sees the registry. A replica is tested with ports that keep everything in memory, and a registry that is
down stops no inference: outputs wait in a bounded queue, prompts are served from the last resolution. Rejected: calling
the registry from the request path, and passing ORM records between processes.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict

from llmray.outputs import Feedback, Output
from llmray.serve.engine import EngineRequest, TokenEvent


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """One immutable version of a prompt."""

    name: str
    version: int
    digest: str
    messages: Sequence[Mapping[str, str]]
    """Roles and contents, with `{variable}` placeholders."""
    variables: Sequence[str] = ()
    """Names that a request must fill."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Sampling defaults: temperature, top_p, top_k, max_tokens, stop, seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptChoice:
    """What a reference names: one version, or several that share the traffic."""

    versions: Sequence[tuple[PromptTemplate, float]]
    """Oldest first, each with its share, relative to the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptVersion(PromptTemplate):
    """A version and how it came about."""

    message: str
    """Why it was made."""
    author: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptDraft:
    """What becomes the next version of a prompt, unless a version says just that already."""

    name: str
    messages: Sequence[Mapping[str, str]]
    settings: Mapping[str, Any]
    message: str
    author: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLabel:
    """A label and what it names."""

    name: str
    label: str
    versions: Mapping[str, float]
    """Version numbers and their shares, relative to one another."""
    protected: bool
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelChange:
    """One event in the life of a label."""

    type: Literal["move", "rollback", "delete", "protect", "unprotect"]
    name: str
    label: str
    versions: Mapping[str, float] = field(default_factory=dict)
    """For a move: numbers of versions or references to them, and their shares."""
    actor: str
    reason: str
    evidence: Mapping[str, Any] | str | None = None
    """For a move of a protected label: a gate's verdict, or, from those whose word is not enough, the id of a recorded one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """Who asks, by an API key; what is kept of it is a hash."""

    id: str
    project: str
    user: str
    scopes: frozenset[str]
    """`infer`, `feedback`, `prompts`, `metrics`; empty for all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Quotas of the project; None for no limit."""


class Observation(TypedDict):
    """What the monitor sees of one answer."""

    output_id: str
    at: float
    model_digest: str
    variant: str
    text: str
    completion: str


class PromptSource(Protocol):
    async def prompt(self, reference: str) -> PromptChoice:
        """The version, or versions, that a reference names now.

        Raises:
            InputError: no such prompt, version or alias.
            UnavailableError: the source cannot be asked now.
        """
        ...


class PromptStore(Protocol):
    """Prompts as people work on them. Every method raises UnavailableError where the store cannot be asked now."""

    async def prompt_versions(self, reference: str | None) -> Sequence[PromptVersion]:
        """The version that a reference names; None for every version of every prompt.

        Raises:
            InputError: no such prompt, version or label.
        """
        ...

    async def prompt_labels(self, name: str | None) -> Sequence[PromptLabel]:
        """The labels of a prompt, or of all; none for a prompt that does not exist."""
        ...

    async def put_prompt(self, draft: PromptDraft) -> PromptVersion:
        """The version that says this, made if there is none.

        Raises:
            InputError: the name cannot be one, or a placeholder is malformed.
        """
        ...

    async def change_label(self, change: LabelChange) -> PromptLabel | None:
        """Write an event and return the label as it is now; None for one that names nothing.

        Raises:
            NotFoundError: no such prompt, version or label, or nothing to go back to.
            InputError: the label cannot be one, or a share is not above zero.
            GateRefusedError: the label is protected, and the evidence does not say to promote.
        """
        ...


class OutputSink(Protocol):
    async def put_packed(self, packed: Sequence[bytes]) -> None:
        """Keep outputs, as `packing.pack` makes them; putting one twice keeps it once."""
        ...

    async def output(self, output_id: str) -> Output:
        """An output that is kept.

        Raises:
            NotFoundError: there is none of that id.
        """
        ...


class KeyRing(Protocol):
    async def key(self, token: str) -> Key | None:
        """Whom a token stands for; None if it is unknown, expired or revoked.

        Raises:
            UnavailableError: the ring cannot be asked now.
        """
        ...

    async def any_keys(self) -> bool:
        """Whether there is any key at all; without one, only this machine may ask."""
        ...


class FeedbackSink(Protocol):
    async def put_feedback(self, feedback: Feedback) -> None:
        """Keep feedback.

        Raises:
            NotFoundError: no such output.
        """
        ...


class Watcher(Protocol):
    """The monitor, seen from the gateway."""

    async def observe(self, batch: Sequence[Observation]) -> None: ...

    async def status(self) -> Mapping[str, Any]: ...


class Backend(Protocol):
    """One model application: an engine in another process, or in this one in tests."""

    def submit(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Ports:
    """Everything that a gateway is bound to."""

    prompts: PromptSource | None = None
    store: PromptStore | None = None
    outputs: OutputSink | None = None
    feedback: FeedbackSink | None = None
    keys: KeyRing | None = None
    """None for a gateway that anybody may ask who reaches it."""
