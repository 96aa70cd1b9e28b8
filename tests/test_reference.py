"""How people name things."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.errors import InputError
from llmray.reference import Reference, check_name, parse_reference

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,99}", fullmatch=True)
DIGESTS = st.text("0123456789abcdef", min_size=12, max_size=64)


@given(NAMES, NAMES)
def test_by_alias(name: str, alias: str) -> None:
    assert parse_reference(f"{name}@{alias}") == Reference(name=name, alias=alias)


@given(NAMES, st.integers(1, 999_999_999))
def test_by_version(name: str, version: int) -> None:
    assert parse_reference(f"{name}:{version}") == Reference(name=name, version=version)


@given(DIGESTS)
def test_by_digest(digest: str) -> None:
    assert parse_reference(digest) == Reference(digest=digest)


@given(
    st.one_of(DIGESTS, st.builds("{}@{}".format, NAMES, NAMES), st.builds("{}:{}".format, NAMES, st.integers(1, 99)))
)
def test_a_reference_prints_as_it_was_written(text: str) -> None:
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "docs", "Docs@latest", "docs@", "@latest", "docs:0", "docs:01", "docs:-1", "docs:1.5", "a@b@c", "docs:1\n",
     "docs @latest", "0123456789a", "g" * 12, "a" * 65, f"{'n' * 101}@latest", "../docs@latest", "doc/s@latest"],
)  # fmt: skip
def test_anything_else_says_how_to_write_one(text: str) -> None:
    with pytest.raises(InputError, match=r"write name@alias \(docs@latest\), name:version \(docs:3\) or a digest"):
        parse_reference(text)


@given(NAMES)
def test_a_good_name_comes_back(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "Docs", "-docs", ".docs", "docs@latest", "a:b", "a b", "n" * 101, "docs\n", "é"])
def test_a_bad_name_says_what_is_allowed(name: str) -> None:
    with pytest.raises(InputError, match="lower-case letters, digits, dots, dashes, underscores"):
        check_name(name)
