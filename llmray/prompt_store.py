"""The registry's prompts as serving asks for them: `PromptSource` and `PromptStore` over a `Registry`.

Every call is one or two short transactions in a thread. A label goes out with version numbers instead of digests:
that is how people name versions.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from llmray.serve.ports import LabelChange, PromptChoice, PromptDraft, PromptLabel, PromptTemplate, PromptVersion
from llmray.serve.prompts import check_draft

if TYPE_CHECKING:
    from llmray.registry.records import AliasEvent
    from llmray.registry.registry import Registry


class RegistryPrompts:
    def __init__(self, registry: "Registry") -> None:
        self._registry = registry

    async def prompt(self, reference: str) -> PromptChoice:
        """The version, or versions, that a reference names now."""
        split = await asyncio.to_thread(self._registry.prompt_split, reference)
        return PromptChoice(versions=[(_as(PromptTemplate, record), weight) for record, weight in split])

    async def prompt_versions(self, reference: str | None) -> Sequence[PromptVersion]:
        """The version that a reference names; None for every version of every prompt."""
        if reference is not None:
            return [_as(PromptVersion, await asyncio.to_thread(self._registry.prompt, reference))]
        return [_as(PromptVersion, record) for record in await asyncio.to_thread(self._registry.prompts)]

    async def prompt_labels(self, name: str | None) -> Sequence[PromptLabel]:
        """The labels of a prompt, or of all."""
        return await asyncio.to_thread(labels, self._registry, name)

    async def put_prompt(self, draft: PromptDraft) -> PromptVersion:
        """The version that says this, made if there is none."""
        return await asyncio.to_thread(put_prompt, self._registry, draft)

    async def change_label(self, change: LabelChange) -> PromptLabel | None:
        """Write an event and return the label as it is now; None for one that names nothing."""
        return await asyncio.to_thread(change_label, self._registry, change)


def put_prompt(registry: "Registry", draft: PromptDraft) -> PromptVersion:
    """The version that says this, made if there is none, once it is known that requests can use it."""
    check_draft(draft)
    made = registry.put_prompt(
        draft.name, messages=draft.messages, settings=draft.settings, message=draft.message, author=draft.author
    )
    version: PromptVersion = _as(PromptVersion, made)
    return version


def labels(registry: "Registry", name: str | None = None) -> list[PromptLabel]:
    """The labels of a prompt, or of all, with the numbers of the versions that they name."""
    numbers = {(record.name, record.digest): str(record.version) for record in registry.prompts(name)}
    return [
        PromptLabel(
            name=one.name,
            label=one.alias,
            versions={numbers[one.name, digest]: weight for digest, weight in (one.weights or {one.digest: 1}).items()},
            protected=one.protected,
            updated_at=one.updated_at,
        )
        for one in registry.aliases(name, "prompt")
    ]


def change_label(registry: "Registry", change: LabelChange) -> PromptLabel | None:
    """Write an event and return the label as it is now; None for one that names nothing."""
    write_change(registry, change)
    return next((one for one in labels(registry, change.name) if one.label == change.label), None)


def write_change(registry: "Registry", change: LabelChange) -> "AliasEvent":
    """Write an event."""
    name, label, said = change.name, change.label, {"actor": change.actor, "reason": change.reason}
    match change.type:
        case "move":
            return registry.label_prompt(name, label, change.versions, evidence=change.evidence, **said)
        case "rollback":
            return registry.rollback(name, label, kind="prompt", **said)
        case "delete":
            return registry.delete_alias(name, label, kind="prompt", **said)
        case "protect" | "unprotect":
            return registry.protect_alias(name, label, change.type == "protect", kind="prompt", **said)


def _as(kind: Any, record: Any) -> Any:
    return kind(**{field.name: getattr(record, field.name) for field in fields(kind)})
