"""llmray's own rules for single rows: nothing in it, too little in it, written by a program, no preference.

They hold for rows of any shape where that makes sense; what is judged is what a model would learn to write.
"""

import re

from llmray.data.rows import Row
from llmray.data.rules.rule import Rule

_MACHINE_MADE = re.compile(
    r"alias for field number \d+"
    r"|return (repr|str|hash|len|iter|bool|int|float|key in|value in|format)\b[^.]{0,20}\([^)]*\)\.?"
    r"|return (self|value|key)\S{0,12}(==|!=|<=|>=|<|>|\+|-|\*|/|%|@|&|\||\^|\[|in)\S{0,12}\.?"
    r"|return (getattr\(self, name\)|key in self|a reverse iterator over \S+)\.?"
    r"|initialize self\.\s+see help\(type\(self\)\) for accurate signature\."
    r"|create and return a new object\.\s+see help\(type\) for accurate signature\."
    r"|see help\(type\(self\)\)\.?"
    r"|(implement|set|delete) (iter|next|setattr|delattr|self)\S*( to value)?( name)?[^.]{0,20}\.?"
    r"|helper for pickle\.?"
    r"|default (object )?(formatter|dir\(\) implementation)\.?"
    r"|size of object in memory, in bytes\.?"
    r"|(xxx )?to be (provided|documented|done)\.?"
    r"|todo\.?|xxx\.?|\.\.\.|not documented\.?|structure/union member",
    re.IGNORECASE,
)


def rules(min_words: int, min_answer_words: int) -> list[Rule]:
    """All of them; the fewest words of a text, and of an answer."""
    return [
        Rule(name="empty", measure=_num_characters, low=1, why="nothing but white space"),
        Rule(
            name="too_short",
            measure=lambda row: len(row.answer.split()) if row.shape == "text" else None,
            low=min_words,
            why="words of a text",
        ),
        Rule(
            name="short_answer",
            measure=lambda row: None if row.shape == "text" else len(row.answer.split()),
            low=min_answer_words,
            why="words of an answer",
        ),
        Rule(name="machine_made_docstring", measure=_machine_made, high=0, why="a stub, or words that a program wrote"),
        Rule(name="same_preference", measure=_same_preference, high=0, why="chosen and rejected are the same"),
    ]


def _num_characters(row: Row) -> float:
    return len(row.answer.strip())


def _machine_made(row: Row) -> float:
    return float(_MACHINE_MADE.fullmatch(row.answer.strip()) is not None)


def _same_preference(row: Row) -> float | None:
    return float(row.chosen == row.rejected) if row.shape == "preference" else None


NAMES = tuple(rule.name for rule in rules(0, 0))
