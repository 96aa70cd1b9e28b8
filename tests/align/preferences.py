"""A tiny model, and preferences that it can learn: real files, no download."""

from pathlib import Path
from typing import Any

from llmray.artifact import Artifact
from llmray.data.snapshot import write_snapshot
from llmray.train.base_model import BaseModelSpec, make_base

SHAPE = BaseModelSpec(
    vocab_size=320, hidden_size=64, intermediate_size=64, num_layers=1, num_heads=2, max_positions=128
)
THINGS = ["join", "sleep", "open", "sorted", "loads", "walk", "split", "range"]


def records(count: int = 24) -> list[dict[str, Any]]:
    """Polite answers are preferred to rude ones."""
    return [
        {
            "prompt": f"What does {THINGS[i % len(THINGS)]} {i} do?",
            "chosen": f"Gladly: {THINGS[i % len(THINGS)]} helps with {i}.",
            "rejected": f"Go away, number {i}!",
        }
        for i in range(count)
    ]


def snapshot(root: Path, rows: list[dict[str, Any]]) -> Artifact:
    return write_snapshot(rows, source="feedback", root_uri=str(root))


def base(root: Path) -> Artifact:
    text = [{"text": f"{row['prompt']} {row['chosen']} {row['rejected']}"} for row in records()]
    return make_base(write_snapshot(text, source="test", root_uri=str(root)).uri, SHAPE, root_uri=str(root))
