"""Step: what people said of answers, as rows that alignment can learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmray.artifact import Artifact
from llmray.flow.step import step


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    records: Sequence[Mapping[str, str]]
    """`prompt`, `chosen`, `rejected`, `group` each."""
    feedback: Sequence[str] = field(metadata={"identity": False})
    """Ids of the feedback behind them."""
    left_out: Mapping[Any, int] = field(metadata={"identity": False})
    """Feedback that gave no record, by reason."""


@step()
def preferences(said: Said, onto: Artifact, heldout_fraction: float) -> Artifact:
    """A snapshot with the preferences beside the rows of `onto`, so that one evaluation covers both.

    Args:
        heldout_fraction: share of the questions whose preferences are kept for the gate.
    """
    from llmray.data.snapshot import write_snapshot

    return write_snapshot(
        said.records,
        source="feedback",
        heldout_fraction=heldout_fraction,
        onto=onto.uri,
        config={"feedback": list(said.feedback), "left_out": dict(said.left_out)},
    )
