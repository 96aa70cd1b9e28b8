"""Preferences that contradict one another, against paths followed by hand."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmray.data.normalize import Normalization
from llmray.data.rows import parse_row
from llmray.data.rules.preferences import Conflict, conflicts, pair_keys

NONE, IDENTICAL, SWAPPED, CONTRADICTORY = Conflict
Pair = tuple[int, int, int]
PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4)), max_size=25)


def codes(pairs: list[Pair]) -> list[int]:
    keys = np.array(pairs, np.uint64).reshape(len(pairs), 3)
    return conflicts(keys[:, 0], keys[:, 1], keys[:, 2]).tolist()


def by_hand(pairs: list[Pair]) -> list[int]:
    """An edge is on a cycle where its end leads back to its beginning."""

    def leads(prompt: int, start: int, goal: int) -> bool:
        seen, front = {start}, [start]
        while front:
            at = front.pop()
            for other, chosen, rejected in pairs:
                if other == prompt and chosen == at and rejected not in seen:
                    seen.add(rejected)
                    front.append(rejected)
        return goal in seen

    made = []
    for prompt, chosen, rejected in pairs:
        if chosen == rejected:
            made.append(IDENTICAL)
        elif (prompt, rejected, chosen) in pairs:
            made.append(SWAPPED)
        else:
            made.append(CONTRADICTORY if leads(prompt, rejected, chosen) else NONE)
    return made


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], []),
        ([(0, 1, 2)], [NONE]),
        ([(0, 1, 1)], [IDENTICAL]),
        ([(0, 1, 2), (0, 2, 1)], [SWAPPED, SWAPPED]),
        ([(0, 1, 2), (1, 2, 1)], [NONE, NONE]),  # another prompt
        ([(0, 1, 2), (0, 1, 2)], [NONE, NONE]),  # said twice
        ([(0, 1, 2), (0, 1, 2), (0, 2, 1)], [SWAPPED] * 3),
        ([(0, 1, 2), (0, 2, 3), (0, 1, 3)], [NONE] * 3),  # chosen here and rejected there, yet in order
        ([(0, 1, 2), (0, 2, 3), (0, 3, 1)], [CONTRADICTORY] * 3),
        ([(0, 1, 2), (0, 2, 3), (0, 3, 1), (0, 3, 4), (0, 5, 1)], [CONTRADICTORY] * 3 + [NONE] * 2),
        ([(0, 1, 2), (0, 2, 1), (0, 2, 3), (0, 3, 1)], [SWAPPED, SWAPPED, CONTRADICTORY, CONTRADICTORY]),
        ([(0, 1, 2), (0, 2, 3), (1, 3, 1)], [NONE] * 3),  # a cycle over two prompts is none
    ],
)
def test_what_is_wrong_with_each(pairs: list[Pair], expected: list[int]) -> None:
    assert codes(pairs) == expected == by_hand(pairs)


@given(PAIRS)
def test_every_edge_on_a_cycle_is_named_and_no_other(pairs: list[Pair]) -> None:
    assert codes(pairs) == by_hand(pairs)


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(pairs: list[Pair], random: object) -> None:
    order = list(range(len(pairs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    before, after = codes(pairs), codes([pairs[at] for at in order])
    assert after == [before[at] for at in order]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3)), max_size=8))
def test_what_is_left_can_be_put_in_order(pairs: list[Pair]) -> None:
    left = {pair for pair, code in zip(pairs, codes(pairs), strict=True) if code == NONE}
    for prompt in (0, 1):
        edges = [(chosen, rejected) for other, chosen, rejected in left if other == prompt]
        assert any(all(order.index(a) < order.index(b) for a, b in edges) for order in permutations(range(4)))


def as_void(keys: list[bytes]) -> NDArray[np.void]:
    return np.frombuffer(b"".join(keys), "V16")


def test_digests_of_rows() -> None:
    records = [
        {"prompt": "Which?", "chosen": "A cat.", "rejected": "A dog."},
        {"prompt": "which?", "chosen": "a  dog.", "rejected": "a cat. "},
        {"prompt": "Which?", "chosen": "A fox.", "rejected": "a FOX."},
        {"prompt": "Why?", "chosen": "A cat.", "rejected": "A dog."},
    ]
    keys = [pair_keys(parse_row(record), Normalization()) for record in records]
    columns = [as_void([key[place] for key in keys if key]) for place in range(3)]
    assert conflicts(*columns).tolist() == [SWAPPED, SWAPPED, IDENTICAL, NONE]
    assert conflicts(*columns).dtype == np.int8
    exact = (
        pair_keys(parse_row(records[0]), Normalization(case=False)),
        pair_keys(parse_row(records[1]), Normalization(case=False)),
    )
    assert exact[0] and exact[1] and exact[0][0] != exact[1][0]
    assert pair_keys(parse_row({"text": "no preference"}), Normalization()) is None


@given(PAIRS)
def test_wide_keys_decide_like_narrow_ones(pairs: list[Pair]) -> None:
    def wide(values: list[int]) -> NDArray[np.void]:
        # Halves that agree in part: neither half alone tells all keys apart.
        return as_void([(value // 2).to_bytes(8, "big") + (value % 2).to_bytes(8, "big") for value in values])

    columns = [wide([pair[place] for pair in pairs]) for place in range(3)]
    assert conflicts(*columns).tolist() == codes(pairs)
