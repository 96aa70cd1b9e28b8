"""A checkpoint: DeepSpeed's shards, and beside them where in the data we were, what we know of the losses, the meter.

Every rank writes its part into one folder (`saver.py`), which counts once all have. Resuming at the same number of
workers is bit-identical in float32; at another one (`reshard.py`) the same blocks are taken and the loss is equal to
rounding. The dice need no place in it, since every step throws its own from (seed, step, rank): with
dropout, other ranks throw others, so only runs without it are equal at another number of workers. Rejected: saving
the weights alone, as a "resume" that restarts the optimizer and the data and shows as a step in the loss.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmray import storage
from llmray.errors import ConfigError
from llmray.train.divergence import LossWatch
from llmray.train.early_stopping import HeldoutWatch
from llmray.train.meter import Meter
from llmray.train.model_run import changed
from llmray.train.spec import TrainSpec

if TYPE_CHECKING:
    from llmray.train.engine import Place

TAG = "deepspeed"
"""The folder of DeepSpeed's files in a checkpoint."""
_STATE = "llmray.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
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
    heldout: HeldoutWatch = field(default_factory=HeldoutWatch)
    """What the held-out losses so far were like."""


def write_progress(folder: Path, progress: Progress, spec: TrainSpec, *, world_size: int) -> None:
    """What lies beside the shards: where the run stood, whose it is, and how they were cut."""
    state = {
        "settings": spec.settings(),
        "shards": {"zero": spec.zero, "world_size": world_size},
        "progress": asdict(progress),
    }
    storage.write_bytes(str(folder / _STATE), json.dumps(state).encode())


def read_progress(folder: Path, spec: TrainSpec) -> Progress:
    """Where the run stood.

    Raises:
        ConfigError: the checkpoint was written for another spec, or under a ZeRO stage that this one cannot follow.
    """
    state = json.loads((folder / _STATE).read_text())
    if names := changed(state["settings"], json.loads(json.dumps(spec.settings()))):
        raise ConfigError(
            f"the checkpoint in {folder} belongs to a run with other settings ({', '.join(names)}): choose another "
            f"run folder, or the settings that it was begun with"
        )
    before = state["shards"]["zero"]
    if (before == 0) != (spec.zero == 0):
        raise ConfigError(
            f"{spec.option}.zero {spec.zero} cannot go on from the checkpoint in {folder}, which {spec.option}.zero "
            f"{before} wrote: set it to {'1, 2 or 3' if before else 0}, or choose another run folder"
        )
    known = state["progress"]
    parts = {"meter": Meter, "watch": LossWatch, "heldout": HeldoutWatch}
    return Progress(**{**known, **{name: part(**known[name]) for name, part in parts.items()}})


def steps_done(folder: Path) -> int:
    """Optimizer steps that a checkpoint knows."""
    return int(json.loads((folder / _STATE).read_text())["progress"]["step"])


def restore(folder: Path, engine: Any, spec: TrainSpec, place: "Place", *, scratch: Path) -> None:
    """Load weights and optimizer state, also those that other ranks have sharded; every rank must call it.

    Args:
        scratch: a folder that every rank sees and that holds nothing; used only for another number of workers or
            another ZeRO stage, and gone afterwards.
    """
    cut = json.loads((folder / _STATE).read_text())["shards"]
    stages, as_before = (cut["zero"], spec.zero), cut["world_size"] == place.world_size
    if stages == (0, 0) or (as_before and stages[0] == stages[1]):
        path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
        assert path is not None, f"no DeepSpeed shards in {folder}"
    else:
        from llmray.train.reshard import restore_resharded

        restore_resharded(folder / TAG, engine, place, stages=stages, scratch=scratch)
