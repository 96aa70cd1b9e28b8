"""The `llmray` command: look at the registry, compare, explain, promote, roll back.

Every command makes one answer, a value with a text for people: `--json` prints the value. Errors are one line on
standard error, and the exit code is the error's. Starts in a fraction of a second, since it loads neither Ray nor
torch; only `promote`, which may have to evaluate, brings them in. Rejected: click or typer, for a dozen commands of one
or two arguments.
"""

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from llmray import console
from llmray.errors import ConfigError, InputError, LLMRayError, NotFoundError
from llmray.flow.run import acting, mark_lost
from llmray.integrations import kuberay
from llmray.prices import price_list
from llmray.reference import parse_reference
from llmray.registry.differences import differing_fields, differing_rows, differing_text, why_again
from llmray.registry.pedigree import name_of, pedigree
from llmray.registry.records import AliasEvent, AliasRecord, ArtifactRecord, PromptRecord
from llmray.registry.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    value: Any
    """For machines: anything made of dataclasses, mappings and sequences."""
    text: str
    """For people."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows what it can
    try:
        arguments = _parser().parse_args(argv)
        with Registry.open() as registry:
            answer: Answer = arguments.command(registry, arguments)
        print(json.dumps(answer.value, default=_plain, indent=2) if arguments.json else answer.text, flush=True)
    except LLMRayError as error:
        print(f"llmray: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as done:  # --help
        return int(done.code or 0)
    return 0


def runs(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """The newest runs, or the steps of one."""
    mark_lost(registry)
    if arguments.run is not None:
        run, steps = registry.run(arguments.run), registry.steps(arguments.run)
        lines = [[step.step, step.status, _seconds(step.seconds), step.key[:12]] for step in steps]
        head = f"{run.name} {run.run_id}: {run.status}{f' ({run.error})' if run.error else ''}"
        return Answer(value={"run": run, "steps": steps}, text=f"{head}\n{_table('step status took key', lines)}")
    found = registry.runs(limit=arguments.limit, project=arguments.project)
    rows = [
        [run.run_id, run.name, run.status, run.actor, _time(run.started_at), _took(run.started_at, run.finished_at)]
        for run in found
    ]
    return Answer(value=found, text=_table("run name status actor started took", rows, "no runs yet"))


def lineage(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """What something was made from, and what was made from it."""
    family = pedigree(registry, arguments.reference)
    return Answer(value=family.as_json(), text="\n".join(family.lines()))


def diff(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """What changed from one version to another."""
    before, after = (
        _artifact_or_prompt(registry, reference, arguments.kind) for reference in (arguments.before, arguments.after)
    )
    if isinstance(before, PromptRecord) and isinstance(after, PromptRecord):
        lines = differing_text(before, after)
        return Answer(value={"diff": lines}, text="\n".join(lines) or "the same text")
    if isinstance(before, PromptRecord) or isinstance(after, PromptRecord) or before.kind != after.kind:
        kinds = [getattr(one, "kind", "prompt") for one in (before, after)]
        raise InputError(
            f"{arguments.before} is a {kinds[0]} and {arguments.after} a {kinds[1]}: compare two of a kind"
        )
    changes = differing_fields(before.manifest, after.manifest)
    head = f"{name_of(registry, before.digest)} → {name_of(registry, after.digest)}"
    rows = [[change.field, _short(change.before), _short(change.after)] for change in changes]
    fields = _table("field before after", rows, "the same parents, config and report")
    if before.kind != "dataset":
        return Answer(value={"fields": changes}, text=f"{head}\n{fields}")
    found = differing_rows(before.uri, after.uri, examples=arguments.examples)
    lines = [head, f"rows: {found.kept:,} kept, {found.added:,} added, {found.removed:,} removed"]
    lines += [f"  + {example.id[:12]} {_short(example.text)}" for example in found.added_examples]
    lines += [f"  - {example.id[:12]} {_short(example.text)}" for example in found.removed_examples]
    return Answer(value={"rows": found, "fields": changes}, text="\n".join([*lines, fields]))


def cache_explain(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Why a step ran again, field by field."""
    steps = registry.last_steps(arguments.step)
    if not steps:
        known = ", ".join(registry.step_names()) or "none has run yet"
        raise NotFoundError(f"no step {arguments.step!r} has run; steps that have: {known}")
    newer, older = steps[0], steps[1] if len(steps) > 1 else None
    changes = differing_fields(older.fields, newer.fields) if older else []
    reason = why_again(newer, older)
    lines = [f"{newer.step} in run {newer.run_id}, {_time(newer.started_at)}, {newer.status}: {reason}"]
    if older is not None:
        lines.append(f"compared with run {older.run_id}, {_time(older.started_at)}, {older.status}")
        rows = [[change.field, _short(change.before), _short(change.after)] for change in changes]
        lines.append(_table("field before after", rows, f"all {len(newer.fields)} fields are the same"))
    value = {"reason": reason, "changes": changes, "newer": newer, "older": older}
    return Answer(value=value, text="\n".join(lines))


def promote(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Move an alias to a model, if the gate allows it."""
    evidence = arguments.evidence
    if "/" not in evidence:
        evidence = registry.resolve(evidence, "evaluation").digest
    registry.resolve(arguments.reference, "model")  # a wrong name should not have to wait for Ray

    from llmray.flow.promote import promote as through_the_gate

    roll_out = None
    if arguments.canary is not None:
        from llmray.flow.serving import rolling_out

        roll_out = rolling_out(arguments.canary)
    console.setup()
    verdict = through_the_gate(
        registry,
        arguments.reference,
        to=arguments.to,
        evidence=evidence,
        actor=_actor(),
        roll_out=roll_out,
    )
    text = f"{arguments.reference} passed the gate and is {arguments.to} now"
    return Answer(value=verdict, text=text)


def shadow(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """What a shadow answered beside what people got."""
    from llmray.flow.shadow import compare

    digest = registry.resolve(arguments.reference, "model").digest
    found = compare(registry, digest, limit=arguments.limit)
    return Answer(value=found, text=_table("figure people shadow", found.rows()))


def rollback(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Let an alias name again what it named before."""
    reference = parse_reference(arguments.reference)
    if reference.name is None or reference.alias is None:
        raise InputError(f"{arguments.reference!r} is no alias: write name@alias, such as chat@production")
    kinds = [one.kind for one in registry.aliases(reference.name, arguments.kind) if one.alias == reference.alias]
    if len(kinds) > 1:
        raise InputError(f"{reference} is a {' and a '.join(kinds)}: add --kind")
    if not kinds:
        raise NotFoundError(f"there is no alias {reference}: see llmray aliases {reference.name}")
    event = registry.rollback(reference.name, reference.alias, kind=kinds[0], actor=_actor(), reason=arguments.reason)
    was = name_of(registry, event.previous or "")
    return Answer(value=event, text=f"{reference} is {name_of(registry, event.digest)} again; it was {was}")


def spend(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """What runs have cost, step by step; money by the price list of the home."""
    money = price_list().currency or "money"
    found = registry.spend(arguments.project)
    rows: list[list[object]] = [
        [one.run_id, one.run, one.step, one.core_seconds, one.gpu_seconds, one.money] for one in found
    ]
    if rows:
        total = [sum(getattr(one, unit) for one in found) for unit in ("core_seconds", "gpu_seconds", "money")]
        rows.append(["", "", "total", *total])
    return Answer(value=found, text=_table(f"run name step core_s gpu_s {money}", rows, "nothing spent yet"))


def alarms(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Drift alarms, newest first."""
    found = registry.events("drift.alarm", limit=arguments.limit)
    rows = [[_time(one.at), name_of(registry, one.subject), _short(one.payload)] for one in found]
    return Answer(value=found, text=_table("at model alarm", rows, "no alarm"))


def feedback(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """What people, or simulated annotators, said of outputs."""
    found = registry.feedback(output_id=arguments.output, source=arguments.source)[-arguments.limit :]
    rows = [[_time(one.at), one.output_id, one.kind, _short(one.value), one.source, one.rule] for one in found]
    return Answer(value=found, text=_table("at output kind value source rule", rows, "no feedback"))


def outputs(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """One answer with all that made it, or the newest ones."""
    if arguments.id is None:
        found = registry.outputs(arguments.limit)
        rows = [
            [one.id, _time(one.at), one.model_digest[:12], one.variant, one.prompt_reference, _short(one.completion)]
            for one in found
        ]
        return Answer(value=found, text=_table("output at model variant prompt completion", rows, "no outputs yet"))
    output = registry.output(arguments.id)
    if output is None:
        raise NotFoundError(f"there is no output {arguments.id}: see llmray outputs")
    said = registry.feedback(output_id=output.id)
    names = {"model_digest": name_of(registry, output.model_digest)}
    if output.prompt_digest is not None:
        names["prompt_digest"] = name_of(registry, output.prompt_digest)
    rows = [
        [field.name, names.get(field.name) or _short(getattr(output, field.name), 200)]
        for field in dataclasses.fields(output)
    ]
    if output.request_id is not None:
        beside = [one.id for one in registry.outputs(128, request_id=output.request_id) if one.id != output.id]
        rows += [["same request", one] for one in sorted(beside)]
    rows += [["feedback", f"{one.kind} {_short(one.value)} from {one.source}"] for one in said]
    return Answer(value={"output": output, "feedback": said}, text=_table("field value", rows))


def aliases(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """What a name's aliases point at, and every move they made."""
    found = registry.aliases(arguments.name)
    if not found:
        known = ", ".join(sorted({one.name for one in registry.aliases()})) or "none yet"
        raise NotFoundError(f"{arguments.name} has no alias; names that have: {known}")
    events = [event for one in found for event in registry.alias_events(one.name, one.alias, one.kind)]
    now = [[f"{one.name}@{one.alias}", _named(registry, one), _time(one.updated_at)] for one in found]
    moves = [
        [
            _time(one.at),
            f"{one.kind} {one.name}@{one.alias}",
            one.type,
            _named(registry, one),
            one.actor,
            one.reason,
        ]
        for one in sorted(events, key=lambda event: event.seq)
    ]
    text = f"{_table('alias names since', now)}\n\n{_table('at alias event names actor reason', moves)}"
    return Answer(value={"aliases": found, "events": events}, text=text)


def render_kuberay(_: Registry, arguments: argparse.Namespace) -> Answer:
    """A Serve file as a KubeRay RayService."""
    import yaml

    manifest = kuberay.render(arguments)
    return Answer(value=manifest, text=yaml.safe_dump(manifest, sort_keys=False).rstrip())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    from llmray import cli_keys, cli_prompts  # which need this module

    parser = _Parser(prog="llmray", description="Look at what llmray has made, promote it, and roll it back.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the answer as JSON")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[..., Answer], within: Any = commands) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = within.add_parser(
            name, parents=[common], help=(command.__doc__ or "").splitlines()[0], description=command.__doc__
        )
        made.set_defaults(command=command)
        return made

    add("runs", runs).add_argument("run", nargs="?", help="id of a run, to see its steps")
    add("lineage", lineage).add_argument("reference", help="name@alias, name:version, a digest, or an output id")
    compare = add("diff", diff)
    compare.add_argument("before", help="name@alias, name:version or a digest")
    compare.add_argument("after")
    compare.add_argument("--kind", help="where several kinds share the name: model, dataset, prompt")
    compare.add_argument("--examples", type=_count, default=3, help="rows to show on each side")
    cache = commands.add_parser("cache", help="Ask about the cache of steps.").add_subparsers(
        required=True, metavar="COMMAND"
    )
    add("explain", cache_explain, cache).add_argument("step", help="name of a step")
    gate = add("promote", promote)
    gate.add_argument("reference", help="the model: name@alias, name:version or a digest")
    gate.add_argument("--to", default="production", help="the alias that moves")
    gate.add_argument("--evidence", required=True, help="the model's evaluation: a reference or a URI")
    gate.add_argument("--canary", type=_percents, help="roll out on the running service first: 5,25,100")
    beside = add("shadow", shadow)
    beside.add_argument("reference", help="the shadow's model: name@alias, name:version or a digest")
    beside.add_argument("--limit", type=_count, default=1000, help="newest pairs to compare")
    back = add("rollback", rollback)
    back.add_argument("reference", help="name@alias")
    back.add_argument("--kind", help="where several kinds share the name: model, dataset, prompt")
    back.add_argument("--reason", default="rolled back by hand", help="kept with the event")
    add("spend", spend)
    add("alarms", alarms)
    said = add("feedback", feedback)
    said.add_argument("--output", help="only on this output")
    said.add_argument("--source", help="only from this source")
    prompts = commands.add_parser("prompts", help="Versions of prompts, and labels that point at them.")
    cli_prompts.add_commands(add, prompts.add_subparsers(required=True, metavar="COMMAND"))
    add("outputs", outputs).add_argument("id", nargs="?")
    add("aliases", aliases).add_argument("name")
    keys = commands.add_parser("keys", help="API keys of the gateway, and quotas of projects.")
    cli_keys.add_commands(add, keys.add_subparsers(required=True, metavar="COMMAND"))
    rendering = commands.add_parser("render", help="Write a Serve file for another system.").add_subparsers(
        required=True, metavar="SYSTEM"
    )
    kuberay.add_options(add("kuberay", render_kuberay, rendering))
    for name in ("runs", "alarms", "feedback", "outputs"):
        commands.choices[name].add_argument("--limit", type=_count, default=20, help="how many at most")
    for name in ("runs", "spend"):
        commands.choices[name].add_argument("--project", help="only this project")
    return parser


def _artifact_or_prompt(registry: Registry, reference: str, kind: str | None) -> ArtifactRecord | PromptRecord:
    if kind == "prompt":
        return registry.prompt(reference)
    try:
        return registry.resolve(reference, kind)
    except NotFoundError as missing:
        try:
            return registry.prompt(reference)
        except NotFoundError:
            raise missing from None


def _named(registry: Registry, one: AliasRecord | AliasEvent) -> str:
    if not one.weights:
        return name_of(registry, one.digest)
    return ", ".join(f"{name_of(registry, digest)} by {weight:g}" for digest, weight in one.weights.items())


def _actor() -> str:
    return acting()


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def _percents(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be percents, such as 5,25,100") from None


def _table(headers: str, rows: Sequence[Sequence[object]], nothing: str = "nothing") -> str:
    return console.table(headers.split(), rows) if rows else nothing


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%SZ}"


def _took(start: datetime, end: datetime | None) -> str:
    return "" if end is None else _seconds((end - start).total_seconds())


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.1f} s"


def _short(value: object, length: int = 60) -> str:
    if isinstance(value, str):
        text = " ".join(value.split())
    else:
        text = "—" if value is None else json.dumps(value, default=_plain, ensure_ascii=False)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    match value:
        case datetime():
            return value.isoformat()
        case Mapping():
            return dict(value)
        case frozenset() | set():
            return sorted(value)
    return list(value)


if __name__ == "__main__":
    sys.exit(main())
