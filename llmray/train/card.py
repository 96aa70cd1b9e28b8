"""The model card: a `README.md` beside the weights, as the Hugging Face hub reads it, filled with what is known.

It says what the manifest says, for people and for the hub: lineage by digest, settings, data, losses, memory, cost and
versions. It names no place of the machine that trained, and since cost differs from run to run it stays outside the
digest of the model. Rejected: huggingface_hub's `ModelCard` template, most of whose sections would say "needed".
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

CARD = "README.md"
_PACKAGES = ("llmray", "torch", "transformers", "deepspeed", "ray", "peft", "trl")
_LINEAGE = {"base": "started from", "data": "trained on"}
_OWN_TABLES = ("data", "memory_bytes", "seconds")
_GIB = 2**30


def render(
    *,
    option: str,
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
    report: Mapping[str, Any],
    hub_id: str | None,
    rows: Mapping[str, Any],
) -> str:
    """The card.

    Args:
        option: `train` or `align`.
        settings: what can change the weights.
        parents: digests by role.
        report: as in the manifest.
        hub_id: of the model that it started from, where it came from a hub.
        rows: what the snapshot's own report says of its rows; empty where it says nothing.
    """
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": hub_id} if hub_id else {}),
        "tags": ["llmray", option, settings.get("objective", "dpo"), settings["method"]],
    }
    lineage = [[_LINEAGE.get(role, role), f"`{digest}`"] for role, digest in parents.items()]
    if hub_id:
        lineage.insert(0, ["started from", f"`{hub_id}`"])
    memory = report.get("memory_bytes", {}).get("peaks", [])
    sections: list[tuple[str, list[str], list[list[str]]]] = [
        ("Lineage", ["what", "digest"], lineage),
        ("Result", ["figure", "value"], _rows({key: report[key] for key in report if key not in _OWN_TABLES})),
        ("Data", ["count", "value"], [*_rows(report["data"]), *_rows(rows, "of the snapshot: rows ")]),
        ("Peak memory", ["device", "GiB"], [[str(rank), f"{peak / _GIB:.2f}"] for rank, peak in enumerate(memory)]),
        ("Where the time went", ["phase", "seconds"], _rows(report["seconds"])),
        ("Settings", ["option", "value"], [[f"`{option}.{key}`", f"`{value}`"] for key, value in settings.items()]),
        ("Versions", ["package", "version"], _versions()),
    ]
    parts = [f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n", "# Model card\n", _summary(option, report)]
    parts += [f"## {title}\n\n{_table(headers, found)}\n" for title, headers, found in sections if found]
    return "\n".join(parts)


def _summary(option: str, report: Mapping[str, Any]) -> str:
    """What matters most, in a sentence or two."""
    told = f"Made by `llmray` ({option}) in {report['steps']} steps"
    if report.get("exported_step", report["steps"]) != report["steps"]:
        told += f", with the weights after step {report['exported_step']}, whose held-out loss was the lowest"
    if report.get("heldout_loss") is not None:
        told += f". Held-out loss {report['heldout_loss']:.4f} nats a token, over {report['data']['heldout_rows']} rows"
    cost = f"{report['core_seconds']:,.0f} core-seconds and {report['gpu_seconds']:,.0f} GPU-seconds"
    return f"{told}. It cost {cost}{_money(report)}.\n"


def _money(report: Mapping[str, Any]) -> str:
    return f", {report['money']:,.4f} {report['currency']}" if "money" in report else ""


def _rows(figures: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    return [[prefix + key.replace("_", " "), _value(value)] for key, value in figures.items()]


def _value(value: Any) -> str:
    match value:
        case None:
            return "unknown"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4f}"
    return str(value)


def _versions() -> list[list[str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append([package, version(package)])
        except PackageNotFoundError:
            continue
    return found


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
