"""The family of one thing as a tree to read: what it was made from, and what was made from it.

Artifacts are linked by lineage edges; an answer that was served names its model and prompt itself. A node that was
shown before is named again but not followed again.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llmray.errors import InputError, NotFoundError
from llmray.outputs import Output
from llmray.registry.records import Edge
from llmray.registry.registry import Registry

_SHOWN_OUTPUTS = 5
_FACTS = (
    "prompt_reference", "variables", "sampling", "variant", "quantization", "engine", "request_id", "choice", "project",
    "key_id", "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens", "ttft_s", "latency_s", "cost",
)  # fmt: skip
"""Fields of an output that are no nodes of its family."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pedigree:
    node: str
    """Digest or output id."""
    ancestors: Sequence[Edge]
    descendants: Sequence[Edge]
    labels: dict[str, str]
    """What to call each node."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of an output: all that made it and is no node: variables, sampling, engine, and what it took."""

    def lines(self) -> list[str]:
        """The tree, the thing itself first."""
        return [
            self.labels[self.node],
            *self._section("made from", self.ancestors, up=True),
            *self._section("made into", self.descendants, up=False),
            *(["with:"] if self.facts else []),
            *(f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in self.facts.items()),
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "ancestors": [asdict(edge) for edge in self.ancestors],
            "descendants": [asdict(edge) for edge in self.descendants],
            "labels": self.labels,
            "facts": self.facts,
        }

    def _section(self, title: str, edges: Sequence[Edge], *, up: bool) -> list[str]:
        if not edges:
            return [f"{title}: nothing that is recorded"]
        return [f"{title}:", *_branches(self.node, edges, self.labels, up=up, indent="  ", seen=set())]


def pedigree(registry: Registry, reference: str) -> Pedigree:
    """The family of an output id, an artifact, or a prompt.

    Raises:
        NotFoundError: nothing goes by this reference.
        InputError: it is neither an output id nor a reference.
    """
    if (output := registry.output(reference)) is not None:
        return _of_output(registry, output)
    try:
        node = registry.resolve(reference).digest
    except NotFoundError as missing:
        try:
            return _of_prompt(registry, registry.prompt(reference).digest)
        except NotFoundError:
            raise missing from None
    ancestors, descendants = registry.ancestors(node), registry.descendants(node)
    descendants += _served(registry.outputs(_SHOWN_OUTPUTS, model_digest=node), node, "model")
    return _labelled(registry, node, ancestors, descendants)


def name_of(registry: Registry, digest: str | None) -> str:
    """What people call a digest: kind, name and version, as far as they are known."""
    if digest is None:
        return "nothing"
    try:
        record = registry.artifact(digest)
    except InputError:
        return _prompt_name(registry, digest) or digest[:24]
    named = f" {record.name}:{record.version}" if record.name is not None else ""
    return f"{record.kind}{named} {record.digest[:12]}"


def _of_output(registry: Registry, output: Output) -> Pedigree:
    edges = [Edge(child=output.id, parent=output.model_digest, role="model")]
    if output.prompt_digest is not None:
        edges.append(Edge(child=output.id, parent=output.prompt_digest, role="prompt"))
    if output.adapter is not None:
        edges.append(Edge(child=output.id, parent=f"adapter {output.adapter}", role="adapter"))
    if output.shadow_of is not None:
        edges.append(Edge(child=output.id, parent=output.shadow_of, role="shadow of"))
    documents = {str(one.get("digest") or one.get("id")): f"document {dict(one)}" for one in output.documents}
    edges += [Edge(child=output.id, parent=node, role="document") for node in documents]
    edges += registry.ancestors(output.id)
    edges += registry.ancestors(output.model_digest)
    feedback = registry.feedback(output_id=output.id)
    said = [Edge(child=one.id, parent=output.id, role="feedback") for one in feedback]
    labels = {one.id: f"{one.kind} from {one.source}: {dict(one.value)}" for one in feedback}
    family = _labelled(registry, output.id, edges, registry.descendants(output.id) + said, documents | labels)
    facts = {name: getattr(output, name) for name in _FACTS}
    return replace(family, facts={name: value for name, value in facts.items() if value not in (None, {}, [])})


def _of_prompt(registry: Registry, digest: str) -> Pedigree:
    served = _served(registry.outputs(_SHOWN_OUTPUTS, prompt_digest=digest), digest, "prompt")
    return _labelled(registry, digest, registry.ancestors(digest), registry.descendants(digest) + served)


def _served(outputs: Iterable[Output], parent: str, role: str) -> list[Edge]:
    return [Edge(child=output.id, parent=parent, role=role) for output in outputs]


def _labelled(
    registry: Registry,
    node: str,
    ancestors: Sequence[Edge],
    descendants: Sequence[Edge],
    labels: dict[str, str] | None = None,
) -> Pedigree:
    ancestors, descendants = list(dict.fromkeys(ancestors)), list(dict.fromkeys(descendants))
    nodes = dict.fromkeys([node, *(end for edge in (*ancestors, *descendants) for end in (edge.child, edge.parent))])
    known = labels or {}
    return Pedigree(
        node=node,
        ancestors=ancestors,
        descendants=descendants,
        labels={one: known.get(one) or _label(registry, one) for one in nodes},
    )


def _label(registry: Registry, node: str) -> str:
    if (output := registry.output(node)) is not None:
        return f"output {node} {output.completion.strip()[:50]!r}"
    return name_of(registry, node)


def _prompt_name(registry: Registry, digest: str) -> str | None:
    try:
        prompt = registry.prompt(digest)
    except InputError:
        return None
    return f"prompt {prompt.name}:{prompt.version} {prompt.digest[:12]}"


def _branches(
    node: str, edges: Sequence[Edge], labels: dict[str, str], *, up: bool, indent: str, seen: set[str]
) -> list[str]:
    at: Callable[[Edge], str] = (lambda edge: edge.child) if up else (lambda edge: edge.parent)
    to: Callable[[Edge], str] = (lambda edge: edge.parent) if up else (lambda edge: edge.child)
    lines = []
    for edge in (edge for edge in edges if at(edge) == node):
        follow = to(edge)
        lines.append(f"{indent}{edge.role}: {labels[follow]}{' (see above)' if follow in seen else ''}")
        if follow not in seen:
            seen.add(follow)
            lines += _branches(follow, edges, labels, up=up, indent=f"{indent}  ", seen=seen)
    return lines
