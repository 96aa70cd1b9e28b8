"""Rules for rows: each measures one thing about one row and says which values pass.

`own`, `gopher`, `c4`, `fineweb`, `language` and `personal` are one source each, with the published definition and
where ours departs from it; `config` says which apply. A rule of one's own is a `Rule` in any module, named
`module:attribute`. `preferences` compares pairs across rows.
"""

from llmray.data.rules.c4 import C4
from llmray.data.rules.config import BUILT_IN, GROUPS, Outliers, build, load
from llmray.data.rules.fineweb import FineWeb
from llmray.data.rules.gopher import Gopher, duplicate_lines, symbol_ratio, top_ngram
from llmray.data.rules.language import Language
from llmray.data.rules.personal import Personal
from llmray.data.rules.rule import Failure, Rule, failure, judge

__all__ = [
    "BUILT_IN",
    "C4",
    "GROUPS",
    "Failure",
    "FineWeb",
    "Gopher",
    "Language",
    "Outliers",
    "Personal",
    "Rule",
    "build",
    "duplicate_lines",
    "failure",
    "judge",
    "load",
    "symbol_ratio",
    "top_ngram",
]
