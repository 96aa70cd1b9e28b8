"""Which engine a model application opens, and the check that its folder holds the model that was evaluated."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from llmray import artifact, storage
from llmray.code_names import load_named
from llmray.errors import ConfigError, InputError, NotFoundError
from llmray.serve.engine import Engine
from llmray.serve.external_args import External

ENGINES = {name: f"llmray.serve.engines:{name}_engine" for name in ("hf", "external", "echo")}


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
    num_cpus: Annotated[float, Field(ge=0)] = 0.5
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    num_replicas: Annotated[int, Field(ge=1)] = 1
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 64
    """Answers that one replica decodes in turn."""
    max_queued_requests: Annotated[int, Field(ge=0)] = 256
    """Answers that may wait at the gateway before others are refused with 429."""


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

    return HfEngine.open(checked_folder(args.uri, args.digest), args.quantization, device=args.device)


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
