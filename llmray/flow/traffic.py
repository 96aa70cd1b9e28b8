"""The users that the lifecycle plays: usual questions, unusual ones, and an annotator with an open rule.

All of it is simulated and says so in the data (`source` starts with `simulated:`). Usual questions are the validation
questions of the served dataset, in an order that depends on the seed alone. The unusual ones are early modern English,
German and Spanish, put together here from small parts. The annotator knows the documentation's own answer and judges by
word overlap, so anyone can check each of its verdicts by hand.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ANNOTATOR = "simulated:word-overlap"
RULE = (
    "word F1 (Rajpurkar et al. 2016, section 4.1) with the documentation's own answer: of two answers the higher is "
    "preferred if it is higher by 0.15; a thumb is up from 0.2; below it the documentation's answer is handed in as the "
    "correction"
)
THUMB_UP_FROM = 0.2
PREFERRED_BY = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    id: str
    """Id of the dataset row."""
    text: str
    answer: str
    """What the documentation says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    first_f1: float
    second_f1: float
    preferred: int | None
    """0 or 1: which of the two answers is better; None where they overlap about equally."""
    thumb: Literal["up", "down"]
    """For the first answer."""
    correction: str | None
    """The documentation's answer, when the first answer earned a thumb down."""


def judge(question: Question, first: str, second: str) -> Judgement:
    """Apply the annotator's rule to two answers."""
    first_f1, second_f1 = word_f1(first, question.answer), word_f1(second, question.answer)
    up = first_f1 >= THUMB_UP_FROM
    return Judgement(
        first_f1=first_f1,
        second_f1=second_f1,
        preferred=int(second_f1 > first_f1) if abs(second_f1 - first_f1) >= PREFERRED_BY else None,
        thumb="up" if up else "down",
        correction=None if up else question.answer,
    )


def word_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words of two texts, in [0, 1]."""
    words, wanted = Counter(_words(answer)), Counter(_words(reference))
    shared = (words & wanted).total()
    return 2 * shared / (words.total() + wanted.total()) if shared else 0.0


def ordered(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions in an order that depends on their ids and the seed, not on how they arrived."""
    shuffled = sorted(questions, key=lambda question: question.id)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def unusual_questions(count: int, seed: int) -> list[str]:
    """Questions that nobody asks a documentation assistant."""
    draw = random.Random(seed)
    makers = [_elizabethan, _german, _spanish]
    return [makers[index % len(makers)](draw) for index in range(count)]


def _elizabethan(draw: random.Random) -> str:
    opening = draw.choice(["Wherefore doth", "Good sir, why doth", "Pray tell, how doth", "By what sorcery doth"])
    who = draw.choice(["the moon", "mine own heart", "yon melancholy king", "the nightingale", "fair Verona's prince"])
    deed = draw.choice(["weep upon the heath", "forsake thy gentle vows", "haunt these castle walls", "slumber not"])
    close = draw.choice(["when summer's lease is done?", "though all the stars be out?", "ere the cock croweth?"])
    return f"{opening} {who} {deed} {close}"


def _german(draw: random.Random) -> str:
    opening = draw.choice(["Warum schmeckt", "Wie lange kocht man", "Woher kommt eigentlich", "Wer mag schon"])
    what = draw.choice(["die Kartoffelsuppe", "der Apfelkuchen", "das Sauerkraut", "die Brezel"])
    close = draw.choice(["bei meiner Großmutter immer besser?", "an einem kalten Wintertag?", "im Schwarzwald?"])
    return f"{opening} {what} {close}"


def _spanish(draw: random.Random) -> str:
    opening = draw.choice(["¿A qué hora sale", "¿Cuánto cuesta", "¿Dónde puedo encontrar", "¿Quién conoce"])
    what = draw.choice(["el tren nocturno", "el barco pequeño", "la playa más tranquila", "el mercado de flores"])
    close = draw.choice(["hacia Sevilla?", "durante las fiestas de agosto?", "cerca de la plaza vieja?"])
    return f"{opening} {what} {close}"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
