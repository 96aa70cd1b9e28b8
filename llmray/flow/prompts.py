"""Prompts for programs: make versions, point labels at them, take them back.

    lr.put_prompt("ask-docs", "What does {symbol} do?", message="shorter")
    lr.label_prompt("ask-docs@production", {3: 90, 4: 10})

Each call is a short transaction on the registry of the home, and each change of a label one event in its log. Running
gateways follow within two seconds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llmray.errors import InputError
from llmray.flow.run import acting
from llmray.reference import parse_reference
from llmray.registry.records import PromptRecord
from llmray.registry.registry import Registry
from llmray.serve.ports import LabelChange, PromptDraft, PromptLabel, PromptVersion


def prompt(reference: str) -> PromptRecord:
    """The version that `name@label`, `name:version` or a digest names; of a split label, the heaviest.

    Raises:
        NotFoundError: nothing goes by it; the message says what exists.
    """
    with Registry.open() as registry:
        return registry.prompt(reference)


def put_prompt(
    name: str,
    messages: str | Sequence[Mapping[str, str]],
    *,
    settings: Mapping[str, Any] | None = None,
    message: str = "",
) -> PromptVersion:
    """Make the next version of a prompt, unless one says just that already; `name@latest` moves to it.

    Args:
        messages: role and content each, with `{variable}` placeholders; a text alone is a user's message.
        settings: sampling defaults, such as `{"temperature": 0.0}`.
        message: why this version is made.

    Raises:
        InputError: a name, role, placeholder or setting that is impossible.
    """
    from llmray.prompt_store import put_prompt as put

    parts = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    draft = PromptDraft(name=name, messages=parts, settings=settings or {}, message=message, author=acting())
    with Registry.open() as registry:
        return put(registry, draft)


def label_prompt(
    label: str,
    version: int | str | Mapping[int | str, float],
    *,
    reason: str = "",
    evidence: Mapping[str, Any] | str | None = None,
) -> PromptLabel:
    """Let `name@label` name a version from now on, or several with weights.

    Args:
        version: its number or a reference to it; or such, each with its share of the traffic.
        evidence: for a protected label: a gate's verdict, whose `decision` is `promote`, or the id of a recorded one.

    Raises:
        GateRefusedError: the label is protected, and the evidence does not say to promote.
        NotFoundError: there is no such prompt or version.
    """
    versions = {str(one): weight for one, weight in version.items()} if isinstance(version, Mapping) else None
    return _there(_change("move", label, reason, versions or {str(version): 1.0}, evidence))


def rollback_label(label: str, *, reason: str = "") -> PromptLabel:
    """Let `name@label` name again what it named before; needs no evidence.

    Raises:
        NotFoundError: there is nothing to go back to.
    """
    return _there(_change("rollback", label, reason))


def delete_label(label: str, *, reason: str = "") -> None:
    """Let `name@label` name nothing; its history stays.

    Raises:
        NotFoundError: there is no such label.
        GateRefusedError: it is protected.
    """
    _change("delete", label, reason)


def protect_label(label: str, on: bool = True, *, reason: str = "") -> None:
    """Have `name@label` move only with a gate's evidence from now on, or (`on` false) with any move again.

    Raises:
        NotFoundError: there is no such prompt.
    """
    _change("protect" if on else "unprotect", label, reason)


def record_verdict(reference: str, verdict: Mapping[str, Any]) -> str:
    """Keep a gate's verdict on a version; the id is the evidence with which clients move a protected label to it.

    Args:
        verdict: its `decision` is `promote` or `hold`; the rest is kept with it.

    Raises:
        InputError: it has no such decision.
        NotFoundError: there is no such version.
    """
    with Registry.open() as registry:
        return registry.record_verdict(reference, verdict)


def _change(
    kind: Literal["move", "rollback", "delete", "protect", "unprotect"],
    label: str,
    reason: str,
    versions: Mapping[str, float] | None = None,
    evidence: Mapping[str, Any] | str | None = None,
) -> PromptLabel | None:
    from llmray.prompt_store import change_label

    reference = parse_reference(label)
    if reference.name is None or reference.alias is None:
        raise InputError(f"{label!r} is no label: write name@label, such as ask-docs@production")
    change = LabelChange(
        type=kind,
        name=reference.name,
        label=reference.alias,
        versions=versions or {},
        actor=acting(),
        reason=reason,
        evidence=evidence,
    )
    with Registry.open() as registry:
        return change_label(registry, change)


def _there(label: PromptLabel | None) -> PromptLabel:
    assert label is not None
    return label
