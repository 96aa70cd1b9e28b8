"""Functions of a row or a corpus that make trouble once: each where a file says that it has not done so yet.

Where the files lie is said by the rows themselves (`group`, or the text), since workers share nothing else with a test.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmray.data.robust import Axis
from llmray.data.rows import Row


def first_time(marker: Path) -> bool:
    """Whether this is the first call of all processes."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def dies_once(row: Row) -> float:
    """Kills its own worker."""
    if row.group and first_time(Path(row.group) / "died"):
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def stops_the_driver_once(row: Row) -> float:
    """Writes down every row it sees; kills the driver at the one that says so."""
    assert row.group is not None
    folder = Path(row.group)
    with (folder / "seen").open("a") as file:
        file.write(f"{(row.text or '').split()[0]}\n")
    if "stop!" in (row.text or "") and first_time(folder / "stopped"):
        os.kill(int((folder / "driver").read_text()), signal.SIGKILL)
    return 0.0


def waits_on_the_second_node_once(row: Row) -> float:
    """Says that it runs on the second node, and waits for ever: for that node's end."""
    import ray

    assert row.group is not None
    folder = Path(row.group)
    second = folder / "second"
    if second.exists() and ray.get_runtime_context().get_node_id() == second.read_text() and first_time(folder / "ran"):
        (folder / "running").write_text("here")  # a pipe that the driver reads
        (folder / "never").read_text()  # a pipe that nobody writes to
    return 0.0


class DiesFitting:
    """A measure of the whole corpus: how far a text's length is from the mean; kills its worker when it learns that."""

    name = "far_from_mean"
    axis = Axis(mads=3.0)

    def survey(self, texts: Sequence[str], ids: Sequence[bytes], *, total: int | None = None) -> Any:
        assert len(texts) == len(ids)
        markers = [text.split()[-1] for text in texts if "marker " in text]
        return sum(map(len, texts)), len(texts), markers

    def merge(self, surveys: Sequence[Any]) -> Any:
        totals, counts, markers = zip(*surveys, strict=True)
        return sum(totals), sum(counts), [marker for some in markers for marker in some]

    def fit(self, surveys: Sequence[Any]) -> Any:
        for _, _, markers in surveys:
            if markers and first_time(Path(markers[0]) / "died-fitting"):
                os.kill(os.getpid(), signal.SIGKILL)
        return sum(total for total, _, _ in surveys) / sum(count for _, count, _ in surveys)

    def score(self, texts: Sequence[str], ids: Sequence[bytes], model: float) -> np.ndarray[Any, Any]:
        return np.array([abs(len(text) - model) for text in texts], np.float64)


DIES_FITTING = DiesFitting()
