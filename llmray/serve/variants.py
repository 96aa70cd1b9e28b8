"""Who gets which model: a pure, sticky split of the traffic by weight.

A key (the request's `user`, or its id) falls on a point in [0, 1) that depends on the newest variant's digest, so a
person stays on one side while the canary's weight grows, and other people go first in the next rollout. Rejected: a
random draw for each request (a conversation would change its model in the middle).
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmray.digest import fraction_of

Item = TypeVar("Item")


class Variant(BaseModel):
    """One model behind the gateway."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """`stable`, `canary`."""
    app: str
    """Serve application that holds the weights."""
    digest: str
    weight: Annotated[float, Field(ge=0)] = 100.0
    """Share of the traffic, relative to the others."""
    quantization: str = "none"
    engine: str = "hf"
    adapters: tuple[str, ...] = ()
    """LoRA adapters that it has; clients ask for one as `model`."""
    price_s: Annotated[float, Field(ge=0)] | None = None
    """Money for a second of the application, all its replicas; None where it has no price."""


class Shadow(BaseModel):
    """A model that gets copies of requests; its answers are kept for comparison and sent to nobody."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Variant
    share: Annotated[float, Field(gt=0, le=100)] = 100.0
    """Percent of the requests that are copied."""


class TextLog(BaseModel):
    """How much of what was asked and answered is kept with an output; everything else always is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Annotated[float, Field(ge=0, le=100)] = 100.0
    """Percent of the outputs whose texts are kept, chosen by output id; 0 keeps none."""
    redact: bool = False
    """Whether e-mail addresses, phone numbers, card numbers and keys are masked in what is kept."""


class GatewayConfig(BaseModel):
    """The gateway's `user_config`: changing it restarts nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """Name under which clients ask for the model."""
    variants: Annotated[list[Variant], Field(min_length=1)]
    """Oldest first; the last one is the canary while there is one."""
    monitor_app: str | None = None
    """Serve application of the monitor; None for none."""
    default_prompt: str | None = None
    """Prompt reference for chats that name none."""
    shadow: Shadow | None = None
    embeddings: dict[str, str] = {}
    """Embedding models: the name clients ask for, and its Serve application."""
    text_log: TextLog = TextLog()

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        return dict(data) if not isinstance(data, BaseModel) else data

    @model_validator(mode="after")
    def _some_weight(self) -> "GatewayConfig":
        if not sum(variant.weight for variant in self.variants) > 0:
            raise ValueError("variants: at least one weight must be above zero")
        if len({variant.name for variant in self.variants}) < len(self.variants):
            raise ValueError("variants: each needs a name of its own")
        return self


def choose(variants: Sequence[Variant], key: str) -> Variant:
    """The variant that serves `key`."""
    return pick([(variant, variant.weight) for variant in variants], key=f"{variants[-1].digest}:{key}")


def pick(weighted: Sequence[tuple[Item, float]], *, key: str) -> Item:
    """The same one for the same key; each as often, over many keys, as its weight says.

    The last one has the first part of the range, so that nobody leaves it while its weight grows.
    """
    point = fraction_of(key) * sum(weight for _, weight in weighted)
    for item, weight in reversed(weighted):
        if point < weight:
            return item
        point -= weight
    return next(item for item, weight in weighted if weight > 0)
