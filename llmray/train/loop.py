"""The training loop, whole: blocks in, losses out, on `deepspeed.initialize`.

It knows no Ray: `Hooks` carries checkpoints and metrics out, so the same loop runs alone on one process. The loss is
the sum over trained tokens divided by the trained tokens of the whole global batch (all ranks, all accumulation
steps), which every rank knows beforehand; averaging averages instead weighs a token by how empty its micro-batch was.
Dice (dropout) are thrown anew at each step from (seed, step, rank): ranks differ, and a resumed run throws the same.
A step that diverged (`divergence.py`) was not taken, so the weights can still tell which row it came from.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from llmray.errors import NotFoundError
from llmray.train import checkpoint
from llmray.train.checkpoint import Progress
from llmray.train.culprits import blame, rows_of_batch, sound_documents
from llmray.train.cursor import Cursor, share
from llmray.train.divergence import Blame, Diverged, Fine, Limits, LossWatch, Verdict, diverged_error
from llmray.train.engine import (
    Place,
    any_rank,
    any_ranks,
    export,
    from_first_rank,
    gather_weights,
    join_process_group,
    least_of_ranks,
    load_model,
    load_shape,
    make_engine,
    of_ranks,
    sum_over_ranks,
    weights_are_lost,
    zero3_loading,
)
from llmray.train.forward import check_walls, token_losses
from llmray.train.hooks import Hooks
from llmray.train.memory import check, peak_bytes, room_bytes
from llmray.train.meter import Gauge, gauge_of, laps
from llmray.train.packed import PackedBlocks
from llmray.train.packing import documents
from llmray.train.prepared import build, open_prepared, prepare
from llmray.train.saver import Saver, room_for_copy
from llmray.train.schedule import learning_rate
from llmray.train.shape import Shape
from llmray.train.spec import TrainSpec
from llmray.train.template import load_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    progress: Progress
    heldout_loss: float
    """Mean negative log-likelihood per trained token of held-out rows, in nats; NaN without such rows."""
    exported_step: int
    """Step whose weights were exported and have that loss: the last, or that of the lowest held-out loss."""
    counts: dict[str, float]
    """Rows and blocks of the training data, and held-out rows."""
    seconds: dict[str, float]
    """Where the time of this process went, by phase."""
    memory: dict[str, Any]
    """Bytes on the device: `foreseen` before the start, and `peaks` by rank (`memory.peak_bytes`), `peak` the highest."""
    stopped_early: bool
    """Whether it could go on: it ended at the deadline, or because it was told to."""
    resumes_at: int | None
    """Where it was told to stop: the step of its newest checkpoint. Then nothing was measured nor exported."""


def run(
    spec: TrainSpec,
    place: Place,
    hooks: Hooks,
    *,
    resume_from: Path | None,
    export_to: Path,
    keep_data_in: Path | None = None,
    deadline: float | None = None,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """Train from the start or a checkpoint to the last step or the deadline, then write the model to `export_to`.

    Told to stop by its hooks it ends as at the deadline, with a checkpoint, but writes no model.

    Args:
        resume_from: folder of a checkpoint of the same run, whatever the number of its workers.
        export_to: beside it, a folder `resharding` comes and goes where their number is another.
        keep_data_in: a folder that every rank sees, for the data to be made once and found again; None keeps it in memory.
        deadline: reading of rank 0's clock after which no further step begins.

    Raises:
        ConfigError: it would not fit into the memory of its device; the message says what would.
        InputError: the data or the model cannot be used.
        DivergedError: the loss, its gradient or the weights became NaN or infinite, or the loss stayed too high.
    """
    lap = laps(clock)
    seconds: dict[str, float] = {}
    torch.manual_seed(spec.seed)
    join_process_group(place)
    seconds["process_group"] = next(lap)
    shape = load_shape(spec.model)
    foreseen, copy = _room(shape, spec, place)
    tokenizer = load_tokenizer(spec.model, spec.template)
    if keep_data_in is None:
        data = build(spec, tokenizer)
    else:
        data = open_prepared(from_first_rank(lambda: prepare(spec, tokenizer, keep_data_in), place))
    seconds["data"] = next(lap)
    scratch = export_to.with_name("resharding")
    engine, progress = _begin(spec, place, tokenizer, resume_from=resume_from, scratch=scratch)
    check_walls(engine, model=spec.model, vocabulary=shape.vocabulary, device=place.device)
    seconds["engine"] = next(lap)
    job = _Job(
        engine=engine,
        spec=spec,
        place=place,
        saver=Saver(engine, spec, place, hooks.report, in_background=copy, clock=clock),
        blocks=data.train,
        heldout=data.heldout,
        limits=Limits(guess=math.log(len(tokenizer)), sigmas=spec.divergence_sigmas, steps=spec.divergence_steps),
        gauge=gauge_of(shape, spec, place, num_blocks=len(data.train)),
    )
    progress, resumes_at = _steps(job, progress, hooks, deadline, clock)
    job.saver.close()
    seconds["checkpoints"] = round(job.saver.seconds, 3)
    seconds["steps"] = next(lap) - seconds["checkpoints"]
    loss, exported_step = math.nan, progress.step
    if resumes_at is None:  # else time is short
        loss, exported_step = _settle(job, progress, hooks, scratch=scratch)
        seconds["heldout"] = next(lap)
        _export(job, export_to, tokenizer)
        seconds["export"] = next(lap)
    peaks = of_ranks(peak_bytes(place.device), place)
    return Outcome(
        progress=progress,
        heldout_loss=loss,
        exported_step=exported_step,
        counts={**data.counts, "heldout_rows": len({row for block in data.heldout for row in block.rows})},
        seconds=seconds,
        memory={"foreseen": foreseen, "peak": max(peaks), "peaks": peaks},
        stopped_early=not _at_end(spec, progress),
        resumes_at=resumes_at,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    engine: Any
    spec: TrainSpec
    place: Place
    saver: Saver
    blocks: PackedBlocks
    heldout: PackedBlocks
    limits: Limits
    gauge: Gauge


@dataclass(frozen=True, kw_only=True, slots=True)
class _Taken:
    """What came of a step."""

    loss: float
    """Mean per trained token of the global batch, the same on every rank."""
    grad_norm: float
    """Norm of its gradient before clipping."""
    applied: bool
    """Whether the optimizer took it."""
    batch: Sequence[int]
    """Blocks of all ranks."""
    tokens: int
    """In them, without padding."""
    targets: int
    """In them, that the loss was taken over."""
    micro_batches: Sequence[tuple[Sequence[int], float]]
    """Blocks of this rank, and the sum of their losses, by forward pass."""


def _room(shape: Shape, spec: TrainSpec, place: Place) -> tuple[int, bool]:
    """Bytes that the run will take on the device, and whether the host has room for the copy of a checkpoint as well."""
    room = least_of_ranks(room_bytes(place.device, ranks_on_node=place.ranks_on_node), place)
    foreseen = check(shape, spec, place.world_size, int(room)).total
    copy = room_for_copy(shape, spec, place, taken=foreseen)
    return foreseen + (copy if place.device == "cpu" else 0), copy > 0


def _begin(
    spec: TrainSpec, place: Place, tokenizer: Any, *, resume_from: Path | None, scratch: Path
) -> tuple[Any, Progress]:
    """The engine, and where it stands."""
    progress = Progress() if resume_from is None else checkpoint.read_progress(resume_from, spec)
    with zero3_loading(spec):
        engine = make_engine(load_model(spec, tokenizer), spec)
    if resume_from is not None:
        checkpoint.restore(resume_from, engine, spec, place, scratch=scratch)
    return engine, progress


def _at_end(spec: TrainSpec, progress: Progress) -> bool:
    return progress.step >= spec.max_steps or progress.heldout.out_of(spec.patience)


def _settle(job: _Job, progress: Progress, hooks: Hooks, *, scratch: Path) -> tuple[float, int]:
    """Bring the weights that are wanted into the engine; their held-out loss and their step."""
    loss = _heldout_loss(job)
    if job.spec.export == "last" or progress.heldout.is_beaten_by(loss):
        return loss, progress.step
    best = hooks.checkpoint_folder(progress.heldout.lowest_step)
    if any_rank(not best.is_dir(), job.place):
        raise NotFoundError(
            f"the checkpoint with the lowest held-out loss is gone from {best}: put it back and call again, or train in "
            f"another run_dir"
        )
    checkpoint.restore(best, job.engine, job.spec, job.place, scratch=scratch)
    return _heldout_loss(job), progress.heldout.lowest_step


def _export(job: _Job, folder: Path, tokenizer: Any) -> None:
    weights = gather_weights(job.engine, rank=job.place.rank)
    if job.place.rank == 0:
        export(folder, weights, job.spec, tokenizer)
    dist.barrier()


def _steps(
    job: _Job, progress: Progress, hooks: Hooks, deadline: float | None, clock: Callable[[], float]
) -> tuple[Progress, int | None]:
    """Take steps to the end; the second of the answer is `Outcome.resumes_at`."""
    spec, saver = job.spec, job.saver
    cursor = Cursor(num_blocks=len(job.blocks), seed=spec.seed, next_index=progress.next_index)
    saved, wanted = progress.step, False
    job.engine.train()  # `from_pretrained` hands out models whose dropout is off
    while not _at_end(spec, progress):
        saver.look()
        began = clock()
        batch = cursor.take(spec.global_batch)
        lr = _lr(spec, progress.step)
        late = deadline is not None and clock() >= deadline
        told, late, leaving = any_ranks([hooks.stop_wanted(), late, hooks.leave_wanted()], job.place)
        if (told or late or leaving) and saved < progress.step and not progress.watch.high_for:
            saved = progress.step
            saver.save(hooks.checkpoint_folder(saved), progress, {"step": saved, "loss": progress.train_loss})
            saver.finish()  # time is short
        if told or late:
            return progress, saved if told else None
        torch.manual_seed(_dice(spec.seed, progress.step, job.place.rank))
        taken = _step(job, batch, lr)
        step = progress.step + 1
        wanted = wanted or step % spec.checkpoint_every == 0 or step == spec.max_steps
        evaluating = bool(spec.eval_every and job.heldout) and step % spec.eval_every == 0 and step < spec.max_steps
        verdict, watch = _judge(job, progress, taken, saving=wanted or evaluating)
        if isinstance(verdict, Diverged):
            saver.finish()
            raise diverged_error(
                verdict, _blame(job, taken, verdict), option=spec.option, step=step, lr=lr, saved_step=saved,
                checkpoints=hooks.checkpoints,
            )  # fmt: skip
        cursor = cursor.advance(spec.global_batch)
        progress = replace(
            progress,
            step=step,
            next_index=cursor.next_index,
            meter=job.gauge.add(progress.meter, tokens=taken.tokens, targets=taken.targets, seconds=clock() - began),
            train_loss=taken.loss,
            watch=watch,
        )
        line = job.gauge.line(progress, lr=lr, grad_norm=taken.grad_norm) | {"checkpoint_s": round(saver.seconds, 3)}
        if evaluating:
            progress = _evaluate(job, progress, line, fine=isinstance(verdict, Fine))
            is_lowest = progress.heldout.lowest_step == step
            wanted = wanted or (spec.export == "best" and is_lowest) or _at_end(spec, progress)
        if job.place.rank == 0:
            hooks.metrics(line)
        if wanted and isinstance(verdict, Fine):
            saved, wanted = step, False
            saver.save(hooks.checkpoint_folder(step), progress, line)
        elif evaluating or wanted:
            saver.finish()
            hooks.report(line, None)
    return progress, None


def _step(job: _Job, batch: list[int], lr: float) -> _Taken:
    """One optimizer step, or none where the gradient is no number."""
    spec, place, engine = job.spec, job.place, job.engine
    tokens, targets = job.blocks.tokens_and_targets(batch)
    # DeepSpeed averages gradients over ranks and accumulation steps; this turns its averages back into sums.
    scale = place.world_size * spec.accumulation / max(1, targets)
    total = torch.zeros(1, dtype=torch.float64)
    micro_batches: list[tuple[Sequence[int], float]] = []
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    for indices in share(batch, rank=place.rank, num_workers=place.world_size, micro_batch=spec.micro_batch):
        blocks = [job.blocks[index] for index in indices]
        loss = token_losses(engine, blocks, place.device).sum()
        micro_batches.append((indices, float(loss.detach())))
        total += micro_batches[-1][1]
        engine.backward(loss * scale)
        engine.step()
    sum_over_ranks(total, place)
    return _Taken(
        loss=float(total) / max(1, targets),
        grad_norm=float(engine.get_global_grad_norm()),
        applied=engine.was_step_applied(),
        batch=batch,
        tokens=tokens,
        targets=targets,
        micro_batches=micro_batches,
    )


def _judge(job: _Job, progress: Progress, taken: _Taken, *, saving: bool) -> tuple[Verdict, LossWatch]:
    """What to think of a step; where it is to be saved, the weights that it left must be numbers too."""
    verdict, watch = progress.watch.judge(
        taken.loss, grad_norm=taken.grad_norm, applied=taken.applied, limits=job.limits
    )
    if saving and isinstance(verdict, Fine) and any_rank(weights_are_lost(job.engine), job.place):
        verdict = Diverged(of="weights", value=math.nan)
    return verdict, watch


def _evaluate(job: _Job, progress: Progress, line: dict[str, Any], *, fine: bool) -> Progress:
    """Put the held-out loss into the line, and remember it where the weights that gave it can be saved."""
    line["heldout_loss"] = loss = _heldout_loss(job)
    if fine:
        progress = replace(progress, heldout=progress.heldout.saw(loss, step=progress.step))
    line["best_step"] = progress.heldout.lowest_step
    return progress


def _dice(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def _lr(spec: TrainSpec, steps_done: int) -> float:
    return learning_rate(
        steps_done,
        peak=spec.lr,
        max_steps=spec.max_steps,
        warmup_fraction=spec.warmup_fraction,
        schedule=spec.schedule,
        decay_fraction=spec.decay_fraction,
    )


def _blame(job: _Job, taken: _Taken, verdict: Diverged) -> Blame:
    """Where in the batch it came from."""
    all_rows = rows_of_batch([row for index in taken.batch for row in job.blocks[index].rows])
    if verdict.of not in ("loss", "gradient"):
        return all_rows
    bad = [indices for indices, loss in taken.micro_batches if verdict.of == "gradient" or not math.isfinite(loss)]
    suspects = [
        (document.rows[0], document)
        for indices in bad
        for index in indices
        for document in documents(job.blocks[index])
    ]
    found = blame(
        suspects,
        lambda tried: sound_documents(job.engine.module, tried, device=job.place.device),
        at_once=job.spec.micro_batch,
        spare=documents(job.blocks[0])[0],
        knows_sound=len(bad) < len(taken.micro_batches),
    )
    return found if found.found else all_rows


def _heldout_loss(job: _Job) -> float:
    """Mean loss per trained token over the held-out blocks, the same on every rank; NaN where there are none.

    All ranks do the same number of forward passes, since ZeRO-3 gathers weights in each; spare ones count nothing.
    """
    if not job.heldout:
        return math.nan
    size = job.spec.micro_batch
    stride = size * job.place.world_size
    totals = torch.zeros(2, dtype=torch.float64)
    job.engine.eval()
    with torch.no_grad():
        for at in range(0, len(job.heldout), stride):
            start = at + job.place.rank * size
            part = job.heldout[start : start + size]
            loss = token_losses(job.engine, part or job.heldout[:1], job.place.device).sum()
            if part:
                totals += torch.tensor([float(loss), sum(block.num_targets for block in part)])
    job.engine.train()
    sum_over_ranks(totals, job.place)
    return float(totals[0] / totals[1]) if totals[1] else math.nan
