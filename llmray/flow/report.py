"""One turn of the lifecycle as a page: what went in, what came out, what was decided on which evidence, what it cost.

Plots are matplotlib's, put into the page as SVG, so the file can be mailed. Everything shown is read from the artifacts
and the registry; nothing is computed here that a stage has not found.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmray import html, storage
from llmray.artifact import Artifact
from llmray.flow import summary
from llmray.flow.lifecycle import PRODUCTION, Outcome

_INK, _SOFT, _GREEN, _ORANGE, _BLUE, _RED = "#1c2330", "#5b6575", "#2f7d5b", "#c4642d", "#5567b8", "#b03a48"


def write_report(outcome: Outcome, uri: str) -> None:
    """Write the page to a file, whole or not at all."""
    storage.write_bytes(uri, render(outcome).encode())


def render(outcome: Outcome) -> str:
    """The page."""
    name = outcome.config.name
    sections = [
        f"<h1>The life of {html.text(name)}</h1>",
        f"<p class=soft>{html.text(summary.headline(outcome))}</p>",
        _tiles(outcome),
        "<h2>Where the time went</h2>",
        _timeline(outcome),
        "<h2>Data</h2>",
        _data(outcome.data),
        "<h2>Learning</h2>",
        _curves(outcome),
        "<h2>Tuning</h2>",
        _tuning(outcome),
        "<h2>Evaluation and gate</h2>",
        _gate("The fine-tuned model", outcome.verdict.promoted, outcome.verdict.evidence, outcome.verdict.reasons),
        _gate(
            "The aligned model",
            outcome.aligned_verdict.promoted,
            outcome.aligned_verdict.evidence,
            outcome.aligned_verdict.reasons,
        ),
        "<h2>Traffic and drift</h2>",
        _traffic(outcome.traffic),
        "<h2>Feedback</h2>",
        _feedback(outcome),
        "<h2>Rollout</h2>",
        f"<p>{html.text(summary.rollout(outcome.rollout))}</p>",
        _rollout(outcome.rollout),
        "<h2>Lineage</h2>",
        _lineage(outcome),
    ]
    return html.page(f"llmray: {name}", sections)


def _tiles(outcome: Outcome) -> str:
    rows, traffic = outcome.data.report["rows"], outcome.traffic.report
    alarm = traffic["alarm"]
    failed = traffic["failed"] + (outcome.rollout or {}).get("failed", 0)
    requests = traffic["requests"] + (outcome.rollout or {}).get("requests", 0)
    return html.tiles(
        [
            ("time", summary.duration(outcome.seconds), summary.spent(outcome)),
            ("rows kept", f"{rows['kept']:,}", f"of {rows['in']:,}"),
            ("requests", f"{requests:,}", f"{failed} failed"),
            ("drift alarm", "none" if alarm is None else f"after {alarm['after_unusual']}", "unusual questions"),
            (
                "in production",
                outcome.in_production[:12],
                f"{outcome.config.name}@{PRODUCTION}",
            ),
        ]
    )


def _timeline(outcome: Outcome) -> str:
    steps = [step for step in outcome.steps if step.status == "done" and step.seconds]
    if not steps:
        return "<p>Nothing had changed: every step was taken from the cache.</p>" + _steps(outcome)
    figure, axes = _figure(0.32 * len(steps) + 0.7)
    begun = min(step.started_at for step in steps)
    for line, step in enumerate(steps):
        start = (step.started_at - begun).total_seconds()
        axes.barh(line, step.seconds, left=start, color=_GREEN, height=0.62)
        axes.text(start + (step.seconds or 0), line, f"  {step.seconds:.1f} s", va="center", fontsize=8, color=_SOFT)
    axes.set_yticks(range(len(steps)), [step.step for step in steps])
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("seconds since the first step")
    return _svg(figure) + _steps(outcome)


def _steps(outcome: Outcome) -> str:
    rows = [[step.step, step.status, round(step.seconds or 0.0, 1), step.key[:12]] for step in outcome.steps]
    return f"<details><summary class=soft>every step</summary>{html.table(['step', 'status', 'seconds', 'key'], rows)}</details>"


def _data(data: Artifact) -> str:
    rows = data.report["rows"]
    table = html.table(["rows", "count"], [[name, rows[name]] for name in ("in", "kept", "removed", "quarantined")])
    return (
        f"{table}<p class=soft>What went, why, and examples of each: <code>{html.text(data.uri)}/report.html</code></p>"
    )


def _curves(outcome: Outcome) -> str:
    runs = [("pre-training", outcome.base), ("fine-tuning", outcome.candidate), ("alignment", outcome.aligned)]
    shown = [(title, lines) for title, made in runs if (lines := _metrics(made))]
    if not shown:
        return "<p>No metrics were kept with these models.</p>"
    figure, axes = _figure(2.6, columns=len(shown))
    for place, (title, lines) in zip(axes if len(shown) > 1 else [axes], shown, strict=True):
        place.plot([line["step"] for line in lines], [line["loss"] for line in lines], color=_BLUE, linewidth=1.2)
        margins = [(line["step"], line["rewards/margins"]) for line in lines if "rewards/margins" in line]
        if margins:
            other = place.twinx()
            other.plot(*zip(*margins, strict=True), color=_ORANGE, linewidth=1.2)
            other.set_ylabel("reward margin", color=_ORANGE)
        place.set_title(title, fontsize=10)
        place.set_xlabel("optimizer step")
        place.set_ylabel("loss", color=_BLUE)
    return _svg(figure)


def _tuning(outcome: Outcome) -> str:
    trials = outcome.tuned.trials
    names = sorted({name for trial in trials for name in trial["config"]})
    rows = [
        [
            trial["index"],
            trial["status"],
            *(trial["config"].get(name) for name in names),
            trial["metric"],
            trial["core_seconds"],
        ]
        for trial in trials
    ]
    table = html.table(["trial", "status", *names, outcome.config.tune.metric, "core-seconds"], rows)
    limits = outcome.config.budget.limits()
    spent = "; ".join(
        f"{outcome.tuned.spent[name]:,.0f} of {limit:,.0f} {name} spent" for name, limit in limits.items()
    )
    return f"<p>{html.text(spent)}.</p>{table}"


def _gate(title: str, promoted: bool, evidence: Mapping[str, Any], reasons: Sequence[str]) -> str:
    tasks = sorted(evidence["tasks"].items())
    head = f"<h3>{html.text(title)}: {'promoted' if promoted else 'held'}</h3>"
    why = "".join(f"<p>{html.text(reason)}</p>" for reason in reasons)
    if not tasks:
        return head + why
    figure, axes = _figure(0.42 * len(tasks) + 0.8)
    for line, (_, one) in enumerate(tasks):
        colour = _GREEN if one["low"] > -one["margin"] else _RED
        axes.plot([one["low"], one["high"]], [line, line], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot(one["improvement"], line, "o", color=colour, markersize=6)
        axes.plot([-one["margin"]] * 2, [line - 0.3, line + 0.3], color=_RED, linewidth=1.5)
    axes.axvline(0, color=_SOFT, linewidth=0.8)
    axes.set_yticks(range(len(tasks)), [f"{task} ({one['metric']})" for task, one in tasks])
    axes.invert_yaxis()
    axes.margins(y=0.3)
    axes.set_xlabel("improvement over the baseline, with its interval; red marks: the margin")
    rows = [
        [
            task,
            one["candidate"],
            one["baseline"],
            one["improvement"],
            f"[{one['low']:+.4f}, {one['high']:+.4f}]",
            one["p_not_worse"],
            one["p_better_adjusted"],
            one["n"],
            one["mde"],
        ]
        for task, one in tasks
    ]
    columns = ("candidate", "baseline", "improvement", "interval", "p worse", "p no better", "n", "visible from")
    return head + why + _svg(figure) + html.table(["task", *columns], rows)


def _traffic(traffic: Artifact) -> str:
    kept = json.loads((traffic.local() / "monitor.json").read_text())
    curve, threshold = kept["curve"], traffic.config["serve"]["average_run_length"]
    figure, axes = _figure(2.4)
    axes.plot([n for n, _ in curve], [max(value, 1e-3) for _, value in curve], color=_BLUE, linewidth=1.4)
    axes.axhline(threshold, color=_RED, linewidth=1)
    axes.axvspan(kept["usual"], curve[-1][0], color=_ORANGE, alpha=0.15)
    axes.set_yscale("log")
    axes.set_xlabel("answers; shaded: unusual questions")
    axes.set_ylabel("monitor's statistic")
    report = traffic.report
    told = (
        f"{report['requests']:,} requests, {report['failed']} failed; half of them took less than "
        f"{report['seconds_p50'] * 1000:.0f} ms, 95% less than {report['seconds_p95'] * 1000:.0f} ms. "
        f"Monitor: {summary.monitor(report)}; usual traffic reaches the red line once in {threshold:,.0f} requests or more."
    )
    return f"<p>{html.text(told)}</p>{_svg(figure)}"


def _feedback(outcome: Outcome) -> str:
    report = outcome.traffic.report
    counts = html.table(["kind", "count"], list(report["feedback"].items()))
    replies = [json.loads(line) for line in (outcome.traffic.local() / "replies.jsonl").read_text().splitlines()]
    first = [reply for reply in replies if not reply["error"]][:4]
    examples = "".join(
        f"<p class=soft>{html.text(reply['question']['text'])} <code>{reply['output_id'][:12]}</code></p>"
        f"<div class=pair><pre>{html.text(reply['text'])}</pre><pre>{html.text(reply['question']['answer'][:400])}</pre></div>"
        for reply in first
    )
    rule = "<p class=soft>Given by a simulated annotator. Left: what the model said; right: what the data says.</p>"
    return counts + rule + examples


def _rollout(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    return html.table(
        ["weight %", "requests of the new model", "errors"],
        [[one["weight"], one["requests"], one["errors"]] for one in result["steps"]],
    )


def _lineage(outcome: Outcome) -> str:
    made = [
        ("data", outcome.data),
        ("base model", outcome.base),
        ("fine-tuned model", outcome.candidate),
        ("its evaluation", outcome.evaluation),
        ("traffic", outcome.traffic),
        ("data with preferences", outcome.feedback),
        ("aligned model", outcome.aligned),
        ("its evaluation", outcome.aligned_evaluation),
    ]
    rows = [
        [role, one.digest[:12], ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(one.parents.items()))]
        for role, one in made
    ]
    return html.table(["what", "digest", "made from"], rows)


def _metrics(made: Artifact) -> list[dict[str, Any]]:
    path = made.local() / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _figure(height: float, *, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for place in axes if columns > 1 else [axes]:
        place.spines[["top", "right"]].set_visible(False)
        place.tick_params(labelsize=8, colors=_INK)
        place.xaxis.label.set_size(9)
        place.yaxis.label.set_size(9)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as an element; without a date, so that the same figures give the same bytes."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmray"}):
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return out.getvalue()[out.getvalue().index("<svg") :]
