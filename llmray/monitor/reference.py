"""What usual traffic is: messages to measure distances from, and others to calibrate the distances with.

The two must not overlap, and neither may hold what the traffic will bring: a message is nearer to itself than fresh
ones are. Messages about one thing (the same `group`) resemble each other as fresh ones do not, so one message a group
is taken. Rejected: training rows as the reference for held-out traffic: two splits may differ in more than chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.dataset

from llmray import storage
from llmray.digest import fraction_of
from llmray.errors import InputError
from llmray.monitor.features import Nonconformity


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    score: Nonconformity
    """Strangeness of a message."""
    calibration: tuple[float, ...]
    """Scores of usual messages that `score` has not seen."""


def make_reference(texts: Sequence[str], *, neighbours: int = 5) -> Reference:
    """Split usual messages in two by their digest: one half is measured against, the other calibrates.

    Raises:
        InputError: fewer than 60 different messages.
    """
    different = sorted(set(texts))
    if len(different) < 60:
        raise InputError(f"a monitor needs at least 60 different usual messages, got {len(different)}")
    order = sorted(different, key=lambda text: fraction_of(f"monitor reference:{text}"))
    half = len(order) // 2
    score = Nonconformity(order[:half], neighbours=neighbours)
    return Reference(score=score, calibration=tuple(score.scores(order[half:])))


def usual_messages(
    data_uri: str, *, share: float = 0.6, split: str = "validation", limit: int = 1000
) -> tuple[list[str], list[str]]:
    """User messages of a snapshot, parted by group: some for a reference, the rest for the traffic.

    Rows with `choices` are tasks, not what a person asks, and are left out.

    Args:
        data_uri: a dataset snapshot.
        share: share of the groups whose messages go to the reference.
        split: the split that is read.
        limit: messages kept for the reference at most.

    Returns:
        Reference messages (one a group) and fresh ones, each in an order that has nothing to do with the data's.

    Raises:
        InputError: the snapshot has no such row.
    """
    field = pyarrow.dataset.field
    rows = (
        pyarrow.dataset.dataset(storage.local_copy(data_uri) / "kept", format="parquet")
        .to_table(
            columns=["id", "messages", "group"],
            filter=(field("shape") == "messages") & (field("split") == split) & field("choices").is_null(),
        )
        .to_pylist()
    )
    by_group = {row["group"] or row["id"]: row for row in sorted(rows, key=lambda row: row["id"])}
    place = {group: fraction_of(f"monitor:{group}") for group in by_group}
    order = sorted(by_group, key=lambda group: place[group])
    messages = [(group, _last_user_message(by_group[group]["messages"])) for group in order]
    reference = [text for group, text in messages if text is not None and place[group] < share]
    fresh = [text for group, text in messages if text is not None and place[group] >= share]
    if not reference:
        raise InputError(f"{data_uri} has no {split} conversation to take usual messages from")
    return reference[:limit], fresh


def _last_user_message(messages: Sequence[dict[str, str]]) -> str | None:
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), None)
