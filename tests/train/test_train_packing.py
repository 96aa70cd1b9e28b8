"""Packing loses no token and lets no document run into another."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmray.errors import InputError
from llmray.train import packing
from llmray.train.packing import IGNORED, Block, Example, TooLong, best_fit, fit, pack

PAD = 0
LENGTH = 16

EXAMPLES = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 1)), min_size=1, max_size=LENGTH), min_size=1, max_size=25
)


def examples_of(drawn: list[list[tuple[int, int]]]) -> list[Example]:
    return [
        Example(input_ids=[token for token, _ in tokens], trained=[mask for _, mask in tokens], row=row)
        for row, tokens in enumerate(drawn)
    ]


def efficiency(blocks: list[Block], length: int) -> float:
    return sum(block.num_tokens for block in blocks) / (len(blocks) * length)


def documents(block: Block) -> list[tuple[list[int], list[int]]]:
    """(token ids, labels) of each document of a block, found again by the positions that restart."""
    starts = [t for t in range(block.num_tokens) if block.position_ids[t] == 0]
    ends = [*starts[1:], block.num_tokens]
    return [
        (block.input_ids[at:end].tolist(), block.labels[at:end].tolist()) for at, end in zip(starts, ends, strict=True)
    ]


@given(EXAMPLES)
@settings(deadline=None)
def test_a_block_comes_apart_into_documents_as_they_are_when_packed_alone(drawn: list[list[tuple[int, int]]]) -> None:
    examples = examples_of(drawn)
    apart = [
        document for block in pack(examples, max_length=LENGTH, pad_id=PAD) for document in packing.documents(block)
    ]
    assert sorted(document.rows for document in apart) == [(row,) for row in range(len(examples))]
    for document in apart:
        [alone] = pack([examples[int(document.rows[0])]], max_length=document.num_tokens, pad_id=PAD)
        assert (document.rows, document.num_tokens, document.num_targets) == (
            alone.rows,
            alone.num_tokens,
            alone.num_targets,
        )
        for name in ("input_ids", "labels", "position_ids"):
            assert np.array_equal(getattr(document, name), getattr(alone, name))


@given(EXAMPLES)
@settings(deadline=None)
def test_every_example_lies_whole_in_one_block_once(drawn: list[list[tuple[int, int]]]) -> None:
    examples = examples_of(drawn)
    blocks = pack(examples, max_length=LENGTH, pad_id=PAD)
    assert Counter(row for block in blocks for row in block.rows) == Counter(range(len(examples)))
    for block in blocks:
        assert block.input_ids.shape == block.labels.shape == block.position_ids.shape == (LENGTH,)
        assert [ids for ids, _ in documents(block)] == [list(examples[row].input_ids) for row in block.rows]


@given(EXAMPLES)
@settings(deadline=None)
def test_a_label_is_the_next_token_of_its_own_document_and_only_where_trained(
    drawn: list[list[tuple[int, int]]],
) -> None:
    examples = examples_of(drawn)
    for block in pack(examples, max_length=LENGTH, pad_id=PAD):
        for row, (ids, labels) in zip(block.rows, documents(block), strict=True):
            trained = examples[row].trained
            assert labels[-1] == IGNORED
            assert labels[:-1] == [ids[t] if trained[t] else IGNORED for t in range(1, len(ids))]
        assert block.num_targets == (block.labels != IGNORED).sum()


@given(EXAMPLES)
@settings(deadline=None)
def test_padding_is_a_document_of_its_own_that_is_never_trained(drawn: list[list[tuple[int, int]]]) -> None:
    blocks = pack(examples_of(drawn), max_length=LENGTH, pad_id=PAD)
    for block in blocks:
        padding = slice(block.num_tokens, None)
        assert (block.input_ids[padding] == PAD).all()
        assert (block.labels[padding] == IGNORED).all()
        assert block.position_ids[padding].tolist() == list(range(LENGTH - block.num_tokens))
    real = sum(len(tokens) for tokens in drawn)
    assert sum(block.num_tokens for block in blocks) == real


LONG = st.lists(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 1)), max_size=50), max_size=8)


def targets(example: Example) -> list[tuple[int, int]]:
    """(token before, token) of all that is trained."""
    ids = example.input_ids
    return [(ids[t - 1], ids[t]) for t in range(1, len(ids)) if example.trained[t]]


@given(LONG, st.integers(2, LENGTH))
@settings(deadline=None)
def test_split_no_target_is_lost_and_none_is_there_twice(drawn: list[list[tuple[int, int]]], max_length: int) -> None:
    examples = examples_of(drawn)
    pieces, counts = fit(examples, max_length=max_length, too_long="split")
    for example, windows in zip(examples, pieces, strict=True):
        assert [target for window in windows for target in targets(window)] == targets(example)
        assert all(len(window.input_ids) <= max_length and targets(window) for window in windows)
        assert {window.row for window in windows} <= {example.row}
    assert counts == {
        "rows": len(examples),
        "truncated": 0,
        "split": sum(len(example.input_ids) > max_length for example in examples),
        "untrainable": sum(not targets(example) for example in examples),
    }


@given(LONG, st.integers(2, LENGTH))
@settings(deadline=None)
def test_truncated_an_example_is_its_beginning(drawn: list[list[tuple[int, int]]], max_length: int) -> None:
    examples = examples_of(drawn)
    pieces, counts = fit(examples, max_length=max_length, too_long="truncate")
    for example, kept in zip(examples, pieces, strict=True):
        head = Example(input_ids=example.input_ids[:max_length], trained=example.trained[:max_length], row=example.row)
        assert kept == ([head] if targets(head) else [])
    assert counts["truncated"] == sum(len(example.input_ids) > max_length for example in examples)
    assert counts["untrainable"] == sum(not kept for kept in pieces)


def test_refused_the_longest_row_is_named_with_what_it_needs() -> None:
    examples = [Example(input_ids=[1] * n, trained=[1] * n, row=f"{n} of test") for n in (5, 9, 7)]
    with pytest.raises(
        InputError, match=r"row 9 of test has 9 tokens, more than train\.max_length \(8\): raise that, or"
    ):
        fit(examples, max_length=8, too_long="refuse")
    choices: list[TooLong] = ["truncate", "split", "refuse"]
    for too_long in choices:
        assert fit(examples, max_length=9, too_long=too_long)[0] == [[example] for example in examples]


@given(st.lists(st.integers(1, 40), max_size=60))
@settings(deadline=None)
def test_best_fit_partitions_and_leaves_no_two_groups_that_fit_into_one(lengths: list[int]) -> None:
    groups = best_fit(lengths, 40)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    totals = sorted(sum(lengths[index] for index in group) for group in groups)
    assert all(0 < total <= 40 for total in totals)
    assert len(totals) < 2 or totals[0] + totals[1] > 40
    assert best_fit(lengths, 40) == groups


def test_the_fullest_block_with_room_is_taken_first() -> None:
    assert best_fit([7, 6, 3, 4], 10) == [[0, 2], [1, 3]]


def test_nothing_packs_into_nothing() -> None:
    assert pack([], max_length=8, pad_id=PAD) == []


def test_many_short_documents_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, size=500)
    examples = [Example(input_ids=[1] * int(n), trained=[1] * int(n), row=row) for row, n in enumerate(lengths)]
    assert efficiency(pack(examples, max_length=128, pad_id=PAD), 128) > 0.98
