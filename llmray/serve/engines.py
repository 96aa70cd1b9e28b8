"""Which engine a model application opens, and the check that its folder holds the model that was evaluated."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmray import artifact, storage
from llmray.code_names import load_named
from llmray.digest import digest_of
from llmray.errors import ConfigError, InputError, NotFoundError
from llmray.serve.engine import Engine
from llmray.serve.external_args import External
from llmray.serve.variants import Variant

ENGINES = {name: f"llmray.serve.engines:{name}_engine" for name in ("hf", "external", "echo")}

_OTHER_ANSWERS = {"engine", "external", "adapters", "device", "num_gpus", "kv_gb"}
"""Fields that change how the same weights answer, or fail to; where others change, new replicas take over from the old ones."""


class ModelArgs(BaseModel):
    """Arguments of a model application, in Serve files as `args`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    """Folder of the model artifact."""
    digest: str
    """What the folder must hold: another artifact there is refused."""
    quantization: str = "nf4"
    """`nf4`, `int8`, `bf16` or `none` (as stored); `nf4-bf16` for another output head than the default, which is int8."""
    engine: str = "hf"
    """`hf`, `external`, `echo`, or `module:attribute` of a function from these arguments to an `Engine`."""
    external: External | None = None
    """For `external`: the server to start. `quantization` then tells the record what its command makes of the weights."""
    device: str | None = None
    """`cpu`, `cuda`; the GPU if the replica was given one by default."""
    adapters: dict[str, str] = {}
    """Folders of LoRA adapters, by the names that requests use."""
    kv_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory for keys and values, in GB, at least one context's; 1.07 on a CPU and 70% of what is free on a GPU by default."""
    num_cpus: Annotated[float, Field(ge=0)] = 0.5
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    num_replicas: Annotated[int, Field(ge=1)] = 1
    ttft_limit_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds within which a request that is taken should have its first token; what would come later is refused."""
    max_waiting: Annotated[int, Field(ge=1)] = 256
    """Requests of one replica that may wait for their first token."""
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 512
    """Requests that one replica may have under way, running or waiting."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """Most replicas; None for always `num_replicas`."""
    min_replicas: Annotated[int, Field(ge=0)] = 1
    """Fewest replicas where `max_replicas` is given; with 0, the first request after a pause waits for one to load."""
    ttft_objective_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds to the first token that the number of replicas is to keep."""
    requests_per_replica: Annotated[float, Field(gt=0)] = 32
    """Requests under way that a replica should have."""
    upscale_delay_s: Annotated[float, Field(ge=0)] = 1.0
    """Seconds for which more replicas must be wanted."""
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0
    """Seconds for which fewer must do, before each replica that goes."""
    routing: Literal["power_of_two", "prefix", "session"] = "power_of_two"
    """Which replica gets a request: the less busy of two; the one that has seen its prompt's beginning, or its `user`."""

    @property
    def app(self) -> str:
        """Name of its Serve application: one for each way of answering, since only what has another name comes beside it."""
        plain = f"model-{self.digest[:12]}-{self.quantization}"
        others = self.model_dump(mode="json", include=_OTHER_ANSWERS, exclude_defaults=True)
        return f"{plain}-{digest_of(others)[:6]}" if others else plain

    def variant(self, name: str, weight: float, *, price_s: float | None = None) -> Variant:
        """This model behind the gateway.

        Args:
            price_s: money for a second of all its replicas; None without a price list.
        """
        return Variant(
            name=name,
            app=self.app,
            digest=self.digest,
            weight=weight,
            quantization=self.quantization,
            engine=self.engine,
            adapters=tuple(self.adapters) or (() if self.external is None else self.external.adapters),
            price_s=price_s,
        )

    @model_validator(mode="after")
    def _one_number_of_replicas(self) -> "ModelArgs":
        if self.max_replicas is None:
            if "min_replicas" in self.model_fields_set:
                raise ValueError("min_replicas: give max_replicas too, or num_replicas alone for a fixed number")
        elif "num_replicas" in self.model_fields_set:
            raise ValueError("num_replicas: leave it out where max_replicas is given")
        elif self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) must be at most max_replicas ({self.max_replicas})")
        return self


def open_engine(args: ModelArgs) -> Engine:
    """The engine that the arguments name.

    Raises:
        ConfigError: there is no such engine.
        InputError: the folder does not hold that model.
    """
    make = load_named(ENGINES.get(args.engine, args.engine), f"engine ({', '.join(ENGINES)} or module:attribute)")
    engine: Engine = make(args)
    return engine


def hf_engine(args: ModelArgs) -> Engine:
    """transformers, from the artifact's folder."""
    from llmray.serve.hf_engine import HfEngine

    return HfEngine.open(
        checked_folder(args.uri, args.digest),
        args.quantization,
        device=args.device,
        adapters={name: storage.local_copy(uri) for name, uri in args.adapters.items()},
        kv_bytes=None if args.kv_gb is None else int(args.kv_gb * 1e9),
    )


def external_engine(args: ModelArgs) -> Engine:
    """A server of its own, on the artifact's folder."""
    from llmray.serve.external_engine import ExternalEngine

    if args.external is None:
        raise ConfigError("engine: external needs the command of a server in external.command")
    folder = checked_folder(args.uri, args.digest)
    return ExternalEngine.open(folder, args.external, quantization=args.quantization, device=args.device)


def echo_engine(_: ModelArgs) -> Engine:
    """The engine that repeats what it is told."""
    from llmray.serve.echo_engine import EchoEngine

    return EchoEngine()


def checked_folder(uri: str, digest: str) -> Path:
    """Local folder of a model.

    Raises:
        InputError: another artifact lies there, or nothing.
    """
    try:
        found = artifact.load(uri)
    except NotFoundError:
        if not storage.exists(storage.join(uri, "config.json")):
            raise InputError(f"{uri} holds no model: it has no config.json") from None
        return storage.local_copy(uri)  # a plain Hugging Face folder: nobody vouches for its digest
    if found.kind != "model":
        raise InputError(f"{uri} holds a {found.kind}, not a model")
    if found.digest != digest:
        raise InputError(f"{uri} holds {found.digest}, not {digest}: deploy the artifact that was evaluated")
    return found.local()
