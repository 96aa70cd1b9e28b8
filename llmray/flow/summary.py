"""What one turn of the lifecycle came to, in a terminal's worth of text."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmray import console
from llmray.flow.lifecycle import PRODUCTION, Outcome
from llmray.prices import price_list
from llmray.prices import text as money_text


def text(outcome: Outcome) -> str:
    """Costs, results in the order of the stages, and the three next commands."""
    name = outcome.config.name
    parts = [
        f"\n{headline(outcome)}\n",
        costs(outcome),
        "",
        *(f"{stage:<11} {line}" for stage, line in findings(outcome)),
        "",
        f"report: {outcome.config.output}",
        "",
        "next:",
        f"  {_program('python')} jobs/deploy.py --model {name}@{PRODUCTION} --name {name} --prompt ask-{name}@{PRODUCTION}",
        f"  {_program('llmray')} lineage {name}@{PRODUCTION}",
        f"  {_program('python')} jobs/lifecycle.py --name mine --sources 'my/data/*.jsonl.gz'",
    ]
    return "\n".join(parts)


def headline(outcome: Outcome) -> str:
    """One line: what, how long, how much."""
    cached = sum(step.status == "cached" for step in outcome.steps)
    return (
        f"{outcome.config.name}: once round in {duration(outcome.seconds)}, {spent(outcome)}, "
        f"{len(outcome.steps) - cached} steps run, {cached} taken from the cache (run {outcome.run_id})"
    )


def spent(outcome: Outcome) -> str:
    """What it all cost: core-seconds, and money where there is a price list."""
    cores, money = (sum(getattr(one, unit) for one in outcome.spend) for unit in ("core_seconds", "money"))
    priced = {"money": money, "currency": currency} if (currency := price_list().currency) else {}
    return ", ".join(filter(None, [f"{cores:,.0f} core-seconds", money_text(priced)]))


def costs(outcome: Outcome) -> str:
    """A line a step: how often it ran and was taken from the cache, seconds, core-seconds, money if there are prices."""
    currency = price_list().currency
    units = {"core_seconds": "core-s", **({"money": currency} if currency else {})}
    rows: list[list[object]] = []
    for name in dict.fromkeys(step.step for step in outcome.steps):
        these = [step for step in outcome.steps if step.step == name]
        ran = [step for step in these if step.status == "done"]
        seconds = round(sum(step.seconds or 0.0 for step in ran), 1)
        used = [sum(getattr(one, unit) for one in outcome.spend if one.step == name) for unit in units]
        rows.append([name, len(ran), len(these) - len(ran), seconds, round(used[0]), *used[1:]])
    return console.table(["step", "ran", "cached", "seconds", *units.values()], rows)


def findings(outcome: Outcome) -> list[tuple[str, str]]:
    """What each stage found, one line each."""
    rows, traffic = outcome.data.report["rows"], outcome.traffic.report
    tuned = ", ".join(f"{key} {_figure(value)}" for key, value in outcome.tuned.config.items())
    stopped = sum(trial["status"] == "stopped" for trial in outcome.tuned.trials)
    limits = outcome.config.budget.limits()
    spent = ", ".join(f"{outcome.tuned.spent[key]:,.0f} of {limit:,.0f} {key}" for key, limit in limits.items())
    return [
        (
            "data",
            f"{rows['in']:,} rows in, {rows['kept']:,} kept, {rows['removed']:,} removed, {rows['quarantined']:,} quarantined",
        ),
        ("tune", f"{len(outcome.tuned.trials)} trials, {stopped} stopped early: {tuned} ({spent})"),
        (
            "train",
            f"held-out loss {outcome.candidate.report['heldout_loss']:.3f} after {outcome.candidate.report['steps']} steps",
        ),
        ("evaluate", _scores(outcome.evaluation.report)),
        ("gate", verdict(outcome.verdict.promoted, outcome.verdict.evidence, outcome.verdict.reasons)),
        (
            "serve",
            f"{traffic['requests']:,} requests, {traffic['failed']} failed, median {traffic['seconds_p50'] * 1000:.0f} ms",
        ),
        ("monitor", monitor(traffic)),
        (
            "feedback",
            ", ".join(f"{count} {kind}s" for kind, count in traffic["feedback"].items()) + ", by a simulated annotator",
        ),
        (
            "align",
            f"{outcome.aligned.report['pairs']} pairs, reward accuracy {outcome.aligned.report['reward_accuracy']:.0%}; {_scores(outcome.aligned_evaluation.report)}",
        ),
        (
            "gate",
            verdict(
                outcome.aligned_verdict.promoted, outcome.aligned_verdict.evidence, outcome.aligned_verdict.reasons
            ),
        ),
        ("rollout", rollout(outcome.rollout)),
    ]


def verdict(promoted: bool, evidence: Mapping[str, Any], reasons: tuple[str, ...]) -> str:
    """What the gate said, with the improvement over the baseline on each task and its interval."""
    tasks = ", ".join(
        f"{task} {one['improvement']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
        for task, one in sorted(evidence["tasks"].items())
    )
    return f"promoted: {tasks}" if promoted else f"held: {'; '.join(reasons)}"


def monitor(traffic: Mapping[str, Any]) -> str:
    """Whether the monitor was quiet when it should, and spoke up when it should."""
    quiet = "quiet on the usual questions" if traffic["quiet_on_usual"] else "FALSE ALARM on the usual questions"
    alarm = traffic["alarm"]
    told = "no alarm on the unusual ones" if alarm is None else f"alarm after {alarm['after_unusual']} unusual ones"
    return f"{quiet}, {told}"


def rollout(result: Mapping[str, Any] | None) -> str:
    """How the aligned model took over, or why not."""
    if result is None:
        return "none: the gate held the aligned model"
    weights = " → ".join(f"{one['weight']:g}%" for one in result["steps"])
    return f"{result['status']} ({weights}), {result['requests']} requests, {result['failed']} failed"


def duration(seconds: float) -> str:
    """`7 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _scores(report: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{task} {one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for task, one in sorted(report.items())
    )


def _figure(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _program(name: str) -> str:
    """How to call a program of this environment from here: by a relative path unless it is on the PATH."""
    here = Path(sys.executable).parent
    if str(here) in os.environ.get("PATH", "").split(os.pathsep):
        return name
    folder = os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)
    return f"{folder}/{name}"
