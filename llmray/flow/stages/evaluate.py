"""Step: score a model on the held-out rows of a dataset, item by item."""

from dataclasses import asdict, dataclass, field

from llmray.artifact import Artifact
from llmray.errors import ConfigError
from llmray.flow.step import metered, step


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """What a model is scored on."""

    tasks: tuple[str, ...] = field(default=("heldout", "choice"), metadata={"code": True})
    """Built-in tasks, or your own as module:attribute."""
    max_rows: int | None = 400
    """Rows of each task, chosen by digest; null takes all."""
    max_length: int = 256
    """Tokens of a row that are scored."""
    num_workers: int = field(default=2, metadata={"identity": False})
    """Processes that score; the result does not depend on it."""
    cpus_per_worker: float = field(default=1.0, metadata={"identity": False})
    """Cores of each; it computes on one thread a core."""
    gpus_per_worker: float = 0.0
    """GPUs of each; above zero it computes there in bfloat16."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("evaluate.tasks is empty: name at least one, such as heldout")
        for name, least in (("num_workers", 1), ("max_length", 2), ("cpus_per_worker", 0), ("gpus_per_worker", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"evaluate.{name} ({getattr(self, name)}) must be {least} or more")
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(f"evaluate.max_rows ({self.max_rows}) must be 1 or more, or null for all")
        object.__setattr__(self, "tasks", tuple(self.tasks))


@step()
def evaluate(model: Artifact, data: Artifact, config: EvaluateConfig) -> Artifact:
    """Scores of `model` on `data`, as an artifact of kind `evaluation`."""
    from llmray.cluster import connect
    from llmray.evaluate.evaluate import evaluate as score

    connect()
    with metered(cores=config.num_workers * config.cpus_per_worker, gpus=config.num_workers * config.gpus_per_worker):
        return score(
            model.uri,
            data.uri,
            tasks=config.tasks,
            max_rows=config.max_rows,
            max_length=config.max_length,
            num_workers=config.num_workers,
            cpus_per_worker=config.cpus_per_worker,
            gpus_per_worker=config.gpus_per_worker,
            parents={"model": model.digest, "data": data.digest},
            config={"evaluate": asdict(config)},
        )
