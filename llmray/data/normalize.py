"""What counts as "the same text": one stated normalisation for exact repeats, a coarser one for near repeats.

Exact repeats: Unicode NFKC, then case folding, then white space collapsed, each switchable. Near repeats compare words:
runs of letters, digits and underscores after NFKC and case folding, with each Chinese, Japanese or Korean character a
word of its own, since those scripts put no spaces between words. Rejected: dropping digits or stop words as some
pipelines do; two texts that differ in a number differ.
"""

import re
import unicodedata
from dataclasses import dataclass

_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """Which differences do not matter to exact repeats."""

    unicode: bool = True
    """Unicode compatibility forms (NFKC): full-width letters, ligatures, no-break spaces."""
    case: bool = True
    """Upper and lower case."""
    space: bool = True
    """How much white space stands where there is some, and any at the ends."""


def normalize(text: str, rules: Normalization) -> str:
    """The text without the differences that do not matter; idempotent."""
    if rules.unicode and not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if rules.case:
        text = text.casefold() if not text.isascii() else text.lower()
        if rules.unicode and not text.isascii():
            # Folding can leave characters that compose (UAX 15, section 5.1 on toNFKC_Casefold).
            text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split()) if rules.space else text


def word_text(text: str, *, spaced: bool = True) -> str:
    """The words of a text, folded, as shingles are made of them: only ASCII separators are left between words.

    Args:
        spaced: each character of an unspaced script is a word; False leaves them together, for character n-grams.
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return separated(folded, spaced=spaced)


def separated(folded: str, *, spaced: bool, keep: str = "") -> str:
    """A folded text with one space for each run of what is no part of a word, but for the ASCII signs in `keep`."""
    if spaced:
        folded = _UNSPACED.sub(r" \1 ", folded)
    return re.sub(rf"[^\w{re.escape(keep)}]+", " ", folded)
