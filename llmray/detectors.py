"""Where personal data and secrets stand in a text: one function a kind, each exact about what it takes for one.

Published formats with a check digit are checked (Luhn for cards, ISO 7064 mod 97-10 for IBANs), addresses and telephone
numbers are parsed, keys are known by their vendors' prefixes. What has no such form is taken only in a context that
makes it likely: bare digits are no telephone number, four small numbers with dots are a version. Each function first
looks for a character that all its matches have, so a text without them costs next to nothing, and every pattern is
bounded, so that a megabyte of base64 does not make one quadratic. Rejected: models for named entities, which have to be
downloaded, and masking names, which fiction and news are full of.
"""

import base64
import binascii
import ipaddress
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from llmray.errors import ConfigError

Span = tuple[int, int]

_DIGIT = re.compile(r"\d")
_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-"
_DOMAIN = re.compile(r"@((?:[A-Za-z0-9-]{1,63}\.){1,8})([A-Za-z]{2,24})(?![\w@]|\.[A-Za-z]|-\w)")
_IPV4 = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w+-]|\.\w)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:]|\.\d)")
_TWO_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_VERSION_BEFORE = re.compile(r"(?:\b(?:v|ver|version|release|section|chapter|build)|[=~<>!]=|[A-Za-z]/|§)\.?\s*$", re.I)
_CARD = re.compile(r"\d{4}(?:\d{10,15}|([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|([ -])\d{6}\2\d{4,5})(?![\w-]|[.,]\d)")
_CARD_PREFIX = re.compile(
    r"4(?:\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}(?:\d{3})?"  # Discover
    r"|3(?:0[0-5]|[68]\d)\d{11}"  # Diners Club
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14,17}"  # UnionPay
)
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])([A-Z]{2})\d{2}(?= ?[A-Z0-9])")
_PHONE = re.compile(
    r"(?<![\w.,:/#%$€£=+-])(?:\+\d{7,15}|(?:\+?\d{1,4}[ .-]?)?(?:\(\d{1,5}\)[ .-]?)?\d{1,5}(?:[ .-]\d{2,9}){1,6})"
    r"(?![\w%/:+-]|[.,]\d)"
)
_DIGITS = re.compile(r"\d[\d .()-]{5,}\d")
_PHONE_WORD = re.compile(r"(?:tel(?:ephone)?|phone|call|fax|mobile|cell|whatsapp)\b[\s.:,)]*(?:at|us|no\.?)?\s*$", re.I)
_DATE = re.compile(r"(?:1[89]|20)\d\d[ .-](?:0[1-9]|1[0-2])[ .-]\d\d|\d\d?[ .-]\d\d?[ .-](?:1[89]|20)\d\d")
_VENDOR_KEYS = (
    # AWS, "IAM identifiers": unique id prefixes.
    (("AKIA", "ASIA", "ABIA", "ACCA"), re.compile(r"(?<![A-Za-z0-9])A(?:KIA|SIA|BIA|CCA)[A-Z2-7]{16}(?![A-Za-z0-9])")),
    (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b"),
    ),
    (("xox",), re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{10,250}")),
    (("hooks.slack.com",), re.compile(r"hooks\.slack\.com/services/T\w{8,12}/B\w{8,12}/\w{20,30}")),
    (("AIza",), re.compile(r"\bAIza[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])")),
    (("hf_",), re.compile(r"\bhf_[A-Za-z]{34}\b")),
)
_SK_KEY = re.compile(r"(?<![\w-])sk-(?:ant-[a-z0-9]{3,8}-|proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,200}")
_PRIVATE_KEY = re.compile(r"-----BEGIN ([A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?)-----(?:.{1,20000}?-----END \1-----)?", re.S)
_JWT = re.compile(r"(?<![\w.-])(eyJ[\w-]{8,2000})\.eyJ[\w-]{8,8000}\.[\w-]{8,2000}(?![\w-])")
_ASSIGNED = re.compile(r"[:=]>?\s{0,3}[\"']?([A-Za-z0-9+/_=!@#$%^&*.-]{16,200})(?![A-Za-z0-9+/_])")
_SECRET_NAME = re.compile(r"(?:key|secret|token|passw(?:or)?d|pwd)[\"']?\s{0,3}$", re.I)
_PLACEHOLDER = re.compile(r"your|example|sample|dummy|placeholder|changeme|x{4}|\.\.\.|\*{3}|[$%]", re.I)
_URL_PASSWORD = re.compile(r"://[^\s:/@]{1,64}:([^\s:/@]{3,128})@")


def emails(text: str) -> Iterator[Span]:
    """Addresses as mail programs write them; not `git@host:path`, nor `icon@2x.png`."""
    if "@" not in text:
        return
    for found in _DOMAIN.finditer(text):
        before = text[max(0, found.start() - 64) : found.start()]
        local = before[len(before.rstrip(_LOCAL)) :].lstrip(".-+%")
        image = found[1][:-1].rstrip("x").isdigit()
        remote = text[found.end() : found.end() + 1] == ":" and text[found.end() + 1 : found.end() + 2].strip() != ""
        if local and not local.endswith(".") and not image and not remote and ".." not in local:
            yield found.start() - len(local), found.end()


def ip_addresses(text: str, *, public_only: bool) -> Iterator[Span]:
    """IPv4 and IPv6 addresses, of the public internet only or all.

    Four numbers below 32 are a version or a section more often than an address (one public address in 3,000), and so
    are four numbers after "version", "==" or a product's name and a slash.
    """
    for found in _IPV4.finditer(text) if text.count(".") > 2 and _DIGIT.search(text) else ():
        small = all(int(part) < 32 for part in found[0].split("."))
        if (
            not small
            and _free(text, found.start())
            and _wanted(found[0], public_only)
            and not _VERSION_BEFORE.search(_before(text, found.start()))
        ):
            yield found.span()
    for found in _IPV6.finditer(text) if _TWO_COLONS.search(text) else ():
        if _wanted(found[0], public_only):
            yield found.span()


def cards(text: str) -> Iterator[Span]:
    """Numbers of payment cards: a known prefix and length, the usual groups or none, and a right check digit (Luhn)."""
    if not _DIGIT.search(text):
        return
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if _free(text, found.start()) and _CARD_PREFIX.fullmatch(digits) and luhn(digits):
            yield found.span()


def ibans(text: str) -> Iterator[Span]:
    """International bank account numbers: the country's length and right check digits (ISO 13616)."""
    for start in _IBAN_START.finditer(text) if _DIGIT.search(text) else ():
        length = IBAN_LENGTHS.get(start[1], 0)
        found = length and re.compile(rf"[A-Z]{{2}}\d\d(?: ?[A-Z0-9]){{{length - 4}}}(?![A-Za-z0-9])").match(
            text, start.start()
        )
        if found and mod97(found[0].replace(" ", "")) == 1:
            yield found.span()


def phones(text: str, *, region: str) -> Iterator[Span]:
    """Telephone numbers: international, or as `region` writes them; never bare digits without a plus.

    Digits in groups with spaces alone could be a table, so they need a plus, a leading zero or a word such as "phone".

    Raises:
        ConfigError: `phonenumbers` is not installed.
    """
    if not _DIGIT.search(text):
        return
    numbers = phone_library()
    for run in _DIGITS.finditer(text):
        # Two characters before the digits, for a plus and a bracket; two after them, for what must not follow.
        for found in _PHONE.finditer(text, max(0, run.start() - 2), run.end() + 2):
            if not _may_be_phone(text, found):
                continue
            strict = numbers.Leniency.STRICT_GROUPING
            for match in numbers.PhoneNumberMatcher(found[0], region, leniency=strict, max_tries=3):
                yield found.start() + match.start, found.start() + match.end


def api_keys(text: str) -> Iterator[Span]:
    """Keys by their vendors' formats: AWS, GitHub, Slack, Google, Hugging Face, OpenAI, Anthropic."""
    for hints, pattern in _VENDOR_KEYS:
        if any(hint in text for hint in hints):
            yield from (found.span() for found in pattern.finditer(text))
    for found in _SK_KEY.finditer(text) if "sk-" in text else ():
        if _random(found[0]):
            yield found.span()


def private_keys(text: str) -> Iterator[Span]:
    """Private keys in PEM or OpenPGP armour, from the first line to the last; a cut-off one by its first line."""
    if "PRIVATE KEY" in text:
        yield from (found.span() for found in _PRIVATE_KEY.finditer(text))


def jwts(text: str) -> Iterator[Span]:
    """JSON web tokens: three parts, the first of which decodes to an object that names its algorithm."""
    for found in _JWT.finditer(text) if "eyJ" in text else ():
        try:
            header = json.loads(base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4)))
        except (binascii.Error, ValueError):
            continue
        if isinstance(header, dict) and "alg" in header:
            yield found.span()


def secrets(text: str) -> Iterator[Span]:
    """What is assigned to a name such as `api_key` or `password` and looks random, and passwords in URLs."""
    for found in _ASSIGNED.finditer(text):
        if _SECRET_NAME.search(_before(text, found.start())) and _random(found[1]):
            yield found.span(1)
    for found in _URL_PASSWORD.finditer(text) if "://" in text and "@" in text else ():
        if not _PLACEHOLDER.search(found[1]) and found[1].lower() not in (
            "password",
            "passwd",
            "pass",
            "pwd",
            "secret",
        ):
            yield found.span(1)


def luhn(digits: str) -> bool:
    """Whether the last digit is right (ISO/IEC 7812-1, annex B)."""
    total = sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def mod97(iban: str) -> int:
    """Remainder of an IBAN without spaces: 1 where its check digits are right (ISO 7064)."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


def entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())


def phone_library() -> Any:
    """The package that knows the plans of all countries' telephone numbers.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import phonenumbers
    except ImportError as error:
        raise ConfigError(
            'personal.kinds: "phone" needs phonenumbers: pip install "llmray[curate]", or leave "phone" out'
        ) from error
    return phonenumbers


def _wanted(address: str, public_only: bool) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.is_unspecified:
        return False
    # IPv6 gives out 2000::/3; `a::b` is a name with a scope more often than an address.
    public = parsed.is_global and (parsed.version == 4 or int(parsed) >> 125 == 1)
    return public or (not public_only and parsed.is_private)


def _may_be_phone(text: str, found: re.Match[str]) -> bool:
    written = found[0]
    if not 7 <= sum(map(str.isdigit, written)) <= 15 or _DATE.match(written) or ("." in written and "-" in written):
        return False
    marked = any(mark in written for mark in "+(-.") or written[0] == "0"
    return marked or _PHONE_WORD.search(_before(text, found.start())) is not None


def _free(text: str, at: int) -> bool:
    """Whether a number may start there: a lookbehind would say so too, but be tried at every character of a text."""
    before = text[at - 1 : at]
    return not (before.isalnum() or before in "_.,+-") or not before


def _before(text: str, at: int) -> str:
    return text[max(0, at - 24) : at]


def _random(value: str) -> bool:
    return (
        entropy(value) >= 3.5
        and any(map(str.isdigit, value))
        and any(map(str.isalpha, value))
        and not _PLACEHOLDER.search(value)
    )


_IBAN_COUNTRIES = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 "
    "FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 "
    "LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 "
    "SA24 SC31 SD18 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
)
IBAN_LENGTHS = {country[:2]: int(country[2:]) for country in _IBAN_COUNTRIES.split()}
"""Characters of an IBAN by country (SWIFT's IBAN registry)."""
