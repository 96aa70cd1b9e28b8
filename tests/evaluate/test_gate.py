"""The gate lets through what is shown to be good, and only that."""

import json

import numpy as np
import pytest

from llmray.digest import canonical_json
from llmray.errors import ConfigError
from llmray.evaluate.gate import GatePolicy, Hold, Promote, TaskPolicy, decide
from llmray.evaluate.scores import Scores, TaskScores


def task(
    values: np.ndarray, *, metric: str = "nll_per_token", first: int = 0, clusters: list[str] | None = None
) -> TaskScores:
    ids = tuple(f"{first + i:06}" for i in range(len(values)))
    return TaskScores(
        metric=metric,
        ids=ids,
        values=np.asarray(values, dtype=float),
        weights=np.ones(len(values)),
        clusters=tuple(clusters) if clusters else ids,
    )


def scores(model: str = "m", data: str = "d", **tasks: TaskScores) -> Scores:
    return Scores(model=model, data=data, tasks=tasks)


LOSS = GatePolicy(tasks={"heldout": TaskPolicy(direction="lower", margin=0.05)})
NOT_WORSE = GatePolicy(tasks={"heldout": TaskPolicy(direction="lower", margin=0.05)}, superiority="none")


def losses(seed: int, n: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).gamma(4, 0.5, size=n)


def test_a_clearly_better_model_is_promoted_with_its_evidence() -> None:
    base = losses(0)
    noise = np.random.default_rng(1).normal(0.1, 0.2, size=300)
    verdict = decide(scores("new", heldout=task(base - noise)), scores("old", heldout=task(base)), LOSS)
    assert isinstance(verdict, Promote)
    assert json.loads(canonical_json(verdict.evidence))["decision"] == "promote"
    entry = verdict.evidence["tasks"]["heldout"]
    assert entry["low"] > 0
    assert entry["improvement"] == pytest.approx(0.1, abs=0.04)
    assert verdict.evidence["candidate"] == "new"


def test_a_worse_model_is_held_and_the_reason_says_so() -> None:
    base = losses(0)
    verdict = decide(scores(heldout=task(base + 0.2)), scores(heldout=task(base)), NOT_WORSE)
    assert isinstance(verdict, Hold)
    assert "worse than the baseline" in verdict.reasons[0]
    assert verdict.evidence["decision"] == "hold"


def test_the_same_model_is_not_better_than_itself() -> None:
    base = scores(heldout=task(losses(0)))
    verdict = decide(base, base, LOSS)
    assert isinstance(verdict, Hold)
    assert "no task is shown to be better" in verdict.reasons[0]
    assert isinstance(decide(base, base, NOT_WORSE), Promote)


def test_better_on_one_task_does_not_pay_for_worse_on_another() -> None:
    base = losses(0)
    right = np.ones(300)
    wrong_now = right.copy()
    wrong_now[:60] = 0
    policy = GatePolicy(
        tasks={
            "heldout": TaskPolicy(direction="lower", margin=0.05),
            "choice": TaskPolicy(direction="higher", margin=0.05),
        }
    )
    verdict = decide(
        scores(heldout=task(base - 1), choice=task(wrong_now, metric="accuracy")),
        scores(heldout=task(base), choice=task(right, metric="accuracy")),
        policy,
    )
    assert isinstance(verdict, Hold)
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["choice"]


def test_too_little_evidence_is_held_even_where_the_mean_is_better() -> None:
    generator = np.random.default_rng(0)
    base = losses(0, 60)
    verdict = decide(scores(heldout=task(base - generator.normal(0.01, 1, size=60))), scores(heldout=task(base)), LOSS)
    assert isinstance(verdict, Hold)
    assert "not shown to be within" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("candidate", "baseline", "reason"),
    [
        (scores(data="other", heldout=task(losses(0))), scores(heldout=task(losses(0))), "different data"),
        (scores(heldout=task(losses(0), first=5)), scores(heldout=task(losses(0))), "different items"),
        (scores(heldout=task(losses(0, 299))), scores(heldout=task(losses(0))), "different items"),
        (scores(), scores(heldout=task(losses(0))), "candidate was not evaluated"),
        (scores(heldout=task(losses(0))), scores(), "baseline was not evaluated"),
        (scores(heldout=task(losses(0), metric="f1")), scores(heldout=task(losses(0))), "measured as f1"),
        (scores(heldout=task(losses(0, 20))), scores(heldout=task(losses(0, 20))), "20 independent items"),
        (scores(heldout=task(losses(0) * np.inf)), scores(heldout=task(losses(0))), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_held(candidate: Scores, baseline: Scores, reason: str) -> None:
    verdict = decide(candidate, baseline, NOT_WORSE)
    assert isinstance(verdict, Hold)
    assert reason in verdict.reasons[0]


def test_models_that_cut_text_differently_are_not_compared_per_token() -> None:
    base = task(losses(0))
    other = TaskScores(
        metric=base.metric, ids=base.ids, values=base.values, weights=base.weights * 2, clusters=base.clusters
    )
    verdict = decide(scores(heldout=other), scores(heldout=base), NOT_WORSE)
    assert isinstance(verdict, Hold)
    assert "heldout_bytes" in verdict.reasons[0]


def test_items_in_clusters_count_once() -> None:
    clusters = [f"c{i % 10}" for i in range(300)]
    same = scores(heldout=task(losses(0), clusters=clusters))
    verdict = decide(same, same, NOT_WORSE)
    assert isinstance(verdict, Hold)
    assert "10 independent items" in verdict.reasons[0]


def test_accuracy_goes_through_mcnemar_and_tango() -> None:
    base = np.zeros(200)
    better = base.copy()
    better[:12] = 1
    policy = GatePolicy(tasks={"choice": TaskPolicy(direction="higher", margin=0.05)})
    verdict = decide(
        scores(choice=task(better, metric="accuracy")), scores(choice=task(base, metric="accuracy")), policy
    )
    assert isinstance(verdict, Promote)
    assert verdict.evidence["tasks"]["choice"]["p_better"] == pytest.approx(2**-12)


def test_wrong_promotions_stay_within_alpha() -> None:
    """Candidates just as good as the baseline on two tasks are "better on any" at most alpha of the time."""
    generator = np.random.default_rng(11)
    policy = GatePolicy(
        tasks={name: TaskPolicy(direction="lower", margin=0.5) for name in ("a", "b")}, resamples=600, min_n=50
    )
    rounds, promoted = 300, 0
    for _ in range(rounds):
        base = {name: generator.gamma(4, 0.5, size=120) for name in ("a", "b")}
        new = {name: value + generator.normal(0, 0.5, size=120) for name, value in base.items()}
        verdict = decide(
            scores(**{name: task(value) for name, value in new.items()}),
            scores(**{name: task(value) for name, value in base.items()}),
            policy,
        )
        promoted += isinstance(verdict, Promote)
    assert 0 < promoted / rounds < 0.085


def test_wrong_not_worse_stays_within_alpha_at_the_margin() -> None:
    generator = np.random.default_rng(12)
    policy = GatePolicy(
        tasks={"a": TaskPolicy(direction="lower", margin=0.1)}, superiority="none", resamples=600, min_n=50
    )
    rounds, promoted = 400, 0
    for _ in range(rounds):
        base = generator.gamma(4, 0.5, size=120)
        new = base + 0.1 + 0.5 * (generator.exponential(size=120) - 1)
        promoted += isinstance(decide(scores(a=task(new)), scores(a=task(base)), policy), Promote)
    assert 0.02 < promoted / rounds < 0.085


def test_policies_that_would_pass_anything_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        GatePolicy(tasks={})
    with pytest.raises(ConfigError, match="above zero"):
        TaskPolicy(direction="lower", margin=0)
    with pytest.raises(ConfigError, match="alpha"):
        GatePolicy(alpha=0.7)
    with pytest.raises(ConfigError, match="too few"):
        GatePolicy(resamples=100)
