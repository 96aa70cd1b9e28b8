"""A text split once for all the rules that measure it: words, lines, paragraphs, repeated n-grams.

Two dozen rules ask for the same words and lines, one rule after another about one row; the last text's view is
therefore kept. Repeated n-grams are found by refinement: two equal (n+1)-grams begin with two equal n-grams, so only
the places that still share a beginning are looked at again. On prose, where few triples of words come up twice, all
sizes up to ten cost little more than counting single words. Rejected: a `Counter` of tuples for each size, which
hashes every place nine times (three times slower on documents of 2 KB), and hashes of n-grams, which can collide.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache, wraps
from itertools import accumulate
from typing import Concatenate, ParamSpec

from llmray.data.rows import Row

_P = ParamSpec("_P")
_BLANK_LINE = re.compile(r"\n\s*\n")


class Document:
    """Views of one text, each made when it is first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._levels: list[list[list[int]]] = []

    @cached_property
    def lowered(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    @cached_property
    def words(self) -> list[str]:
        """What stands between white space."""
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        """Lines with something in them, without white space at their ends."""
        return [stripped for line in self.text.splitlines() if (stripped := line.strip())]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines, without white space at the ends."""
        return [stripped for part in _BLANK_LINE.split(self.text) if (stripped := part.strip())]

    @cached_property
    def character_ends(self) -> list[int]:
        """Characters of the first i words, for i from 0 to all."""
        return list(accumulate(map(len, self.words), initial=0))

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Where each different word stands."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        for at, word in enumerate(self.words):
            places[word].append(at)
        return dict(places)

    def repeated(self, size: int) -> list[list[int]]:
        """Where each n-gram of `size` words starts that comes up more than once: ascending places, one list a gram."""
        if not self._levels:
            self._levels.append([places for places in self.places.values() if len(places) > 1])
        # One word beyond the end stands for "no more words": only one place can reach it, so it joins nothing.
        words: Sequence[str | None] = [*self.words, None]
        while len(self._levels) < size:
            self._levels.append(_refined(self._levels[-1], words, len(self._levels)))
        return self._levels[size - 1]


def of_documents(
    measure: Callable[Concatenate[Document, _P], float | None],
) -> Callable[Concatenate[Row, _P], float | None]:
    """A measure of rows out of a measure of documents; it passes over conversations and preferences."""

    @wraps(measure)
    def measure_row(row: Row, /, *args: _P.args, **kwargs: _P.kwargs) -> float | None:
        return None if row.text is None else measure(view(row.text), *args, **kwargs)

    return measure_row


@lru_cache(maxsize=1)
def view(text: str) -> Document:
    """The views of a text; those of the text asked for last are kept."""
    return Document(text)


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts repeat an earlier one, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen: set[str] = set()
    repeats = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    return len(repeats), sum(map(len, repeats))


def share(parts: Iterable[object], of: Sequence[object]) -> float:
    """How many of the parts are true, out of `of`; 0 where there are none."""
    return sum(map(bool, parts)) / len(of) if of else 0.0


def _refined(groups: list[list[int]], words: Sequence[str | None], size: int) -> list[list[int]]:
    """Places that share `size` words, split by the word that comes next."""
    refined = []
    for places in groups:
        if len(places) == 2:
            first, second = places
            if words[first + size] == words[second + size]:
                refined.append(places)
            continue
        by_next: defaultdict[str | None, list[int]] = defaultdict(list)
        for at in places:
            by_next[words[at + size]].append(at)
        refined += [some for some in by_next.values() if len(some) > 1]
    return refined
