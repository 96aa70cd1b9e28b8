"""Search for training options with Ray Tune, inside a budget that is never exceeded.

python jobs/tune.py --model base@latest --data docs@latest --budget.core_seconds 600 \\
    --tune.space '{"lr": "loguniform(1e-4, 3e-3)", "lora_rank": "choice(8, 32)"}' --train.method lora
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import yaml

from llmray import console
from llmray.flow import operations
from llmray.options import changed, run_job
from llmray.train.spec import TrainSpec
from llmray.tune.ledger import Budget
from llmray.tune.spec import TuneSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is tuned on what."""

    model: str = "base@latest"
    """The model to start from: a reference, a Hugging Face folder, or a hub id."""
    data: str = "docs@latest"
    """The dataset snapshot: a reference or URI."""
    output: str = ""
    """File that gets the best options, to be used as jobs/train.py --config FILE."""
    budget: Budget = field(default_factory=lambda: Budget(core_seconds=600))
    """What may be spent."""
    tune: TuneSpec = field(default_factory=TuneSpec)
    """What varies, and how it is searched."""
    train: TrainSpec = field(default_factory=TrainSpec)
    """The training run around which the search varies."""


def job(config: Config) -> None:
    found = operations.tune(
        config.data, model=config.model, budget=config.budget, search=config.tune, spec=config.train
    )
    names = sorted({name for trial in found.trials for name in trial["config"]})
    rows = [
        [
            trial["index"],
            trial["status"],
            *(trial["config"].get(name) for name in names),
            trial["metric"],
            trial["core_seconds"],
        ]
        for trial in found.trials
    ]
    print(console.table(["trial", "status", *names, config.tune.metric, "core_s"], rows))
    spent = ", ".join(
        f"{found.spent[name]:,.0f} of {limit:,.0f} {name}" for name, limit in config.budget.limits().items()
    )
    best = yaml.safe_dump({"train": {**changed(config.train), **found.config}}, sort_keys=False)
    print(f"\nspent {spent}; the best options:\n\n{best}")
    if config.output:
        from llmray import storage

        storage.write_bytes(config.output, best.encode())


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(job, Config, argv, prog="jobs/tune.py", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
