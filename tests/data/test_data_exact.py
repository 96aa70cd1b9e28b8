"""Exact keys, the short way and the long way, and which of several copies is the best."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmray.data.exact import exact_key, first_of_each, halves
from llmray.data.normalize import Normalization, normalize

SPACED = st.text(st.sampled_from("aB c\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x00Éß"), max_size=20)


@given(SPACED)
def test_the_short_way_is_the_long_way(text: str) -> None:
    said = normalize(text, Normalization())
    # A text that is normal already goes through the same digest: its key must be that of the text it came from.
    assert exact_key("text", text, Normalization()) == exact_key("text", said, Normalization())
    # Without folding nothing but the long way is taken: of what is normal already it must say the same.
    strict = Normalization(unicode=False, case=False, space=False)
    assert exact_key("text", said, strict) == exact_key("text", text, Normalization())


@given(SPACED, SPACED)
def test_texts_have_one_key_when_they_are_normally_one(one: str, other: str) -> None:
    same = normalize(one, Normalization()) == normalize(other, Normalization())
    assert (exact_key("text", one, Normalization()) == exact_key("text", other, Normalization())) == same
    assert exact_key("text", one, Normalization()) != exact_key("messages", one, Normalization())


@given(
    st.lists(st.sampled_from([b"aa", b"bb", b"a\0", b"\xff\xff"]), max_size=12).flatmap(
        lambda keys: st.tuples(st.just(keys), st.permutations(range(len(keys))))
    )
)
def test_first_of_each_key_is_the_best_ranked(given_keys: tuple[list[bytes], list[int]]) -> None:
    keys, rank = given_keys
    bytes_RB = np.frombuffer(b"".join(key.ljust(16, b"\1") for key in keys), np.uint8).reshape(len(keys), 16)
    made = first_of_each(halves(bytes_RB), np.array(rank, np.int64))
    truth = [
        min((other for other in range(len(keys)) if keys[other] == keys[one]), key=lambda other: rank[other])
        for one in range(len(keys))
    ]
    assert made.tolist() == truth
