"""Checkpoints that are written while training goes on.

Training stands still while each rank copies what DeepSpeed would write, byte for byte, into the host's memory; a thread
then writes it. At the first step at which every rank has written, the folder is reported, and only that makes it the
newest checkpoint: a kill in between leaves the one before. The buffers are kept from one checkpoint to the next, since
to touch new memory takes longer than the copy. One checkpoint is written at a time; the next one waits, and so do the
end of the run and any other report, so that reports keep their order. Where the copy does not fit into memory, training
waits for the writing itself.

Rejected: DeepSpeed's decoupled engine, whose commit waits for the writing all the same; Ray Train's
`CheckpointUploadMode.ASYNC`, which uploads a folder that was written before, and starts the workers anew where a disk is
full; clones of tensors instead of bytes, which must know what shares storage, and are turned into bytes while the
training needs the interpreter.
"""

import io
import os
from collections.abc import Callable
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from torch.utils.serialization import config

from llmray import storage
from llmray.train.checkpoint import TAG, Progress, write_progress
from llmray.train.engine import Place, least_of_ranks
from llmray.train.memory import checkpoint_bytes, room_bytes
from llmray.train.shape import Shape
from llmray.train.spec import TrainSpec

Report = Callable[[dict[str, Any], Path | None], None]
_WRITTEN, _WRITING, _FAILED = 0, 1, 2


def room_for_copy(shape: Shape, spec: TrainSpec, place: Place, *, taken: int) -> int:
    """Bytes for the copy of a checkpoint in the host's memory, beside the run; 0 where any rank has no room for it.

    Args:
        taken: bytes that the run takes on its device. What it offloads from a GPU is as large as the copy.
    """
    wanted = checkpoint_bytes(shape, spec, place.world_size)
    beside = taken if place.device == "cpu" else wanted * (spec.offload != "none")
    room = least_of_ranks(room_bytes("cpu", ranks_on_node=place.ranks_on_node), place)
    return wanted if beside + wanted <= room else 0


class Saver:
    """Takes the checkpoints of a run; every rank calls the same methods at the same time."""

    def __init__(
        self,
        engine: Any,
        spec: TrainSpec,
        place: Place,
        report: Report,
        *,
        in_background: bool,
        clock: Callable[[], float],
    ) -> None:
        """Make the engine's checkpoints ours.

        Args:
            report: told the line of metrics and the folder of a checkpoint once it is whole.
            in_background: whether to copy first, and write afterwards.
        """
        self.seconds = 0.0
        """How long the training stood still so far."""
        self._files = engine.checkpoint_engine = _Files(copying=in_background)
        engine._copy_recovery_script = lambda _: (
            None
        )  # on rank 0 alone, where a full disk would leave the others waiting
        self._engine, self._spec, self._place = engine, spec, place
        self._report, self._in_background, self._clock = report, in_background, clock
        self._thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: futures.Future[None] | None = None
        self._next: tuple[dict[str, Any], Path] = {}, Path()

    def save(self, folder: Path, progress: Progress, line: dict[str, Any]) -> None:
        """Begin a checkpoint in a folder of its own that all ranks see, to be reported with the line.

        Raises:
            LLMRayError: the one before could not be written.
        """
        self.finish()
        began = self._clock()
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
        self._next = line, folder
        self._writing = self._thread.submit(self._write, folder, progress, self._files.take())
        self.seconds += self._clock() - began
        if not self._in_background:
            self.finish()

    def look(self) -> None:
        """Report the checkpoint under way if every rank has written its part.

        Raises:
            LLMRayError: a rank could not.
        """
        if self._writing is None:
            return
        state = _WRITING if not self._writing.done() else _FAILED if self._writing.exception() else _WRITTEN
        worst = -least_of_ranks(-state, self._place)
        if worst == _FAILED:
            raise self._failure()
        if worst == _WRITTEN:
            self._writing = None
            self._report(*self._next)

    def finish(self) -> None:
        """Wait for the checkpoint under way, and report it.

        Raises:
            LLMRayError: a rank could not write it.
        """
        if self._writing is None:
            return
        began = self._clock()
        while self._writing is not None:
            futures.wait([self._writing])
            self.look()
        self.seconds += self._clock() - began

    def close(self) -> None:
        """Finish, and give the memory back."""
        self.finish()
        self._thread.shutdown()
        self._files = self._engine.checkpoint_engine = _Files(copying=False)

    def _write(self, folder: Path, progress: Progress, parts: list[Callable[[], None]]) -> None:
        with storage.disk_errors(str(folder)):
            for part in parts:
                part()
            if self._place.rank == 0:
                write_progress(folder, progress, self._spec, world_size=self._place.world_size)

    def _failure(self) -> BaseException:
        """The error of the first rank that has one; the others would wait for it in vain."""
        assert self._writing is not None
        errors = [self._writing.exception()]
        if self._place.world_size > 1:
            errors *= self._place.world_size
            dist.all_gather_object(errors, self._writing.exception())
        return next(error for error in errors if error is not None)


class _Files(TorchCheckpointEngine):
    """What DeepSpeed asks to be written, until it is."""

    def __init__(self, *, copying: bool) -> None:
        super().__init__()
        self._copying = copying
        self._buffers: dict[str, io.BytesIO] = {}
        self._parts: list[Callable[[], None]] = []

    def save(self, state_dict: Any, path: str) -> None:
        """Called by DeepSpeed for each of its files."""
        if not self._copying:
            self._parts.append(partial(_write_state, state_dict, Path(path)))
            return
        buffer = self._buffers.setdefault(Path(path).name, io.BytesIO())
        buffer.seek(0)
        _dump(state_dict, buffer)
        buffer.truncate()
        self._parts.append(partial(_write_bytes, buffer, Path(path)))

    def take(self) -> list[Callable[[], None]]:
        """What writes the files asked for since the last call."""
        parts, self._parts = self._parts, []
        return parts


def _write_state(state: Any, path: Path) -> None:
    with path.open("wb") as file:
        _dump(state, file)
        file.flush()
        os.fsync(file.fileno())


def _write_bytes(buffer: io.BytesIO, path: Path) -> None:
    with buffer.getbuffer() as content, path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _dump(state: Any, file: Any) -> None:
    with config.patch("save.compute_crc32", False):  # four fifths of the time, and `torch.load` does not look at it
        torch.save(state, file)
