"""The whole loop as one ordinary function: data, model, tuning, gate, service, drift, feedback, alignment, and again.

Read `run` and you have read what llmray does. Every call in it is a step with a cache: killed anywhere and called
again, it goes on from the last finished step; called again unchanged, it does nothing and says so. Models reach
`production` only through the gate, here as anywhere. Rejected: a workflow file, which would need a second language for
the conditions (nothing in production yet, gate refused, canary rolled back) that Python has already.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmray import artifact as artifacts
from llmray.align.spec import AlignSpec
from llmray.artifact import Artifact
from llmray.data.config import CurateConfig
from llmray.errors import ConfigError, GateRefusedError, InputError
from llmray.evaluate.evaluate import check_rows
from llmray.evaluate.gate import GatePolicy, policy_for
from llmray.flow import operations
from llmray.flow.promote import Verdict, promoted_before, settle, weigh
from llmray.flow.run import Run, open_run
from llmray.flow.stages.align import align
from llmray.flow.stages.evaluate import EvaluateConfig, evaluate
from llmray.flow.stages.preferences import preferences
from llmray.flow.stages.serve import Counter, ServeConfig, TrafficConfig, canary, converse, fresh_questions
from llmray.reference import check_name
from llmray.registry.records import SpendRecord, StepRecord
from llmray.serve.rollout import RolloutPolicy
from llmray.train.base_model import BaseModelSpec
from llmray.train.spec import TrainSpec
from llmray.tune.ledger import Budget
from llmray.tune.spec import TuneSpec

log = logging.getLogger(__name__)

PRODUCTION = "production"
TASKS = ("heldout_bytes", "choice")
"""Loss per byte, since a model made in the next turn has another tokenizer, and a question with four answers."""
PREFERENCE = "preference_margin"
"""What the aligned model must show besides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LifecycleConfig:
    """The whole life of a language model, from raw rows to a monitored model in production, and round again."""

    name: str = "docs"
    """Name of the dataset and of the model; the prompt is ask-NAME, the base model NAME-base."""
    sources: tuple[str, ...] = ()
    """Files of raw rows (jsonl, jsonl.gz, jsonl.zst, parquet); by default the running Python's own documentation."""
    model: str = ""
    """Hugging Face folder, hub id or reference to start from; by default a small Llama is made from the data."""
    output: str = "llmray-report.html"
    """Where the report goes."""
    curate: CurateConfig = field(default_factory=CurateConfig)
    """What is kept of the data."""
    base: BaseModelSpec = field(default_factory=BaseModelSpec)
    """Size of the model that is made."""
    pretrain: TrainSpec = field(
        default_factory=lambda: TrainSpec(objective="pretrain", max_steps=160, lr=4e-3, micro_batch=4, mix=0.2)
    )
    """How the model that is made learns to write."""
    tune: TuneSpec = field(
        default_factory=lambda: TuneSpec(
            space={"lr": "loguniform(2e-4, 2e-3)", "micro_batch": "choice(2, 4)"},
            report_metric="heldout_loss",
            max_trial_s=80,
            teardown_s=15,
        )
    )
    """What fine-tuning is searched for."""
    trial_steps: int = 20
    """Optimizer steps of a trial; the run that follows makes train.max_steps with what the trials found."""
    budget: Budget = field(default_factory=lambda: Budget(core_seconds=320))
    """What the search may spend."""
    train: TrainSpec = field(default_factory=lambda: TrainSpec(max_steps=60, micro_batch=4))
    """Fine-tuning; what the search found takes precedence."""
    evaluate: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(tasks=TASKS, max_rows=300))
    """What models are compared on."""
    gate: GatePolicy = field(default_factory=lambda: policy_for(TASKS))
    """What a model must show to be promoted."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    """How models are served."""
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    """The simulated people."""
    preference_heldout: float = 0.6
    """Share of the questions whose preferences are kept for the gate."""
    align: AlignSpec = field(default_factory=lambda: AlignSpec(num_workers=1, max_steps=30, lr=6e-5))
    """DPO on what people said."""
    rollout: RolloutPolicy = field(default_factory=lambda: RolloutPolicy(steps=(20.0, 50.0, 100.0), min_requests=8))
    """How the aligned model takes over."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.pretrain.objective != "pretrain" or self.train.objective != "sft":
            raise ConfigError("pretrain.objective must be pretrain, and train.objective sft")
        if unmeasured := sorted(set(self.gate.tasks) - set(self.evaluate.tasks)):
            raise ConfigError(f"gate.tasks names {unmeasured[0]}, which evaluate.tasks does not measure: add it there")
        if self.train.eval_rows < 1:
            raise ConfigError("train.eval_rows must be 1 or more: trials are ranked by the held-out loss")
        if self.trial_steps < 1:
            raise ConfigError(f"trial_steps ({self.trial_steps}) must be 1 or more")
        if not 0 < self.preference_heldout < 1:
            raise ConfigError(f"preference_heldout ({self.preference_heldout}) must lie between 0 and 1: try 0.6")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one turn of the loop; everything that the summary and the report tell."""

    run_id: str
    config: LifecycleConfig
    data: Artifact
    base: Artifact
    tuned: operations.Tuned
    candidate: Artifact
    """The fine-tuned model."""
    evaluation: Artifact
    verdict: Verdict
    production: Artifact
    """What people met: the fine-tuned model, or what was in production and better."""
    traffic: Artifact
    feedback: Artifact
    """The data with the preferences."""
    aligned: Artifact
    aligned_evaluation: Artifact
    aligned_verdict: Verdict
    rollout: Mapping[str, Any] | None
    """What the canary came to; None where the gate refused the aligned model."""
    in_production: str
    """Digest that the alias names at the end."""
    steps: Sequence[StepRecord]
    """What ran and what was taken from the cache, in order."""
    spend: Sequence[SpendRecord]
    """What this turn has cost, by step."""
    seconds: float


def run(config: LifecycleConfig) -> Outcome:
    """Go round once.

    Raises:
        GateRefusedError: no model may go into service: the gate refused the first one.
    """
    began = time.monotonic()
    name = config.name
    with open_run("lifecycle", config={"name": name, "sources": list(config.sources), "model": config.model}) as this:
        data = operations.curate(config.sources, name=name, config=config.curate)
        _check_rows(config, data)
        base = _base(config, data)
        trial = replace(config.train, max_steps=config.trial_steps)
        tuned = operations.tune(data, model=base, budget=config.budget, search=config.tune, spec=trial)
        spec = operations.train_spec(tuned.config, around=config.train)
        candidate = operations.finetune(base, data, config=spec, name=name)
        evaluation = operations.evaluate(candidate, data, config=config.evaluate)
        verdict = _gate(this, candidate, evaluation, config.gate, name)
        if verdict.promoted:
            _point(this, candidate, verdict, name)
        production = _production(this, candidate, verdict, name)

        counter = _counter(this, name)
        traffic = converse(production, data, counter, config.serve, config.traffic)

        said = operations.said_of(this.registry, production)
        feedback = operations.named(this, preferences(said, data, config.preference_heldout), f"{name}-feedback")
        aligned = operations.named(this, align(production, feedback, config.align), name)
        judged_on = replace(config.evaluate, tasks=(*config.evaluate.tasks, PREFERENCE))
        aligned_evaluation = evaluate(aligned, feedback, judged_on)
        policy = replace(config.gate, tasks={**config.gate.tasks, **policy_for([PREFERENCE]).tasks})
        aligned_verdict = _gate(this, aligned, aligned_evaluation, policy, name)
        rollout = None
        if aligned_verdict.promoted:
            rollout = canary(
                stable=production,
                candidate=aligned,
                data=data,
                counter=counter,
                serving=config.serve,
                policy=config.rollout,
                config=config.traffic,
            )
            if rollout["status"] == "done":
                _point(this, aligned, aligned_verdict, name)
        return Outcome(
            run_id=this.id,
            config=config,
            data=data,
            base=base,
            tuned=tuned,
            candidate=candidate,
            evaluation=evaluation,
            verdict=verdict,
            production=production,
            traffic=traffic,
            feedback=feedback,
            aligned=aligned,
            aligned_evaluation=aligned_evaluation,
            aligned_verdict=aligned_verdict,
            rollout=rollout,
            in_production=this.registry.alias(name, PRODUCTION, "model") or "",
            steps=this.registry.steps(this.id),
            spend=[one for one in this.registry.spend() if one.run_id == this.id],
            seconds=time.monotonic() - began,
        )


def _check_rows(config: LifecycleConfig, data: Artifact) -> None:
    """Rows for each task and for the traffic: better missed now than after an hour of training."""
    fresh_questions(data.uri, 1, config.traffic.seed)
    try:
        check_rows(data.uri, config.evaluate.tasks)
    except InputError as error:
        raise InputError(
            f"{error}; name the tasks that these rows have answers for, by --evaluate.tasks and --gate.tasks"
        ) from error


def _base(config: LifecycleConfig, data: Artifact) -> Artifact:
    name = f"{config.name}-base"
    if config.model:
        return operations.as_model(config.model, name=name)
    return operations.base_model(data, name=name, shape=config.base, pretrain=config.pretrain)


def _gate(this: Run, candidate: Artifact, evidence: Artifact, policy: GatePolicy, name: str) -> Verdict:
    """The gate's verdict; a model that once passed keeps it, unless somebody has rolled it back."""
    before = promoted_before(this.registry, candidate, name=name, alias=PRODUCTION)
    if before is not None and candidate.digest not in this.registry.alias_stack(name, PRODUCTION, "model"):
        log.info("gate       %s passed before, and was rolled back: it stays out", candidate.digest[:12])
        return replace(before, promoted=False, reasons=(f"{name}@{PRODUCTION} was rolled back from it",))
    if before is not None:
        log.info("gate       %s passed before", candidate.digest[:12])
        return before
    verdict = weigh(this.registry, candidate, name=name, alias=PRODUCTION, evidence=evidence, policy=policy)
    said = [event.payload for event in this.registry.events("gate.refused") if event.subject == candidate.digest]
    if not verdict.promoted and verdict.evidence not in said:
        this.registry.add_event("gate.refused", candidate.digest, verdict.evidence)
    told = "passes" if verdict.promoted else "is held: " + "; ".join(verdict.reasons)
    log.info("gate       %s %s", candidate.digest[:12], told)
    return verdict


def _point(this: Run, candidate: Artifact, verdict: Verdict, name: str) -> None:
    """Let production name a model that passed, unless it once did: what came after it stays."""
    if promoted_before(this.registry, candidate, name=name, alias=PRODUCTION) is None:
        settle(this.registry, candidate, verdict, name=name, alias=PRODUCTION, actor=this.actor)


def _production(this: Run, candidate: Artifact, verdict: Verdict, name: str) -> Artifact:
    """Whom people meet: the candidate if it passed, else what is in production."""
    if verdict.promoted:
        return candidate
    there = this.registry.alias(name, PRODUCTION, "model")
    if there is None:
        raise GateRefusedError(f"{name}@{PRODUCTION} has no model, and the gate held: " + "; ".join(verdict.reasons))
    return artifacts.load(this.registry.artifact(there).uri)


def _counter(this: Run, name: str) -> Counter:
    """The prompt that people ask by, in production from its first version on."""
    prompt = f"ask-{name}"
    reference = f"{prompt}@{PRODUCTION}"
    digest = this.registry.alias(prompt, PRODUCTION, "prompt")
    if digest is None:
        made = this.registry.put_prompt(
            prompt,
            messages=[{"role": "user", "content": "{question}"}],
            settings={"temperature": 0.0},
            message="the question as it is",
            author=this.actor,
        )
        this.registry.move_alias(
            prompt, PRODUCTION, made.digest, kind="prompt", actor=this.actor, reason="the first version"
        )
        digest = made.digest
    return Counter(name=name, prompt=reference, prompt_digest=digest)
