"""The only way to `production`: an evaluation, a paired test against what is there, and an event that can be undone.

The evidence is an evaluation artifact of the candidate. The baseline is the model that the alias points at, or, where
nothing is in production yet, the model that the candidate was made from; it is evaluated on the same items with the
same settings if it has not been. The decision itself is `llmray.evaluate.gate`. With a rollout, the alias moves when the model
has all of the traffic: a promotion that dies before leaves a canary, and the next one goes on with it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmray import artifact as artifacts
from llmray.artifact import Artifact
from llmray.errors import GateRefusedError, InputError, UnavailableError
from llmray.evaluate.gate import GatePolicy, Hold, decide, policy_for
from llmray.evaluate.scores import load_scores
from llmray.flow.inputs import name_of, resolve
from llmray.flow.run import open_run
from llmray.flow.stages.evaluate import EvaluateConfig, evaluate
from llmray.registry.registry import Registry
from llmray.serve.canary import RolloutResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    promoted: bool
    reasons: tuple[str, ...]
    """What stood against it; empty when promoted."""
    evidence: Mapping[str, Any]
    """Per task the difference with its interval and p-values: see `llmray.evaluate.gate`."""


def weigh(
    registry: Registry, candidate: Artifact, *, name: str, alias: str, evidence: Artifact, policy: GatePolicy
) -> Verdict:
    """Hold a candidate against the baseline without moving anything.

    Raises:
        InputError: the evidence is about another model, or there is nothing to compare with.
    """
    if evidence.parents.get("model") != candidate.digest:
        raise InputError(
            f"the evidence {evidence.digest[:12]} is not about model {candidate.digest[:12]}: evaluate it first"
        )
    replaces = _replaced(registry, candidate, name=name, alias=alias)
    baseline = _baseline(registry, candidate, replaces, name=name, alias=alias)
    data = resolve(registry, evidence.parents["data"], kind="dataset")
    settings = EvaluateConfig(**evidence.config["evaluate"])
    against = evaluate(model=baseline, data=data, config=settings)
    decision = decide(load_scores(evidence.uri), load_scores(against.uri), policy)
    facts = {
        **decision.evidence,
        "candidate": candidate.digest,
        "baseline": baseline.digest,
        "replaces": replaces,
        "candidate_evaluation": evidence.digest,
        "baseline_evaluation": against.digest,
    }
    reasons = decision.reasons if isinstance(decision, Hold) else ()
    return Verdict(promoted=not reasons, reasons=tuple(reasons), evidence=facts)


def promote(
    registry: Registry,
    reference: str,
    *,
    to: str = "production",
    evidence: str,
    actor: str,
    name: str | None = None,
    policy: GatePolicy | None = None,
    roll_out: Callable[[Artifact], RolloutResult] | None = None,
) -> Verdict:
    """Move an alias to a model if the gate allows it.

    Args:
        reference: the candidate: `name@alias`, `name:version` or a digest.
        to: the alias that moves.
        evidence: digest or URI of the candidate's evaluation.
        actor: who asks; kept with the event.
        name: name whose alias moves; the candidate's own by default.
        policy: by default the usual margins for every task of the evidence that has one.
        roll_out: brings what passed the gate into service before the alias moves; None for no service.

    Raises:
        GateRefusedError: the evidence does not allow it, or the rollout went back; nothing moved.
        UnavailableError: somebody else moved the alias in the meantime, or a rollout had too little traffic: try again.
        InputError: the candidate has no name, or the evidence is about another model.
    """
    record = registry.resolve(reference, "model")
    owner = name or name_of(registry, reference, record.digest)
    if owner is None:
        raise InputError(f"{reference} has no name, so no alias can point at it: register it under one first")
    candidate = artifacts.load(record.uri)
    proof = resolve(registry, evidence, kind="evaluation")
    with open_run("promote", config={"candidate": candidate.digest, "to": to}):
        verdict = weigh(
            registry,
            candidate,
            name=owner,
            alias=to,
            evidence=proof,
            policy=policy or policy_for(proof.report),
        )
        if verdict.promoted and roll_out is not None:
            require_done(roll_out(candidate))
        settle(registry, candidate, verdict, name=owner, alias=to, actor=actor)
    return verdict


def require_done(result: RolloutResult) -> None:
    """Go on only if a rollout ended with the new model in service.

    Raises:
        GateRefusedError: it went back.
        UnavailableError: it went back without a verdict.
    """
    if not result.judged:
        raise UnavailableError(f"rollout without a verdict: {result.reason}; {result.digest[:12]} serves on")
    if result.status != "done":
        raise GateRefusedError(f"rollout {result.status}: {result.reason}; {result.digest[:12]} serves on")


def settle(registry: Registry, candidate: Artifact, verdict: Verdict, *, name: str, alias: str, actor: str) -> None:
    """Carry out a verdict: an alias event, or a refusal.

    Raises:
        GateRefusedError: the verdict is no.
        UnavailableError: the alias has moved since the candidate was weighed.
    """
    if not verdict.promoted:
        registry.add_event("gate.refused", candidate.digest, dict(verdict.evidence))
        raise GateRefusedError(f"{name}@{alias} stays where it is: " + "; ".join(verdict.reasons))
    if registry.alias(name, alias, "model") == candidate.digest:
        log.info("%s@%s already points at %s", name, alias, candidate.digest[:12])
        return
    registry.move_alias(
        name,
        alias,
        candidate.digest,
        kind="model",
        actor=actor,
        reason="passed the gate",
        evidence=verdict.evidence,
        expected=verdict.evidence["replaces"],
    )
    log.info("%s@%s now points at %s", name, alias, candidate.digest[:12])


def promoted_before(registry: Registry, candidate: Artifact, *, name: str, alias: str) -> Verdict | None:
    """The verdict that once moved the alias to this model; None if none did.

    A pipeline that is run again asks first: what has been replaced or rolled back since is not to come back by itself.
    """
    for event in reversed(registry.alias_events(name, alias, "model")):
        if event.digest == candidate.digest and event.type == "move" and event.evidence:
            return Verdict(promoted=True, reasons=(), evidence=event.evidence)
    return None


def _replaced(registry: Registry, candidate: Artifact, *, name: str, alias: str) -> str | None:
    """What the alias points at, or what it pointed at before it came to the candidate; None for nothing."""
    there = registry.alias(name, alias, "model")
    if there != candidate.digest:
        return there
    before = promoted_before(registry, candidate, name=name, alias=alias)
    return None if before is None else before.evidence.get("replaces")


def _baseline(registry: Registry, candidate: Artifact, replaces: str | None, *, name: str, alias: str) -> Artifact:
    """What the candidate would replace, or what it was made from."""
    baseline = replaces or candidate.parents.get("base")
    if baseline is None:
        raise InputError(
            f"nothing to compare {candidate.digest[:12]} with: {name}@{alias} is not set and it has no base model"
        )
    return resolve(registry, baseline, kind="model")
