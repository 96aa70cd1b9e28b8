"""One answer and everything that made it, and what was said of it: what serving makes, the registry keeps and people ask for.

Values of the ground, so that serving and registry speak of the same thing without knowing each other. Rejected: a record on
either side and a conversion between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

FeedbackKind = Literal["thumb", "rating", "correction", "preference"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One answer of a served model and everything that made it."""

    id: str
    at: datetime
    """When the request arrived, UTC."""
    prompt_digest: str | None = None
    prompt_reference: str | None = None
    """What the caller asked for, `ask-docs@production` say."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]]
    """As rendered and sent to the model; empty where texts are not kept."""
    completion: str
    """Empty where texts are not kept."""
    finish_reason: str
    """`stop`, `length`, `cancelled` (the client left), `deadline` (its time was over) or `error`."""
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
    """What was retrieved for it: ids, digests, scores, as the client said."""
    project: str | None = None
    key_id: str | None = None
    """Which key asked."""
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
