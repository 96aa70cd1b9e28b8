"""Documents made so that near-duplicate jobs go wrong: chains, hot buckets, empty documents; and what must come of them.

Each case states the rows that must stay, or how many rows must stay, whatever the method does in between.
"""

import random
from dataclasses import dataclass

from jaccard import jaccard, shingles


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    name: str
    texts: list[str]
    unique: frozenset[int]
    """Rows that have no repeat at the threshold: to lose one is an error."""
    most_kept: int
    """More rows than this left means that repeats stayed."""


def cases(threshold: float, seed: int = 0) -> list[Case]:
    """All cases; the words are made up, so nothing else is like them."""
    made = [_chains, _hot_unique, _hot_repeats, _empty, _short]
    return [make(threshold, random.Random(f"{seed}-{make.__name__}")) for make in made]


def words(generator: random.Random, count: int) -> list[str]:
    """Words that nobody else uses."""
    return [f"w{generator.getrandbits(40):x}" for _ in range(count)]


def _chains(threshold: float, generator: random.Random) -> Case:
    """200 chains of 12 documents: neighbours are alike, those further apart are not, and the first is the longest.

    What must stay is found by brute force: a row without any row at the threshold or above is unique; with neighbours
    alone alike, any policy that is right keeps at least every third row and at most every second.
    """
    texts: list[str] = []
    for _ in range(200):
        document = words(generator, 400)
        for _ in range(12):
            texts.append(" ".join(document))
            # Words from the front go, one fewer comes at the end: the window moves and shrinks, and the first is longest.
            step = _window_step(threshold, len(document))
            document = document[step:] + words(generator, step - 1)
    return Case(name="chains", texts=texts, unique=frozenset(), most_kept=200 * 6)


def _window_step(threshold: float, size: int) -> int:
    """Words that a window of `size` moves by so that neighbours are a little above the threshold, others below."""
    wanted = threshold + 0.4 * (1 - threshold)
    shared = wanted * 2 / (1 + wanted)
    return max(2, round((1 - shared) * size))


def _hot_unique(threshold: float, generator: random.Random) -> Case:
    """2,000 documents with one long notice and a body each: alike, but below the threshold, so all must stay."""
    notice = words(generator, 300)
    share = threshold - 0.12
    # Jaccard of two such documents is notice / (notice + two bodies).
    body = round(300 * (1 - share) / share / 2)
    texts = [" ".join([*notice, *words(generator, body)]) for _ in range(2000)]
    likeness = jaccard(shingles(texts[0]), shingles(texts[1]))
    assert threshold - 0.2 < likeness < threshold, likeness
    return Case(name="hot bucket, all unique", texts=texts, unique=frozenset(range(2000)), most_kept=2000)


def _hot_repeats(_: float, generator: random.Random) -> Case:
    """3,000 near-copies of one document, each with one word of its own: one must stay, the longest."""
    document = words(generator, 500)
    texts = [" ".join([*document, *words(generator, 1)]) for _ in range(3000)]
    return Case(name="hot bucket, all alike", texts=texts, unique=frozenset(), most_kept=1)


def _empty(_: float, generator: random.Random) -> Case:
    """1,500 documents without a word, as empty text, white space and punctuation of many lengths.

    Exact repeats among them may go; a document of other signs is no near repeat of anything.
    """
    signs = [sign * count for sign in "!?.-*#/" for count in range(1, 101)]
    blanks = [generator.choice(("", " ", "\n\n", "\t \n")) for _ in range(800)]
    start = len(blanks)
    return Case(
        name="empty documents",
        texts=blanks + signs,
        unique=frozenset(range(start, start + len(signs))),
        most_kept=1 + len(signs),
    )


def _short(_: float, generator: random.Random) -> Case:
    """1,000 documents of one to four words, all different: shorter than a shingle, and unique."""
    texts = [" ".join(words(generator, generator.randint(1, 4))) for _ in range(1000)]
    return Case(name="shorter than a shingle", texts=texts, unique=frozenset(range(1000)), most_kept=1000)
