"""Step: score a model on the held-out rows of a dataset, item by item."""

from dataclasses import asdict, dataclass, field

from llmray.artifact import Artifact
from llmray.errors import ConfigError
from llmray.flow.step import metered, step


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """What a model is scored on."""

    tasks: tuple[str, ...] = ("heldout", "choice")
    """Built-in tasks, or your own as module:attribute."""
    max_rows: int | None = 400
    """Rows of each task, chosen by digest; null takes all."""
    max_length: int = 256
    """Tokens of a row that are scored."""
    num_workers: int = field(default=2, metadata={"identity": False})
    """Processes that score; the result does not depend on it."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("evaluate.tasks is empty: name at least one, such as heldout")
        if self.num_workers < 1:
            raise ConfigError(f"evaluate.num_workers ({self.num_workers}) must be 1 or more")
        object.__setattr__(self, "tasks", tuple(self.tasks))


@step()
def evaluate(model: Artifact, data: Artifact, config: EvaluateConfig) -> Artifact:
    """Scores of `model` on `data`, as an artifact of kind `evaluation`."""
    from llmray.cluster import connect
    from llmray.evaluate.evaluate import evaluate as score

    connect()
    with metered(cores=config.num_workers):
        return score(
            model.uri,
            data.uri,
            tasks=config.tasks,
            max_rows=config.max_rows,
            max_length=config.max_length,
            num_workers=config.num_workers,
            parents={"model": model.digest, "data": data.digest},
            config={"evaluate": asdict(config)},
        )
