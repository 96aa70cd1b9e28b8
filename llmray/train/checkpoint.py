"""A checkpoint: DeepSpeed's shards, and beside them where in the data we were, what we know of the losses, the meter.

Every rank writes its part into its own folder; Ray Train merges the parts and publishes them as one. Resuming at the
same number of workers is bit-identical in float32; the dice need no place in it, since every step throws its own (see
`loop.py`). Rejected: saving the weights alone, as a "resume" that restarts the optimizer and the data and shows as a
step in the loss.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmray.errors import ConfigError
from llmray.train.divergence import LossWatch
from llmray.train.meter import Meter
from llmray.train.spec import TrainSpec

_STATE = "llmray.json"
_TAG = "deepspeed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    spec_digest: str
    """Digest of the spec that the run belongs to."""
    step: int = 0
    """Optimizer steps done."""
    next_index: int = 0
    """The cursor's position: blocks taken from the endless order so far."""
    meter: Meter = field(default_factory=Meter)
    """What was used so far."""
    train_loss: float = float("nan")
    """Loss of the last step."""
    watch: LossWatch = field(default_factory=LossWatch)
    """What the losses so far were like."""


def save(folder: Path, engine: Any, progress: Progress, *, rank: int) -> None:
    """Write this rank's part of a checkpoint; every rank must call it."""
    engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=True)
    if rank == 0:
        (folder / _STATE).write_text(json.dumps(asdict(progress)))


def read_progress(folder: Path, spec: TrainSpec) -> Progress:
    """Where the run stood.

    Raises:
        ConfigError: the checkpoint was written for another spec.
    """
    state = json.loads((folder / _STATE).read_text())
    if state["spec_digest"] != spec.digest:
        raise ConfigError(
            f"the checkpoint belongs to another training spec ({state['spec_digest'][:12]}, this one is "
            f"{spec.digest[:12]}): choose another run folder, or the settings that it was begun with"
        )
    return Progress(**{**state, "meter": Meter(**state["meter"]), "watch": LossWatch(**state["watch"])})


def restore(folder: Path, engine: Any) -> None:
    """Load weights and optimizer state; every rank must call it."""
    path, _ = engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
    assert path is not None, f"no DeepSpeed shards in {folder}"
