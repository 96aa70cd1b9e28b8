"""`llmray prompts`: versions of prompts, and labels that point at them.

A version is named as everywhere: `ask-docs:3`, `ask-docs@production`, or by its digest; where the prompt is known, its
number is enough. Each change of a label is one event, with who did it and why.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from llmray.cli import Answer, _actor, _table, _time
from llmray.errors import InputError, NotFoundError
from llmray.reference import parse_reference
from llmray.registry.differences import differing_text
from llmray.registry.records import AliasEvent
from llmray.registry.registry import Registry


def add_commands(add: Callable[..., argparse.ArgumentParser], within: Any) -> None:
    """Put the commands under `llmray prompts`."""
    add("list", list_prompts, within).add_argument("name", nargs="?", help="only this prompt")
    add("show", show, within).add_argument("reference", help="name@label, name:version or a digest")
    new = add("create", create, within)
    new.add_argument("name")
    new.add_argument("--file", type=Path, help="YAML or JSON: messages, and settings if there are any")
    new.add_argument("--system", help="text of a system message")
    new.add_argument("--user", help="text of a user message, with {variables}")
    new.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="sampling defaults, such as temperature=0"
    )
    new.add_argument("--message", default="", help="why this version is made")
    compare = add("diff", diff, within)
    compare.add_argument("before", help="name@label, name:version or a digest")
    compare.add_argument("after")
    move = add("label", label, within)
    move.add_argument("label", help="name@label")
    move.add_argument("versions", nargs="+", metavar="VERSION[=WEIGHT]", help="3, or 3=90 4=10 to compare two")
    move.add_argument("--evidence", type=Path, help="JSON file with a gate's verdict, for a protected label")
    move.add_argument("--reason", default="moved by hand", help="kept with the event")
    for name, command in (("rollback", rollback), ("delete-label", delete_label), ("protect", protect)):
        changes = add(name, command, within)
        changes.add_argument("label", help="name@label")
        changes.add_argument("--reason", default="by hand", help="kept with the event")
        if command is protect:
            changes.add_argument("--off", action="store_true", help="let it move without evidence again")
    judged = add("verdict", verdict, within)
    judged.add_argument("reference", help="name:version or a digest")
    judged.add_argument("file", type=Path, help="JSON file with the verdict: its decision is promote or hold")
    add("history", history, within).add_argument("label", help="name@label")


def list_prompts(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Versions of prompts, and which labels point at them."""
    found = registry.prompts(arguments.name)
    if arguments.name is not None and not found:
        registry.prompt(f"{arguments.name}@latest")  # says what there is
    labels: dict[tuple[str, str], list[str]] = {}
    for one in registry.aliases(arguments.name, "prompt"):
        shares = one.weights or {one.digest: 1.0}
        for digest, weight in shares.items():
            share = "" if len(shares) == 1 else f" {100 * weight / sum(shares.values()):.3g}%"
            labels.setdefault((one.name, digest), []).append(f"{one.alias}{share}{'*' if one.protected else ''}")
    rows = [
        [one.name, one.version, ", ".join(labels.get((one.name, one.digest), [])), one.digest[:12], one.author, one.message]
        for one in found
    ]  # fmt: skip
    text = _table("prompt version labels digest author message", rows, "no prompts yet")
    if any(label.endswith("*") for names in labels.values() for label in names):
        text += "\n\n* protected: moves only with a gate's evidence"
    return Answer(value=found, text=text)


def show(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """The texts and settings of a version; of a split label, of the heaviest."""
    found = registry.prompt(arguments.reference)
    rows = [
        ["prompt", f"{found.name}:{found.version}"],
        ["digest", found.digest],
        ["variables", ", ".join(found.variables) or "none"],
        ["settings", json.dumps(found.settings)],
        ["made", f"{_time(found.created_at)} by {found.author}: {found.message}"],
    ]
    parts = "".join(f"\n\n[{part['role']}]\n{part['content']}" for part in found.messages)
    return Answer(value=found, text=_table("field value", rows) + parts)


def create(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Make the next version of a prompt, from a file or from texts; `latest` moves to it."""
    from llmray.prompt_store import put_prompt
    from llmray.serve.ports import PromptDraft

    messages, settings = _written(arguments)
    draft = PromptDraft(
        name=arguments.name, messages=messages, settings=settings, message=arguments.message, author=_actor()
    )
    made = put_prompt(registry, draft)
    wants = ", ".join(made.variables) or "nothing"
    return Answer(value=made, text=f"{made.name}:{made.version} {made.digest[:12]}, to be filled with {wants}")


def diff(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """What changed from one version to another."""
    lines = differing_text(registry.prompt(arguments.before), registry.prompt(arguments.after))
    return Answer(value={"diff": lines}, text="\n".join(lines) or "the same text")


def label(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Let a label name a version from now on, or several with weights."""
    versions = dict(_share(version) for version in arguments.versions)
    if len(versions) < len(arguments.versions):
        raise InputError(f"two of {' '.join(arguments.versions)} are the same version: name each once")
    evidence = None if arguments.evidence is None else _read(arguments.evidence)
    return _moved(registry, _change(registry, arguments, "move", versions=versions, evidence=evidence))


def rollback(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Let a label name again what it named before."""
    return _moved(registry, _change(registry, arguments, "rollback"))


def delete_label(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Let a label name nothing; its history stays."""
    return _moved(registry, _change(registry, arguments, "delete"))


def protect(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Have a label move only with a gate's evidence."""
    event = _change(registry, arguments, "unprotect" if arguments.off else "protect")
    how = "moves without evidence again" if arguments.off else "moves only with a gate's evidence"
    return Answer(value=event, text=f"{event.name}@{event.alias} {how}")


def verdict(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Keep a gate's verdict on a version: with its id, clients move a protected label to it."""
    made = registry.record_verdict(arguments.reference, _read(arguments.file))
    return Answer(value={"id": made}, text=made)


def history(registry: Registry, arguments: argparse.Namespace) -> Answer:
    """Every event of a label."""
    name, alias = _name_and_label(arguments.label)
    events = registry.alias_events(name, alias, "prompt")
    if not events:
        raise NotFoundError(f"there is no label {name}@{alias}: see llmray prompts list {name}")
    numbers = _numbers(registry, name)
    rows = [[_time(one.at), one.type, _names(one, numbers), one.actor, one.reason] for one in events]
    return Answer(value=events, text=_table("at event names actor reason", rows))


def _change(
    registry: Registry,
    arguments: argparse.Namespace,
    kind: Literal["move", "rollback", "delete", "protect", "unprotect"],
    **move: Any,
) -> AliasEvent:
    from llmray.prompt_store import write_change
    from llmray.serve.ports import LabelChange

    name, alias = _name_and_label(arguments.label)
    said = {"actor": _actor(), "reason": arguments.reason}
    return write_change(registry, LabelChange(type=kind, name=name, label=alias, **said, **move))


def _moved(registry: Registry, event: AliasEvent) -> Answer:
    numbers = _numbers(registry, event.name)
    was = f"; it was {numbers[event.previous]}" if event.previous else ""
    return Answer(value=event, text=f"{event.name}@{event.alias} names {_names(event, numbers)} now{was}")


def _names(event: AliasEvent, numbers: Mapping[str, str]) -> str:
    if event.weights:
        total = sum(event.weights.values())
        return ", ".join(f"{numbers[one]} {100 * weight / total:.3g}%" for one, weight in event.weights.items())
    return "nothing" if event.digest is None else numbers[event.digest]


def _numbers(registry: Registry, name: str) -> dict[str, str]:
    return {one.digest: f"{name}:{one.version}" for one in registry.prompts(name)}


def _written(arguments: argparse.Namespace) -> tuple[list[Mapping[str, str]], dict[str, Any]]:
    """Messages and settings, from the file or the flags."""
    given = {"system": arguments.system, "user": arguments.user}
    messages: list[Mapping[str, str]] = [
        {"role": role, "content": text} for role, text in given.items() if text is not None
    ]
    settings: dict[str, Any] = {}
    if (arguments.file is None) == (not messages):
        raise InputError("give --file, or the texts by --system and --user")
    if arguments.file is not None:
        content = _read(arguments.file)
        messages, settings = content.get("messages") or [], content.get("settings") or {}
        well = messages and isinstance(messages, list) and all(isinstance(one, Mapping) for one in messages)
        if not well or not isinstance(settings, Mapping) or content.keys() - {"messages", "settings"}:
            raise InputError(f"{arguments.file} must hold messages, a list of role and content, and may hold settings")
    for pair in arguments.set:
        name, is_there, value = pair.partition("=")
        if not is_there:
            raise InputError(f"--set {pair}: write NAME=VALUE, such as temperature=0")
        settings = {**settings, name: yaml.safe_load(value)}
    return messages, settings


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold names and values, in YAML or JSON")
    return content


def _name_and_label(text: str) -> tuple[str, str]:
    reference = parse_reference(text)
    if reference.name is None or reference.alias is None:
        raise InputError(f"{text!r} is no label: write name@label, such as ask-docs@production")
    return reference.name, reference.alias


def _share(text: str) -> tuple[str, float]:
    version, is_there, weight = text.partition("=")
    try:
        return version, float(weight) if is_there else 1.0
    except ValueError:
        raise InputError(f"{text!r}: write VERSION=WEIGHT, such as 3=90") from None
