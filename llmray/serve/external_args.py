"""What a model application says about a server that it starts: the `external` of its `ModelArgs`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ExternalFeature = Literal["adapters", "echo", "json_schema", "logit_bias", "logprobs", "penalties"]
"""Tool calls are not among them: such a server reads them out of the text itself, and an engine gives the text."""


class External(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Program and arguments; `{model}` stands for the model's folder, `{port}` for the port to listen on at 127.0.0.1."""
    env: dict[str, str] = {}
    """Added to the replica's environment; `{model}` stands for the folder here too."""
    health: str = "/health"
    """Path that answers 2xx once the model is loaded."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    health_every_s: Annotated[float, Field(gt=0)] = 10.0
    """Three checks in a row that fail count as its death."""
    model_name: str = "{model}"
    """What the server knows the model by."""
    can: tuple[ExternalFeature, ...] = ()
    """What it honours beyond max_tokens, temperature, top_p, top_k, seed and stop; the rest is refused."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that the command loads, by the names under which it serves them."""
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that a request may hold; the model's own by default."""

    @model_validator(mode="after")
    def _adapters_are_loaded(self) -> "External":
        if bool(self.adapters) != ("adapters" in self.can):
            raise ValueError("external.adapters: name the adapters and put `adapters` into external.can, or neither")
        return self
