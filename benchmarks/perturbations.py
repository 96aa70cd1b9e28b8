"""Ways in which copies of a document differ in the wild, each a function of a text and a seeded generator.

What a perturbation is called says how a copy was made, never how alike it is: that is measured afterwards.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SHARES = {
    "words": 0.46,
    "chain": 0.12,
    "boilerplate": 0.10,
    "reordered": 0.10,
    "truncated": 0.08,
    "exact": 0.07,
    "case_and_space": 0.07,
}
"""Kinds of copies and how common each is among them."""
CHAIN_LINKS = 4
"""Copies in a chain, each made from the one before."""
SHINGLE_WORDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What is put into copies."""

    words: Sequence[str]
    notices: Sequence[str]
    """Paragraphs that many documents share as headers and footers."""


def perturb(kind: str, text: str, generator: random.Random, material: Material) -> str:
    """A copy of that kind."""
    return _KINDS[kind](text, generator, material)


def words(text: str, generator: random.Random, material: Material) -> str:
    """Words replaced, deleted and inserted, at a rate that aims at a similarity between 0.45 and 1."""
    return edit(text, generator, material, similarity=generator.uniform(0.45, 1.0))


def link(text: str, generator: random.Random, material: Material) -> str:
    """The next link of a chain: about 0.87 like the one before, so about 0.76 like the one before that."""
    return edit(text, generator, material, similarity=0.87)


def edit(text: str, generator: random.Random, material: Material, *, similarity: float) -> str:
    """Change single words so that about that Jaccard similarity of shingles is left.

    A shingle survives if none of its n words is touched, (1 - rate)^n = s, and s of the shingles shared on both sides
    give a similarity of s / (2 - s).
    """
    surviving = 2 * similarity / (1 + similarity)
    rate = 1 - surviving ** (1 / SHINGLE_WORDS)
    tokens = text.split(" ")
    for place in generator.sample(range(len(tokens)), max(1, round(rate * len(tokens)))):
        draw = generator.random()
        word = generator.choice(material.words)
        if draw < 0.6:
            tokens[place] = word
        elif draw < 0.8:
            tokens[place] = f"{tokens[place]} {word}"
        else:
            tokens[place] = ""
    return " ".join(tokens)


def reordered(text: str, generator: random.Random, _: Material) -> str:
    """Some paragraphs, or all, in another order."""
    paragraphs = text.split("\n\n")
    places = generator.sample(range(len(paragraphs)), generator.randint(1, len(paragraphs)))
    moved = [paragraphs[place] for place in places]
    for place, paragraph in zip(sorted(places), moved, strict=True):
        paragraphs[place] = paragraph
    return "\n\n".join(paragraphs)


def boilerplate(text: str, generator: random.Random, material: Material) -> str:
    """A header, a footer, or both, that many documents carry."""
    header, footer = generator.choice(material.notices), generator.choice(material.notices)
    return generator.choice((f"{header}\n\n{text}", f"{text}\n\n{footer}", f"{header}\n\n{text}\n\n{footer}"))


def truncated(text: str, generator: random.Random, _: Material) -> str:
    """The beginning: 45% to 98% of it."""
    tokens = text.split(" ")
    return " ".join(tokens[: max(1, int(len(tokens) * generator.uniform(0.45, 0.98)))])


def exact(text: str, _: random.Random, __: Material) -> str:
    """The same."""
    return text


def case_and_space(text: str, generator: random.Random, _: Material) -> str:
    """Another case, other white space, or compatibility forms: the same words."""
    choices: tuple[Callable[[], str], ...] = (
        text.upper,
        text.lower,
        lambda: text.replace("\n", " "),
        lambda: text.replace(" ", "  ") + "\n\n",
        lambda: "\n".join(f"    {line}" for line in text.split("\n")),
        lambda: text.replace(" ", "\u00a0"),
    )
    return generator.choice(choices)()


_KINDS: dict[str, Callable[[str, random.Random, Material], str]] = {
    "words": words,
    "chain": link,
    "boilerplate": boilerplate,
    "reordered": reordered,
    "truncated": truncated,
    "exact": exact,
    "case_and_space": case_and_space,
}
