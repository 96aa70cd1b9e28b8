"""Personal data and secrets: what is found, what only looks like it, and what masking leaves.

Keys are put together here, so that no scanner of secrets takes this file for a leak.
"""

import base64
import json
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.data.rows import Row, parse_row
from llmray.data.rules import Outliers, Personal, build, judge
from llmray.data.rules.personal import count, find_personal, mask
from llmray.detectors import IBAN_LENGTHS, luhn, mod97
from llmray.errors import ConfigError
from llmray.personal import KINDS

ALL_IPS = Personal(public_ips_only=False)
RANDOM = "q7Rk2ZpX9vLm4TbN8sWd3FhJ6yCg1KaE5uQo0iPr"


def part(value: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


JWT = ".".join([part({"alg": "HS256", "typ": "JWT"}), part({"sub": "1234567890"}), RANDOM])
KEY_BLOCK = "-----BEGIN RSA {0}-----\nMIIE\nabc=\n-----END RSA {0}-----".format("PRIVATE KEY")
AWS = "AKIA" + "IOSFODNN7QRSTUVW"
GITHUB = "ghp_" + RANDOM[:36]
FINE_GRAINED = "github_pat_" + RANDOM[:22] + "_" + RANDOM + RANDOM[:19]
OPENAI = "sk-proj-" + RANDOM
ANTHROPIC = "sk-ant-api03-" + RANDOM * 2
SLACK = "xoxb-" + "123456789012-" + RANDOM[:24]
GOOGLE = "AIza" + RANDOM[:35]


def found(text: str, config: Personal | None = None) -> list[tuple[str, str]]:
    return [(match.kind, text[match.start : match.end]) for match in find_personal(text, config)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("email", "jane.doe+news@mail.example.co.uk"),
        ("email", "o_k-1%x@a-b.org"),
        ("ip", "93.184.216.34"),
        ("ip", "2606:4700:4700::1111"),
        ("ip", "2001:4860:4860:0:0:0:0:8888"),
        ("card", "4111111111111111"),
        ("card", "4111 1111 1111 1111"),
        ("card", "5500-0000-0000-0004"),
        ("card", "2221000000000009"),
        ("card", "3782 822463 10005"),
        ("card", "6011000990139424"),
        ("card", "30569309025904"),
        ("card", "3530111333300000"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("iban", "GB29NWBK60161331926819"),
        ("iban", "NO9386011117947"),
        ("phone", "+44 20 7946 0958"),
        ("phone", "(415) 555-2671"),
        ("phone", "650-253-0000"),
        ("phone", "650.253.0000"),
        ("phone", "+14155552671"),
        ("phone", "+33 1 42 68 53 00"),
        ("api_key", AWS),
        ("api_key", GITHUB),
        ("api_key", FINE_GRAINED),
        ("api_key", OPENAI),
        ("api_key", ANTHROPIC),
        ("api_key", SLACK),
        ("api_key", GOOGLE),
        ("private_key", KEY_BLOCK),
        ("jwt", JWT),
    ],
)
@pytest.mark.parametrize("around", ["{}", "see {}.", "({}), or", "Contact:\n{}\n", "<a>{}</a>", "„{}“"])
def test_found_in_its_whole_length(kind: str, value: str, around: str) -> None:
    assert found(around.format(value)) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "git clone git@github.com:org/repo.git",
        "icon@2x.png and @decorator.name and a @ b.com and @user.name",
        "numpy@1.2.3 or user@localhost",
        "version 91.240.7.210, numpy==91.240.7.210, Chrome/91.240.7.210, v91.240.7.210",
        "1.2.3.4 and 10.20.30.31 and section 93.184.216.34",
        "1.3.6.1.4.1.311.21 and 300.1.2.3 and 93.184.216.034 and 93.184.216",
        "127.0.0.1 192.168.100.200 10.1.2.99 ::1 fe80::1 2001:db8::1",
        "std::dead, a::b, 12:34:56, 00:1a:2b:3c:4d:5e, 2023-10-05T12:34:56",
        "4111111111111112 and 1234567890123456",  # a wrong check digit; no card's prefix
        "0.4111111111111111 and x4111111111111111 and 4111111111111111.5",
        "978-3-16-148410-0 and 9783161484100",  # ISBN
        "1700000000000 and 1700000000 and 20231005123456",  # timestamps
        "4111-11111111-1111",
        "4111111111111111000000",
        "DE89 3704 0044 0532 0130 01 and XX89370400440532013000",
        "2147483647 and 2014155552 and 415555267",
        "2023-10-05 12:34 and 05.10.2023 and 12-31-1999",
        "512 1024 2048 and 301 512 1024 and 1,234,567,890",
        "3.14159265358979 and 100-200-3000 and $415-555-2671 and DFARS 252.227-7013",
        "sk-learn-is-the-name-of-a-library and task-2023-10-05-of-the-whole-team",
        "AKIAIOSFODNN7 and ghp_short and AIzaShort",
        "eyJhbGciOiJub3RqcwAAAA.eyJhbGciOiJub3RqcwAAAA.abcdefghijkl",
        "api_key = your_api_key_goes_here_1234567890",
        "password: correct-horse-battery-staple",
        "token = tokenizer.encode(text)  # the key: is here",
        "https://user:password@localhost and https://host:8080/@path",
        "-----BEGIN CERTIFICATE-----",
        "",
    ],
)
def test_what_only_looks_like_it_is_let_be(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f'API_KEY = "{RANDOM}"', RANDOM),
        (f"aws_secret_access_key={RANDOM}", RANDOM),
        (f'"password": "{RANDOM[:16]}"', RANDOM[:16]),
        (f"token => '{RANDOM}'", RANDOM),
        ("postgres://admin:hunter2hunter@db.internal/x", "hunter2hunter"),
    ],
)
def test_secrets_by_context(text: str, value: str) -> None:
    assert ("secret", value) in found(text)


def test_numbers_as_a_region_writes_them() -> None:
    assert found("Rufen Sie 030 303986300 an", Personal(region="DE")) == [("phone", "030 303986300")]
    assert found("Rufen Sie 030 303986300 an") == []
    assert found("phone 650 253 0000") == [("phone", "650 253 0000")]
    assert found("650 253 0000") == []


def test_private_addresses_by_option() -> None:
    text = "10.1.2.99, fe80::1, 192.168.100.200; a::b and 0.0.0.0 and ::"
    assert found(text, ALL_IPS) == [("ip", "10.1.2.99"), ("ip", "fe80::1"), ("ip", "192.168.100.200")]


def test_matches_are_in_order_and_apart() -> None:
    text = f"a@b.org {JWT} password={GITHUB} 4111 1111 1111 1111 a@b.org"
    kinds = [match.kind for match in find_personal(text)]
    assert kinds == ["email", "jwt", "api_key", "card", "email"]


def test_only_the_kinds_asked_for() -> None:
    text = "a@b.org, 4111111111111111"
    assert found(text, Personal(kinds=("card",))) == [("card", "4111111111111111")]
    assert found(text, Personal(kinds=())) == []


def test_a_long_blob_without_spaces_is_searched_once() -> None:
    # Were any pattern quadratic, each of these would take minutes.
    for blob in ("A" * 200_000, "1" * 200_000, "a." * 100_000, "1-" * 100_000, "ab:" * 70_000, "=" * 200_000):
        assert found(blob) == []
    assert found("x" * 200_000 + "@example.org")[0][0] == "email"


VALUES = st.sampled_from(
    ["a@b.org", "4111111111111111", JWT, GITHUB, KEY_BLOCK, "+14155552671", "93.184.216.34", "GB29NWBK60161331926819"]
)
PIECES = st.lists(
    st.one_of(VALUES, st.sampled_from([" ", "\n", ", ", "x", "-", "<EMAIL>", "key=", "日本"])), max_size=8
)


@given(PIECES.map("".join))
def test_masking_twice_changes_nothing_more(content: str) -> None:
    masked, counts = mask(Row(shape="text", text=content), Personal())
    again, left = mask(masked, Personal())
    assert again is masked
    assert not left
    assert sum(counts.values()) == len(find_personal(content))
    spans = find_personal(content)
    assert all(before.end <= after.start for before, after in pairwise(spans))


def test_every_text_of_a_row_is_masked() -> None:
    config = Personal(action="mask")
    chat = parse_row(
        {"messages": [{"role": "user", "content": "I am a@b.org"}, {"role": "assistant", "content": "Ok"}]}
    )
    masked, counts = mask(chat, config)
    assert masked.messages == (("user", "I am <EMAIL>"), ("assistant", "Ok"))
    assert counts == {"email": 1}
    pair = parse_row({"prompt": "a@b.org?", "chosen": "4111111111111111", "rejected": "+14155552671 a@b.org"})
    masked, counts = mask(pair, config)
    assert (masked.prompt, masked.chosen, masked.rejected) == ("<EMAIL>?", "<CARD>", "<PHONE> <EMAIL>")
    assert counts == {"email": 2, "card": 1, "phone": 1}
    assert masked.id != pair.id
    clean = Row(shape="text", text="nothing here")
    assert mask(clean, config)[0] is clean


def test_choices_stay_different_and_the_answer_stays_among_them() -> None:
    record = {"question": "Whom to write, a@b.org?", "answer": "c@d.org", "choices": ["a@b.org", "c@d.org"]}
    masked, _ = mask(parse_row(record), Personal())
    assert masked.choices == ("<EMAIL>", "<EMAIL_2>")
    assert masked.messages == (("user", "Whom to write, <EMAIL>?"), ("assistant", "<EMAIL_2>"))
    alone, _ = mask(parse_row({**record, "choices": ["nobody", "c@d.org"]}), Personal())
    assert alone.choices == ("nobody", "<EMAIL>")


def test_as_a_rule_it_removes_only_where_told_to() -> None:
    row = Row(shape="text", text="a@b.org and c@d.org")
    for action, failures in (("count", []), ("mask", []), ("remove", [(2, 0)])):
        rules = build(Outliers(rules=("personal",), personal=Personal(action=action)))  # type: ignore[arg-type]
        assert [(failure.value, failure.threshold) for failure in judge(row, rules)] == failures
    assert count(row, Personal()) == {"email": 2}


def test_check_digits() -> None:
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in range(10) if digit != 3)
    assert mod97("GB82WEST12345698765432") == 1
    assert all(15 <= length <= 34 for length in IBAN_LENGTHS.values())


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"action": "burn"}, "count, mask or remove"),
        ({"kinds": ("email", "name")}, "choose among private_key"),
        ({"region": "us"}, "two capitals"),
    ],
)
def test_wrong_settings_name_the_fix(fields: dict[str, object], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        Personal(**fields)  # type: ignore[arg-type]


def test_a_missing_package_is_said_before_a_row_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(ConfigError, match=r"llmray\[curate\]"):
        build(Outliers(rules=("personal",)))
    without = Personal(kinds=tuple(kind for kind in KINDS if kind != "phone"))
    assert build(Outliers(rules=("personal",), personal=without))
