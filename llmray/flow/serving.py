"""Into production and into service: what a person asks for once a model is there.

As in `llmray.flow.operations`: the SDK exports these, the jobs and the command line call them.
"""

from collections.abc import Callable, Sequence

from llmray.artifact import Artifact
from llmray.evaluate.gate import GatePolicy
from llmray.flow.inputs import name_of, resolve
from llmray.flow.operations import What, as_model, training_data
from llmray.flow.promote import Verdict
from llmray.flow.promote import promote as through_the_gate
from llmray.flow.run import open_run
from llmray.flow.stages.serve import ServeConfig, put_into_service
from llmray.serve.canary import RolloutResult
from llmray.serve.rollout import RolloutPolicy
from llmray.serve.service import Deployed


def promote(
    model: What,
    *,
    to: str = "production",
    evidence: What,
    name: str | None = None,
    policy: GatePolicy | None = None,
    canary: RolloutPolicy | Sequence[float] | None = None,
) -> Verdict:
    """Move an alias to a model if a paired test against what is there allows it.

    Args:
        evidence: the model's evaluation.
        name: name whose alias moves; the model's own by default.
        policy: which tasks decide, and how sure the test must be; by default every task of the evidence that has a rule.
        canary: rolls the model out on the running service first, by these percents of the traffic: `(5, 25, 100)`.

    Raises:
        GateRefusedError: the evidence does not allow it, or the rollout went back; no alias moved.
        InputError: the model has no name, or several and none was given; or nothing is served.
        UnavailableError: too little traffic came to judge the rollout by.
    """
    with open_run("promote", config={"model": str(model), "to": to}) as run:
        candidate = as_model(model)
        return through_the_gate(
            run.registry,
            candidate.digest,
            evidence=resolve(run.registry, evidence, kind="evaluation").digest,
            to=to,
            name=name or name_of(run.registry, model, candidate.digest),
            actor=run.actor,
            policy=policy,
            roll_out=None if canary is None else rolling_out(canary),
        )


def deploy(
    model: What,
    *,
    name: str,
    data: What | None = None,
    prompt: str | None = None,
    config: ServeConfig | None = None,
) -> Deployed:
    """Serve a model with all of the traffic, on the cluster that `RAY_ADDRESS` names or on one of this process.

    Args:
        name: what clients ask for as `model`.
        data: snapshot whose validation questions are the usual traffic; by default the one that it was trained on.
        prompt: reference of the prompt for chats that name none.

    Raises:
        UnavailableError: the port is taken, or the cluster is full or not there.
    """
    with open_run("deploy", config={"model": str(model), "name": name}) as run:
        found = as_model(model)
        if prompt is not None:
            run.registry.prompt(prompt)
        return put_into_service(found, training_data(run, found, data), name=name, prompt=prompt, serving=config)


def roll_out(model: What, *, policy: RolloutPolicy | None = None, config: ServeConfig | None = None) -> RolloutResult:
    """Bring a model into service step by step beside the one that serves now; it goes back if it does worse.

    Args:
        config: how it is served; by default as the one that serves now.

    Raises:
        InputError: nothing is served yet.
    """
    with open_run("rollout", config={"model": str(model)}):
        return rolling_out(policy or RolloutPolicy(), config)(as_model(model))


def rolling_out(
    policy: RolloutPolicy | Sequence[float], config: ServeConfig | None = None
) -> Callable[[Artifact], RolloutResult]:
    """How a model is brought into service: a function for `llmray.flow.promote`."""
    from llmray import deployment

    steps = policy if isinstance(policy, RolloutPolicy) else RolloutPolicy(steps=tuple(policy))

    def bring(model: Artifact) -> RolloutResult:
        options = {} if config is None else config.engine_options()
        return deployment.rollout(model.uri, model.digest, policy=steps, **options)

    return bring


def shadow(model: What | None, *, share: float = 100.0, config: ServeConfig | None = None) -> None:
    """Copy requests to a model whose answers nobody gets; `llmray shadow MODEL` compares them. None ends it.

    Args:
        share: percent of the requests.
        config: how it is served; by default as the one that serves now.

    Raises:
        InputError: nothing is served yet, or the model serves already.
    """
    from llmray import deployment

    with open_run("shadow", config={"model": str(model), "share": share}):
        if model is None:
            deployment.end_shadow()
            return
        found = as_model(model)
        options = {} if config is None else config.engine_options()
        deployment.shadow(found.uri, found.digest, share=share, **options)
