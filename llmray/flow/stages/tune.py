"""Step: the best settings for fine-tuning that a budget can find.

A trial is a fine-tuning run like any other, on the workers that a trial may have; gradient accumulation makes up for
those it lacks, so that a setting found by trials means the same in the full run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from llmray.artifact import Artifact
from llmray.errors import ConfigError
from llmray.flow.step import charge, step, work_folder
from llmray.train.spec import TrainSpec
from llmray.tune.ledger import Budget
from llmray.tune.spec import TuneSpec

_LOOKS = 5
"""Times that a trial reports its held-out loss, for early stopping, where the spec does not say how often."""


@step()
def tune(model: Artifact, data: Artifact, search: TuneSpec, spec: TrainSpec, budget: Budget) -> dict[str, Any]:
    """Search around `spec`.

    Returns:
        `config` (the best point), `metric`, `trials` (every one with its point, status, metric and cost), `spent`.

    Raises:
        ConfigError: the space names what is no training option, or trials cannot have the full run's batch.
        BudgetExhaustedError: not even one trial fits.
    """
    from llmray.cluster import connect
    from llmray.tune.search import tune as run_search

    trial = TrainTrial(spec=trial_spec(spec, search), model=model.uri, data=data.uri)
    connect()
    result = run_search(trial, search, budget=budget, run_dir=str(work_folder()))
    charge(core_seconds=result.spent["core_seconds"], gpu_seconds=result.spent["gpu_seconds"])
    return {
        "config": dict(result.best_config),
        "metric": result.best_metric,
        "trials": [
            {key: value for key, value in asdict(one).items() if key not in ("trial_dir", "result")}
            for one in result.trials
        ],
        "spent": dict(result.spent),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTrial:
    """A fine-tuning run at a point of the space."""

    spec: TrainSpec
    model: str
    """URI."""
    data: str
    """URI."""

    def __call__(
        self, config: dict[str, Any], *, trial_dir: str, deadline_s: float, callbacks: list[Any]
    ) -> Mapping[str, Any]:
        """See `llmray.tune.driver.TrialFunction`. What a trial trains stays in its folder."""
        from llmray.train.trainer import train

        result = train(
            replace(self.spec, **config, model=self.model, data=self.data),
            run_dir=str(Path(trial_dir) / "run"),
            root_uri=str(Path(trial_dir) / "artifacts"),
            deadline_s=deadline_s,
            callbacks=callbacks,
        )
        return {"heldout_loss": result.heldout_loss, "loss": result.train_loss, "steps": result.steps}


def trial_spec(spec: TrainSpec, search: TuneSpec) -> TrainSpec:
    """The full run's spec on a trial's workers.

    Raises:
        ConfigError: the space names what is no training option, or the batch cannot be had.
    """
    known = {field.name for field in fields(TrainSpec) if field.metadata.get("flag", True)}
    if unknown := sorted(set(search.space) - known):
        raise ConfigError(f"tune.space names {unknown[0]}, which is no training option: see train.* in --help")
    if "lora_rank" in search.space and spec.method != "lora" and "method" not in search.space:
        raise ConfigError("tune.space varies lora_rank, which train.method full does not use: add --train.method lora")
    per_worker = spec.gpus_per_worker or spec.cpus_per_worker
    workers = max(1, int((search.gpus_per_trial if spec.gpus_per_worker else search.cpus_per_trial) / per_worker))
    for kind, have in (("cpus", search.cpus_per_trial), ("gpus", search.gpus_per_trial)):
        need = workers * getattr(spec, f"{kind}_per_worker")
        if need > have:
            raise ConfigError(f"tune.{kind}_per_trial ({have:g}) is less than a trial takes ({need:g}): raise it")
    rounds, rest = divmod(spec.num_workers * spec.accumulation, workers)
    if rest:
        raise ConfigError(
            f"trials of {workers} workers cannot have the batch of train.num_workers ({spec.num_workers}) times "
            f"train.accumulation ({spec.accumulation}): make it a multiple"
        )
    return replace(
        spec,
        num_workers=workers,
        min_workers=0,
        accumulation=rounds,
        checkpoint_every=spec.max_steps,
        eval_every=spec.eval_every or max(1, spec.max_steps // _LOOKS),
    )
