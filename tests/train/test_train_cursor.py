"""The order of the data: every block once an epoch, whatever the workers."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.errors import InputError
from llmray.train.cursor import Cursor, epoch_order, share

BLOCKS, SEEDS = st.integers(1, 40), st.integers(0, 2**32)


@given(BLOCKS, SEEDS, st.lists(st.integers(0, 50), max_size=8))
@settings(deadline=None)
def test_every_block_comes_once_an_epoch_however_the_batches_fall(num_blocks: int, seed: int, sizes: list[int]) -> None:
    cursor, taken = Cursor(num_blocks=num_blocks, seed=seed), []
    for size in sizes:
        batch = cursor.take(size)
        assert len(batch) == size
        taken += batch
        cursor = cursor.advance(size)
    assert cursor.next_index == len(taken)
    assert cursor.epoch == len(taken) // num_blocks
    for epoch in range(cursor.epoch):
        assert sorted(taken[epoch * num_blocks : (epoch + 1) * num_blocks]) == list(range(num_blocks))
    assert max(Counter(taken[cursor.epoch * num_blocks :]).values(), default=0) <= 1


@given(BLOCKS, SEEDS, st.integers(0, 100), st.integers(0, 60))
@settings(deadline=None)
def test_a_position_names_the_same_block_however_one_came_there(
    num_blocks: int, seed: int, start: int, count: int
) -> None:
    whole = Cursor(num_blocks=num_blocks, seed=seed).take(start + count)
    assert Cursor(num_blocks=num_blocks, seed=seed, next_index=start).take(count) == whole[start:]


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 3, 4])
)  # fmt: skip
@settings(deadline=None)
def test_shares_partition_the_batch_and_no_worker_gets_more(
    num_workers: int, micro_batch: int, accumulation: int, seed: int, steps: int
) -> None:
    size = num_workers * micro_batch * accumulation
    cursor = Cursor(num_blocks=17, seed=seed)
    for _ in range(steps):
        batch = cursor.take(size)
        shares = [share(batch, rank=r, num_workers=num_workers, micro_batch=micro_batch) for r in range(num_workers)]
        assert all([len(part) for part in mine] == [micro_batch] * accumulation for mine in shares)
        dealt = [index for turn in zip(*shares, strict=True) for part in turn for index in part]
        assert dealt == batch
        cursor = cursor.advance(size)


def test_the_same_global_batch_on_one_two_or_four_workers() -> None:
    batch = Cursor(num_blocks=10, seed=3).take(8)
    for num_workers, micro_batch in ((1, 8), (2, 4), (4, 2), (2, 2), (4, 1)):
        shares = [share(batch, rank=r, num_workers=num_workers, micro_batch=micro_batch) for r in range(num_workers)]
        assert sorted(index for mine in shares for part in mine for index in part) == sorted(batch)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(30, seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_no_blocks_is_said_in_words() -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        Cursor(num_blocks=0, seed=0)
