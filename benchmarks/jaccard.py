"""The yardstick of the curation benchmarks: Jaccard similarity of word 5-grams, in plain Python and sets.

It shares no code with llmray on purpose: labels and checks made by the code under test would agree with its mistakes.
Words are maximal runs of letters, digits and underscores after NFKC and case folding, and every Chinese, Japanese or
Korean character is a word; a text of fewer words than a shingle is one shingle of all of them; one without words has none.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

Shingles = frozenset[tuple[str, ...]]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def shingles(text: str, num_words: int = 5) -> Shingles:
    """The set of `num_words`-grams of a text."""
    words = _WORD.findall(_folded(text))
    if 0 < len(words) < num_words:
        return frozenset([tuple(words)])
    return frozenset(zip(*(words[start:] for start in range(num_words)), strict=False))


def jaccard(left: Shingles, right: Shingles) -> float:
    """Shared shingles over all shingles; 0 where neither has any."""
    shared = len(left & right)
    union = len(left) + len(right) - shared
    return shared / union if union else 0.0


def same_text(text: str) -> str:
    """What two exact repeats have in common: NFKC, case folding, white space collapsed."""
    return " ".join(_folded(text).split())


def all_pairs(documents: Sequence[Shingles], at_least: float) -> Iterator[tuple[int, int, float]]:
    """Every pair of that similarity or more, by brute force over an inverted index that leaves nothing out.

    Pairs that share no shingle have similarity 0 and are not looked at; `at_least` must be above 0.
    """
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, document in enumerate(documents):
        shared: Counter[int] = Counter()
        for shingle in document:
            others = holders[shingle]
            shared.update(others)
            others.append(number)
        for other, count in sorted(shared.items()):
            likeness = count / (len(document) + len(documents[other]) - count)
            if likeness >= at_least:
                yield other, number, likeness


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
