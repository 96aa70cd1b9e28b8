"""Curation of records without Ray: fates, accounts, and that arrival changes nothing."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pure_curation import Curated, curate_purely

from llmray.data import outputs
from llmray.data.config import CurateConfig, Dedup
from llmray.data.normalize import Normalization
from llmray.data.rows import parse_row
from llmray.data.rules import Outliers
from llmray.errors import ConfigError

NO_RULES = CurateConfig(outliers=Outliers(rules=()))
LOREM = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark forest at night"


def qa(question: str, answer: str, choices: list[str] | None = None) -> dict[str, Any]:
    return {"question": question, "answer": answer, **({"choices": choices} if choices else {})}


def fate(made: Curated, record: dict[str, Any]) -> tuple[str, str]:
    """(how it went, id it was matched to) of a record's first row."""
    ids = made.found.table["id"].to_pylist()
    at = ids.index(parse_row(record).id)
    how = "kept" if made.fates.kept[at] else str(made.fates.match[at]) or "rule"
    return how, ids[made.fates.matched[at]]


def test_the_longer_copy_stays() -> None:
    short, long = {"text": LOREM}, {"text": LOREM + " again"}
    made = curate_purely([[short, long]], NO_RULES)
    assert fate(made, short) == ("near", parse_row(long).id)
    assert made.kept == [parse_row(long).id]


def test_case_and_space_are_exact_repeats_where_they_do_not_matter() -> None:
    one, other = {"text": LOREM}, {"text": LOREM.upper() + "\n"}
    assert fate(curate_purely([[one, other]], NO_RULES), one) == ("exact", parse_row(other).id)
    strict = Dedup(normalization=Normalization(case=False, space=False), near=False)
    assert len(curate_purely([[one, other]], CurateConfig(dedup=strict, outliers=NO_RULES.outliers)).kept) == 2


def test_identical_rows_are_one() -> None:
    made = curate_purely([[{"text": LOREM}] * 3, [{"text": LOREM}]], NO_RULES)
    assert len(made.kept) == 1
    assert made.accounts.repeats == {"exact": 3, "near": 0}


def test_a_text_never_removes_a_conversation() -> None:
    made = curate_purely([[{"text": LOREM}, qa("What?", LOREM)]], NO_RULES)
    assert len(made.kept) == 2


def test_aliases_with_one_docstring_are_near_repeats() -> None:
    one, other = qa("What does `os.path.join` do?", LOREM), qa("What does `posixpath.join` do?", LOREM)
    assert len(curate_purely([[one, other]], NO_RULES).kept) == 1
    by_all = CurateConfig(dedup=Dedup(messages_by="conversation"), outliers=NO_RULES.outliers)
    assert len(curate_purely([[qa(f"{LOREM} {LOREM[::-1]}", LOREM), qa("short?", LOREM)]], by_all).kept) == 2


def test_short_answers_do_not_make_conversations_equal() -> None:
    rows = [qa(f"Is {number} a prime?", "Yes, it is.") for number in range(20)]
    assert len(curate_purely([rows], NO_RULES).kept) == 20


def test_tasks_repeat_only_exactly_and_stand_apart() -> None:
    ask = "Which module defines `join`? It is described as: joins one or more path segments intelligently into one"
    rows = [
        qa(ask, "os", ["os", "re"]),
        qa(ask, "os", ["re", "os"]),
        qa(ask + " path", "os", ["os", "re"]),
        qa(ask, "os"),
        qa(ask.upper(), "os", ["os", "re"]),
    ]
    made = curate_purely([rows], NO_RULES)
    assert len(made.kept) == 4
    assert made.accounts.repeats == {"exact": 1, "near": 0}


def test_a_row_names_all_the_rules_it_failed_and_repeats_nothing() -> None:
    made = curate_purely([[{"text": ""}, {"text": ""}, {"text": LOREM}]])
    assert [[failure.rule for failure in failures] for failures in made.found.failures if failures] == [
        ["empty", "too_short"]
    ] * 2
    assert made.accounts.repeats == {"exact": 0, "near": 0}
    assert made.accounts.rules == {"empty": 2, "too_short": 2}


def test_a_row_that_failed_a_rule_is_nobodys_better_copy() -> None:
    config = CurateConfig(outliers=Outliers(rules=("gopher_symbol_ratio",)))
    bad, good = {"text": LOREM + " # # # # # #"}, {"text": LOREM}
    made = curate_purely([[bad, good]], config)
    assert fate(made, bad)[0] == "rule"
    assert fate(made, good)[0] == "kept"


def test_length_outliers_are_learned_by_kind() -> None:
    texts = [{"text": " ".join(f"w{number}x{at}" for at in range(20 + number % 7))} for number in range(60)]
    giant = {"text": " ".join(f"g{at}" for at in range(20_000))}
    tasks = [qa(f"{number} or 1?", "1", ["1", str(number)]) for number in range(2, 12)]
    made = curate_purely([[*texts, giant, *tasks]])
    assert fate(made, giant)[0] == "rule"
    assert made.accounts.rules == {"length_outlier": 1}
    assert set(made.accounts.limits) == {"text", "choice"}


def test_source_priority_decides_between_equals() -> None:
    one, other = {"text": LOREM}, {"text": LOREM.upper()}
    for first in (0, 1):
        made = curate_purely(
            [[one], [other]], CurateConfig(source_priority=(f"{first}.*",), outliers=NO_RULES.outliers)
        )
        assert made.kept == [parse_row((one, other)[first]).id]


def test_copies_of_a_removed_row_name_the_row_that_stayed() -> None:
    best, worse = {"text": LOREM + " again"}, {"text": LOREM}
    made = curate_purely([[worse, best, {"text": LOREM.upper()}]], NO_RULES)
    assert fate(made, {"text": LOREM.upper()}) == ("near", parse_row(best).id)
    assert fate(made, worse) == ("near", parse_row(best).id)


def test_no_dedup_keeps_everything() -> None:
    config = CurateConfig(dedup=Dedup(exact=False, near=False), outliers=NO_RULES.outliers)
    assert curate_purely([[{"text": LOREM}] * 3], config).accounts.kept == 3


def test_a_crowd_of_empty_and_wordless_rows_costs_nothing_and_loses_nothing_unique() -> None:
    rows: list[Any] = [{"text": "." * number} for number in range(3000)]
    made = curate_purely([rows, [{"text": LOREM}]], NO_RULES)
    assert made.accounts.kept == 3001
    assert made.fates.num_candidates == 0


WORDS = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "eps"]), max_size=9).map(" ".join)
RECORDS = st.one_of(
    WORDS.map(lambda text: {"text": text}),
    st.tuples(WORDS, WORDS).map(lambda pair: qa(*pair)),
    st.tuples(WORDS, st.sampled_from(["yes", "no"])).map(lambda pair: qa(*pair, ["yes", "no"])),
    st.tuples(WORDS, WORDS, WORDS).map(lambda three: dict(zip(("prompt", "chosen", "rejected"), three, strict=True))),
)
LOOSE = CurateConfig(dedup=Dedup(threshold=0.5, shingle_words=2))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(RECORDS, min_size=1, max_size=24))
def test_accounts_balance_and_every_fate_has_its_reason(records: list[Any]) -> None:
    made = curate_purely([records], LOOSE)
    fates, ids = made.fates, made.found.table["id"].to_pylist()
    for row, failures in enumerate(made.found.failures):
        repeats = bool(fates.match[row])
        assert bool(fates.kept[row]) + bool(failures) + repeats == 1
        matched = int(fates.matched[row])
        assert (matched != row) == repeats
        if repeats:
            assert fates.kept[matched]
            assert fates.similarity[row] >= 0.5
            kinds = made.found.table["kind"].to_pylist()
            assert kinds[row] == kinds[matched]
    assert made.accounts.records == len(records)
    assert len(set(made.kept)) == len(made.kept)
    assert {ids[row] for row in np.flatnonzero(fates.kept)} == set(made.kept)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(RECORDS, min_size=2, max_size=24), st.randoms(use_true_random=False))
def test_the_same_rows_in_other_blocks_and_another_order_have_the_same_fate(
    records: list[Any], chance: random.Random
) -> None:
    tagged = [(record, 0, number) for number, record in enumerate(records, 1)]
    shuffled = tagged[:]
    chance.shuffle(shuffled)
    cut = chance.randrange(len(shuffled))
    assert _contents([tagged]) == _contents([shuffled[:cut], shuffled[cut:]])


def _contents(blocks: list[list[tuple[Any, int, int]]]) -> tuple[Any, ...]:
    """Everything that the outputs are made of, from blocks of (record, source, row number)."""
    from pure_curation import decide_tables

    from llmray.data.prepare import prepare
    from llmray.data.readers import Found
    from llmray.data.rules import build

    tables = [
        prepare(
            [Found(row=parse_row(record), number=number) for record, _, number in block],
            "s.jsonl",
            LOOSE,
            build(LOOSE.outliers),
        )
        for block in blocks
        if block
    ]
    made = decide_tables(tables, LOOSE)
    rows = np.flatnonzero(~made.fates.kept)
    return (
        made.kept,
        made.found.table.drop_columns(["block", "at"]).to_pylist(),
        outputs.fate_columns(rows, made.found, made.fates).to_pylist(),
        outputs.clusters(made.found, made.fates),
        made.accounts.report(),
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(RECORDS, min_size=1, max_size=16))
def test_curating_what_was_kept_removes_no_repeat(records: list[Any]) -> None:
    made = curate_purely([records], CurateConfig(dedup=LOOSE.dedup, outliers=Outliers(rules=())))
    by_id = {parse_row(record).id: record for record in records}
    again = curate_purely(
        [[by_id[id_] for id_ in made.kept]], CurateConfig(dedup=LOOSE.dedup, outliers=Outliers(rules=()))
    )
    assert again.kept == made.kept


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: CurateConfig(heldout_fraction=1.0), "try 0.1"),
        (lambda: CurateConfig(rows_per_part=0), "rows_per_part"),
        (lambda: CurateConfig(examples=-1), "examples"),
        (lambda: Dedup(threshold=1.2), "dedup.threshold"),
        (lambda: Dedup(threshold=0.2, recall=0.999, max_hashes=4), "dedup.max_hashes"),
        (lambda: Dedup(shingle_words=0), "shingle_words"),
        (lambda: Outliers(length_mads=0), "length_mads"),
    ],
)
def test_impossible_settings_name_the_fix(make: Any, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        make()
