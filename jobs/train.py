"""Fine-tune a model on a dataset snapshot, sharded by DeepSpeed on Ray Train.

python jobs/train.py --model base@latest --data docs@latest --name docs --train.lr 1e-3 --train.num_workers 2

With --train.objective pretrain and no --model, a small Llama is made from the snapshot's plain text first.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmray import console
from llmray.errors import ConfigError
from llmray.flow import operations
from llmray.options import run_job
from llmray.train.base_model import BaseModelSpec
from llmray.train.spec import TrainSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is trained on what."""

    model: str = ""
    """Hugging Face folder, hub id, or reference of the model to start from; none to make one (pretrain only)."""
    data: str = "docs@latest"
    """The dataset snapshot: a reference or URI."""
    name: str = ""
    """The result becomes the next version of this model; by default base (pretrain) or the dataset's name."""
    base: BaseModelSpec = field(default_factory=BaseModelSpec)
    """Size of a model that is made."""
    train: TrainSpec = field(default_factory=TrainSpec)
    """How it is trained."""

    def __post_init__(self) -> None:
        if not self.model and self.train.objective != "pretrain":
            raise ConfigError("model is missing: name one (base@latest), or make one with --train.objective pretrain")


def job(config: Config) -> None:
    if config.model:
        made = operations.finetune(config.model, config.data, config=config.train, name=config.name or None)
    else:
        made = operations.base_model(config.data, name=config.name or "base", shape=config.base, pretrain=config.train)
    report = made.report
    names = ("steps", "exported_step", "train_loss", "heldout_loss", "tokens", "core_seconds", "gpu_seconds", "money")
    print(console.table(["figure", "value"], [[name, report[name]] for name in names if name in report]))
    print(f"\nmodel {made.digest[:12]} is at {made.uri}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(job, Config, argv, prog="jobs/train.py", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
