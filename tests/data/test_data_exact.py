"""Exact keys, the short way and the long way, and which of several copies is the best."""

import hashlib
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmray.data.exact import exact_key, exact_keys, first_of_each, halves
from llmray.data.normalize import Normalization, normalize

SPACED = st.text(st.sampled_from("aB c\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x00Éß"), max_size=20)
BLANKS = "".join(letter for letter in map(chr, range(sys.maxunicode + 1)) if letter.isspace())
SOME = [
    "",
    " ",
    "\u3000\u2028 ",
    "Über  naïve ﬁancées’ “ﬂat” white—№ 5½ km²\u00a0",
    "e\u0301 and \u00e9, ᾳ ΐ ΣΑΣ ς İ ı ß ẞ Å K a\u00a8b a\u00a8\u0301",
    "漢字かな交じり文ｶﾞｷﾞ ㍿ 한국어 \u1112\u1161\u11ab \ufdfa",
    "हिन्दी में लिखा ไทย عَرَبِيّ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🙂👩‍👩‍👧 𠀋 \U000e0041\x00\x85\u00ad\ufeff",
    f"a{BLANKS}B{BLANKS[::-1]}",
    "\u0301 begins with a mark",
]
WORDS = st.one_of(
    SPACED,
    st.text(max_size=60),
    st.text(st.sampled_from("aÉ\u0301\u0345\u0327ΐ ｶﾞ\u1112\u1161\u11ab" + BLANKS), max_size=60),
    st.sampled_from(SOME),
)
TEXTS = st.lists(st.tuples(st.sampled_from(["text", "messages"]), WORDS), max_size=6)


def old_key(kind: str, text: str) -> bytes:
    """The key by its definition, digest and all."""
    said = normalize(text, Normalization()).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(kind.encode() + b"\x1c" + said, digest_size=16).digest()


@settings(deadline=None)
@given(TEXTS)
@example([("text", text) for text in SOME])
@example([("messages", "lone \ud800 and \udc00"), ("text", "\ud800\udc00é")])
@example([("text", str(number) * (number % 7)) for number in range(1500)])
def test_keys_of_a_batch_are_those_of_the_definition(rows: list[tuple[str, str]]) -> None:
    kinds, texts = [kind for kind, _ in rows], [text for _, text in rows]
    truth = [old_key(kind, text) for kind, text in rows]
    assert exact_keys(kinds, texts, Normalization()) == truth
    assert [exact_key(kind, text, Normalization()) for kind, text in rows] == truth


def test_every_character_has_the_key_of_the_definition() -> None:
    # Alone and after a letter that many marks compose with; those that are no characters are encoded all the same.
    texts = [before + chr(point) for point in range(0, sys.maxunicode + 1) for before in ("", "O")]
    assert len(set(map(len, texts))) == 2
    for low in range(0, len(texts), 1 << 16):
        some = texts[low : low + (1 << 16)]
        kinds = ["text"] * len(some)
        assert exact_keys(kinds, some, Normalization()) == [old_key("text", text) for text in some]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("rules", [Normalization(), Normalization(space=False)])
def test_an_arrow_column_has_the_keys_of_its_texts(kind: pa.DataType, rules: Normalization) -> None:
    column = pa.array(["before", *SOME, None, "after"], kind)[1:-1]
    truth = [exact_key("text", text, rules) for text in [*SOME, ""]]
    assert exact_keys(["text"] * len(column), column, rules) == truth
    assert exact_keys(["text"] * len(column), pa.chunked_array([column[:3], column[3:]]), rules) == truth


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
