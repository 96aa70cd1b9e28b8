"""Align a model with what people said of its answers: preference pairs from the feedback in the registry, then DPO.

python jobs/align.py --model docs@production --data docs@latest --name docs
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmray import console
from llmray.align.spec import AlignSpec
from llmray.flow import operations
from llmray.options import run_job


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is aligned with what."""

    model: str = "docs@production"
    """The model whose answers people spoke of."""
    data: str = "docs@latest"
    """The snapshot that the preferences are put beside, so that one evaluation covers both."""
    name: str = "docs"
    """The result becomes the next version of this model, the preferences of the dataset NAME-feedback."""
    heldout: float = 0.4
    """Share of the questions whose preferences are kept for evaluation."""
    align: AlignSpec = field(default_factory=AlignSpec)
    """How DPO is run."""


def job(config: Config) -> None:
    made, feedback = operations.align(
        config.model, config.data, name=config.name, heldout=config.heldout, spec=config.align
    )
    names = ("pairs", "steps", "train_loss", "reward_accuracy", "reward_margin", "core_seconds")
    print(console.table(["figure", "value"], [[name, made.report[name]] for name in names if name in made.report]))
    print(f"\nmodel {made.digest[:12]} is {config.name}@latest; its preferences are {config.name}-feedback@latest")
    print(f"evaluate it on both: python jobs/evaluate.py --model {made.digest[:12]} --data {feedback.digest[:12]}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(job, Config, argv, prog="jobs/align.py", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
