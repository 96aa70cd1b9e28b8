"""Score a model on held-out rows, with confidence intervals; with --promote_to, hold it against what is there.

python jobs/evaluate.py --model docs@latest --promote_to production     # exits 3 if the gate refuses
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmray import console
from llmray.flow import operations, serving
from llmray.flow.stages.evaluate import EvaluateConfig
from llmray.options import run_job


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is evaluated on what."""

    model: str = "docs@latest"
    """The model: a reference, a Hugging Face folder, or a hub id."""
    data: str = ""
    """The snapshot whose held-out rows are used; by default the one that the model was trained on."""
    promote_to: str = ""
    """Alias to move to the model if the gate allows it; none only evaluates."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """What is scored."""


def job(config: Config) -> None:
    made = operations.evaluate(config.model, config.data or None, config=config.evaluate)
    rows = [[task, one["metric"], one["mean"], one["low"], one["high"], one["n"]] for task, one in made.report.items()]
    print(console.table(["task", "metric", "mean", "95% low", "95% high", "n"], rows))
    print(f"\nevaluation {made.digest[:12]}")
    if config.promote_to:
        verdict = serving.promote(config.model, to=config.promote_to, evidence=made)
        print(console.table(["task", "improvement", "low", "high"], operations.improvements(verdict)))
        print(f"\n{config.model} passed the gate: {config.promote_to} points at it")


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(job, Config, argv, prog="jobs/evaluate.py", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
