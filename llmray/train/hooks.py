"""What the training loop needs from where it runs: on Ray (`trainer.py`), in one process, in a test."""

from pathlib import Path
from typing import Any, Protocol


class Hooks(Protocol):
    """What the loop needs from where it runs."""

    checkpoints: str
    """Where they lie, for a person to read."""

    def stop_wanted(self) -> bool:
        """Whether the run is to end now, with a checkpoint; asked before every step, of each rank, and one is enough."""

    def leave_wanted(self) -> bool:
        """Whether a machine was said to be taken away, so that a checkpoint is to be written now; asked as above, told once."""

    def metrics(self, line: dict[str, Any]) -> None:
        """Keep a line of metrics; called on rank 0 only, after every step."""

    def checkpoint_folder(self, step: int) -> Path:
        """Where the checkpoint of a step belongs: a folder that every rank sees, and makes if it is not there."""

    def report(self, line: dict[str, Any], checkpoint: Path | None) -> None:
        """Tell the figures of now and then; called by all ranks together.

        Args:
            checkpoint: the folder of that step, now that all ranks have filled it: the newest one. None for none.
        """


class Alone:
    """Hooks of a run without Ray, which nobody tells to stop: lines stay in memory, checkpoints in a folder by their step."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = str(folder)
        self.lines: list[dict[str, Any]] = []
        """Of metrics; on rank 0."""
        self.saved: list[int] = []
        """Steps whose checkpoints are whole."""

    def stop_wanted(self) -> bool:
        return False

    def leave_wanted(self) -> bool:
        return False

    def metrics(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def checkpoint_folder(self, step: int) -> Path:
        return Path(self.checkpoints) / str(step)

    def report(self, line: dict[str, Any], checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self.saved.append(line["step"])
