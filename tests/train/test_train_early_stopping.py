"""When the held-out losses end a run, and which weights they make the best."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import snapshot, tokenizer

from llmray.errors import InputError
from llmray.train.blocks import heldout_blocks
from llmray.train.early_stopping import HeldoutWatch
from llmray.train.spec import TrainSpec
from llmray.train.workers import score


def test_without_rows_to_go_by_it_is_refused(tmp_path: Path) -> None:
    data = snapshot(tmp_path)
    assert list(heldout_blocks(TrainSpec(data=data.uri), tokenizer())) == []
    with pytest.raises(InputError, match=r"has no validation rows of shape 'messages', by which train\.patience"):
        heldout_blocks(TrainSpec(data=data.uri, eval_every=1, patience=1), tokenizer())


def test_only_a_new_lowest_loss_is_a_score() -> None:
    """A checkpoint with as low a loss, or none, does not outlive the best."""
    lines = [{"step": 2, "heldout_loss": 1.5, "best_step": 2}, {"step": 4, "heldout_loss": 1.5, "best_step": 2}]
    best, as_low, unmeasured = (score(line) for line in [*lines, {"step": 6}])
    assert best == -1.5 > as_low == unmeasured
    assert math.isfinite(unmeasured)


losses = st.lists(st.floats(0, 10) | st.just(math.nan), max_size=12)


def watched(seen: list[float]) -> HeldoutWatch:
    watch = HeldoutWatch()
    for step, loss in enumerate(seen, start=1):
        watch = watch.saw(loss, step=step)
    return watch


@given(seen=losses)
def test_the_lowest_is_the_first_of_the_lowest(seen: list[float]) -> None:
    watch = watched(seen)
    numbers = [loss for loss in seen if not math.isnan(loss)]
    if not numbers:
        assert (watch.lowest, watch.lowest_step) == (math.inf, 0)
        return
    assert watch.lowest == min(numbers)
    assert watch.lowest_step == seen.index(min(numbers)) + 1
    assert watch.since == len(seen) - watch.lowest_step


@given(seen=losses, patience=st.integers(1, 4))
def test_it_ends_after_so_many_in_a_row_that_were_not_lower(seen: list[float], patience: int) -> None:
    lowest = min((loss for loss in seen[:-patience] if not math.isnan(loss)), default=math.inf)
    last = seen[-patience:]
    none_lower = len(last) == patience and not any(loss < lowest for loss in last)
    assert watched(seen).out_of(patience) == none_lower
    assert not watched(seen).out_of(0)


@pytest.mark.parametrize(
    ("seen", "last", "exports_last"),
    [
        ([], 2.0, True),
        ([], math.nan, True),
        ([1.5], 1.0, True),
        ([1.5], 1.5, True),
        ([1.5], 2.0, False),
        ([1.5], math.nan, False),
        ([math.nan], math.nan, True),
    ],
)
def test_the_last_weights_are_exported_unless_earlier_ones_were_better(
    seen: list[float], last: float, exports_last: bool
) -> None:
    assert watched(seen).is_beaten_by(last) == exports_last
