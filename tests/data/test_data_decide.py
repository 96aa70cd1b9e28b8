"""Curation of records without Ray: fates, accounts, and that arrival changes nothing."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pure_curation import Curated, curate_purely

from llmray.data.config import CurateConfig, Dedup
from llmray.data.decide import KEPT, NEAR, SEMANTIC, Judged, settle
from llmray.data.features import Statistics
from llmray.data.minhash import Shingling
from llmray.data.normalize import Normalization
from llmray.data.rows import Row, parse_row
from llmray.data.rules import Outliers
from llmray.data.verify import Verdicts
from llmray.errors import ConfigError

NO_RULES = CurateConfig(outliers=Outliers(rules=()), statistics=Statistics(measures=()))
LOREM = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark forest at night"


def qa(question: str, answer: str, choices: list[str] | None = None) -> dict[str, Any]:
    return {"question": question, "answer": answer, **({"choices": choices} if choices else {})}


def fate(made: Curated, record: dict[str, Any]) -> tuple[str, str]:
    """(how it went, id it was matched to) of the first row that says this; of those kept, where one is."""
    id_ = parse_row(record).id
    if id_ in made.ids:
        return "kept", id_
    row = next(row for row in made.removed if row["id"] == id_)
    return row["match"] or "rule", row["matched_id"] or id_


def test_clusters_of_words_and_of_meanings_are_one_where_they_share_a_row() -> None:
    rows = np.arange(8)
    # The higher the number, the better. Words: 6 with 5 and 4, of which 4 stays; 3 with 2. Row 0 is a copy of 5.
    copy_of = np.array([5, 1, 2, 3, 4, 5, 6, 7])
    judged = Judged(kind_R=np.zeros(8, np.int8), length_R=rows, rank_R=7 - rows, living_R=rows >= 0, copy_of_R=copy_of)

    def verdicts(rows: list[int], kept: list[int], alike: list[float], cluster: list[int]) -> Verdicts:
        named = (np.array(some) for some in (rows, kept, alike, cluster))
        names = ("rows_C", "kept_for_C", "similarity_C", "cluster_C")
        return Verdicts(**dict(zip(names, named, strict=True)), num_candidates=0, num_skipped=0)

    near = [verdicts([6, 5, 4], [6, 6, 4], [1, 0.9, 1], [6, 6, 6]), verdicts([3, 2], [3, 3], [1, 0.85], [3, 3])]
    meanings = verdicts([7, 6, 4, 3, 1], [7, 7, 4, 4, 1], [1, 0.97, 1, 0.96, 1], [7, 7, 4, 4, 1])
    fates = settle(judged, near, meanings)
    assert fates.fate_R.tolist() == [NEAR, KEPT, NEAR, SEMANTIC, KEPT, NEAR, SEMANTIC, KEPT]
    assert fates.matched_R.tolist() == [6, 1, 3, 4, 4, 6, 7, 7]
    assert fates.similarity_R.tolist() == [0.9, 1, 0.85, 0.96, 1, 0.9, 0.97, 1]
    assert fates.cluster_R.tolist() == [7, 1, 7, 7, 7, 7, 7, 7]
    assert fates.kept_for(rows).tolist() == [7, 1, 4, 4, 4, 7, 7, 7]
    assert settle(judged, near).cluster_R.tolist() == [6, 1, 3, 3, 6, 6, 6, 7]


def test_the_longer_copy_stays() -> None:
    short, long = {"text": LOREM}, {"text": LOREM + " again"}
    made = curate_purely([[short, long]], NO_RULES)
    assert fate(made, short) == ("near", parse_row(long).id)
    assert made.ids == [parse_row(long).id]


def test_case_and_space_are_exact_repeats_where_they_do_not_matter() -> None:
    one, other = {"text": LOREM}, {"text": LOREM.upper() + "\n"}
    assert fate(curate_purely([[one, other]], NO_RULES), one) == ("exact", parse_row(other).id)
    strict = Dedup(normalization=Normalization(case=False, space=False), near=False)
    assert len(curate_purely([[one, other]], CurateConfig(dedup=strict, outliers=NO_RULES.outliers)).ids) == 2


def test_identical_rows_are_one() -> None:
    made = curate_purely([[{"text": LOREM}] * 3, [{"text": LOREM}]], NO_RULES)
    assert len(made.ids) == 1
    assert made.report["repeats"] == {"exact": 3, "near": 0, "semantic": 0}


def test_a_text_never_removes_a_conversation() -> None:
    made = curate_purely([[{"text": LOREM}, qa("What?", LOREM)]], NO_RULES)
    assert len(made.ids) == 2


def test_aliases_with_one_docstring_are_near_repeats() -> None:
    one, other = qa("What does `os.path.join` do?", LOREM), qa("What does `posixpath.join` do?", LOREM)
    assert len(curate_purely([[one, other]], NO_RULES).ids) == 1
    by_all = CurateConfig(dedup=Dedup(messages_by="conversation"), outliers=NO_RULES.outliers)
    assert len(curate_purely([[qa(f"{LOREM} {LOREM[::-1]}", LOREM), qa("short?", LOREM)]], by_all).ids) == 2


def test_short_answers_do_not_make_conversations_equal() -> None:
    rows = [qa(f"Is {number} a prime?", "Yes, it is.") for number in range(20)]
    assert len(curate_purely([rows], NO_RULES).ids) == 20


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
    assert len(made.ids) == 4
    assert made.report["repeats"] == {"exact": 1, "near": 0, "semantic": 0}


def test_a_row_names_all_the_rules_it_failed_and_repeats_nothing() -> None:
    made = curate_purely([[{"text": ""}, {"text": ""}, {"text": LOREM}]])
    assert [[failed["rule"] for failed in row["reasons"]] for row in made.removed] == [["empty", "too_short"]] * 2
    assert made.report["repeats"] == {"exact": 0, "near": 0, "semantic": 0}
    assert made.report["rules"] == {"empty": 2, "too_short": 2}


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
    assert made.report["rules"] == {"length": 1}
    assert set(made.report["limits"]["length"]) == {"text", "choice"}


def test_source_priority_decides_between_equals() -> None:
    one, other = {"text": LOREM}, {"text": LOREM.upper()}
    for first in (0, 1):
        made = curate_purely(
            [[one], [other]], CurateConfig(source_priority=(f"00{first}.*",), outliers=NO_RULES.outliers)
        )
        assert made.ids == [parse_row((one, other)[first]).id]


def test_copies_of_a_removed_row_name_the_row_that_stayed() -> None:
    best, worse = {"text": LOREM + " again"}, {"text": LOREM}
    made = curate_purely([[worse, best, {"text": LOREM.upper()}]], NO_RULES)
    assert fate(made, {"text": LOREM.upper()}) == ("near", parse_row(best).id)
    assert fate(made, worse) == ("near", parse_row(best).id)


def test_no_dedup_keeps_everything() -> None:
    config = CurateConfig(dedup=Dedup(exact=False, near=False), outliers=NO_RULES.outliers)
    assert curate_purely([[{"text": LOREM}] * 3], config).report["rows"]["kept"] == 3


def test_a_crowd_of_empty_and_wordless_rows_costs_nothing_and_loses_nothing_unique() -> None:
    rows: list[Any] = [{"text": "." * number} for number in range(3000)]
    made = curate_purely([rows, [{"text": LOREM}]], NO_RULES)
    assert made.report["rows"]["kept"] == 3001
    assert made.report["dedup"]["pairs_compared"] == 0


WORDS = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "eps"]), max_size=9).map(" ".join)
RECORDS = st.one_of(
    WORDS.map(lambda text: {"text": text}),
    st.tuples(WORDS, WORDS).map(lambda pair: qa(*pair)),
    st.tuples(WORDS, st.sampled_from(["yes", "no"])).map(lambda pair: qa(*pair, ["yes", "no"])),
    st.tuples(WORDS, WORDS, WORDS).map(lambda three: dict(zip(("prompt", "chosen", "rejected"), three, strict=True))),
)
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking would run the whole pipeline some hundred times."""
LOOSE = CurateConfig(dedup=Dedup(threshold=0.5, shingling=Shingling(size=2)))


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow], phases=QUICK)
@given(st.lists(RECORDS, min_size=1, max_size=24))
def test_accounts_balance_and_every_fate_has_its_reason(records: list[Any]) -> None:
    made = curate_purely([records], LOOSE)
    kinds = {row["id"]: _kind(row) for row in made.kept}
    for row in made.removed:
        assert bool(row["reasons"]) != bool(row["match"])
        if row["match"]:
            assert row["similarity"] >= 0.5
            original = records[row["row"] - 1]
            assert parse_row(original).kind == kinds[row["matched_id"]]
    assert sorted(row["row"] for row in (*made.kept, *made.removed)) == list(range(1, len(records) + 1))
    assert made.report["rows"]["in"] == len(records)
    assert len(set(made.ids)) == len(made.ids)
    assert [row["row"] for row in made.kept] == sorted(row["row"] for row in made.kept)


def _kind(row: dict[str, Any]) -> str:
    return "choice" if row["choices"] is not None else str(row["shape"])


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow], phases=QUICK)
@given(st.lists(RECORDS, min_size=2, max_size=24), st.integers(60, 900), st.sampled_from([1, 2, 5]))
def test_cuts_and_shards_change_no_byte(records: list[Any], chunk_bytes: int, shards: int) -> None:
    half = len(records) // 2
    blocks = [records[:half], records[half:]]
    whole = curate_purely(blocks, LOOSE)
    pieces = curate_purely(blocks, LOOSE, chunk_bytes=chunk_bytes, shards=shards)
    assert whole.files.keys() == pieces.files.keys()
    assert [name for name in whole.files if whole.files[name] != pieces.files[name]] == []


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow], phases=QUICK)
@given(st.lists(RECORDS, min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_what_stays_does_not_depend_on_the_order_of_rows(records: list[Any], chance: random.Random) -> None:
    shuffled = records[:]
    chance.shuffle(shuffled)
    one, other = curate_purely([records], LOOSE), curate_purely([shuffled], LOOSE)
    assert sorted(one.ids) == sorted(other.ids)
    assert _reasons(one) == _reasons(other)
    assert one.report == other.report


def _reasons(made: Curated) -> list[str]:
    return sorted(
        repr([row[name] for name in ("id", "reasons", "match", "matched_id", "similarity")]) for row in made.removed
    )


@settings(deadline=None, max_examples=20, phases=QUICK)
@given(st.lists(RECORDS, min_size=1, max_size=16))
def test_curating_what_was_kept_removes_no_repeat(records: list[Any]) -> None:
    config = CurateConfig(dedup=LOOSE.dedup, outliers=Outliers(rules=()))
    made = curate_purely([records], config)
    by_id = {parse_row(record).id: record for record in records}
    again = curate_purely([[by_id[id_] for id_ in made.ids]], config)
    assert again.ids == made.ids


def by_exact(by: Any) -> CurateConfig:
    return CurateConfig(dedup=Dedup(exact_by=by, near=False), outliers=Outliers(rules=()))


def test_conversations_repeat_by_prompt_by_response_or_whole() -> None:
    same_question = [qa("What is up?", "The sky."), qa("what is  up?", "Not the floor.")]
    same_answer = [qa("Where?", "Over there."), qa("And where else?", "over there.")]
    pairs = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "P", "chosen": "better", "rejected": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "awful"},
    ]
    blocks = [[*same_question, *same_answer, *pairs, {"text": "What is up?"}]]
    assert len(curate_purely(blocks, by_exact("conversation")).ids) == 8
    assert len(curate_purely(blocks, by_exact("prompt")).ids) == 6
    assert len(curate_purely(blocks, by_exact("response")).ids) == 6


def test_nothing_said_is_no_repeat_of_nothing_said() -> None:
    silent = [qa("One?", ""), qa("Two?", " "), qa("Three?", "")]
    assert len(curate_purely([silent], by_exact("response")).ids) == 3
    unasked = [{"messages": [{"role": "assistant", "content": word}]} for word in ("Hello.", "Good day.")]
    assert len(curate_purely([unasked], by_exact("prompt")).ids) == 2


def shorter_is_better(row: Row) -> float:
    return -float(len(row.whole))


def test_quality_goes_before_length_and_the_order_can_be_changed() -> None:
    short, long = {"text": LOREM}, {"text": LOREM + " again"}
    quality = f"{__name__}:shorter_is_better"
    made = curate_purely([[short, long]], CurateConfig(quality=quality, outliers=NO_RULES.outliers))
    assert made.ids == [parse_row(short).id]
    made = curate_purely(
        [[short], [long]],
        CurateConfig(quality=quality, keep=("source", "length"), source_priority=("000*",), outliers=NO_RULES.outliers),
    )
    assert made.ids == [parse_row(short).id]
    made = curate_purely([[short, long]], CurateConfig(quality=quality, keep=("length",), outliers=NO_RULES.outliers))
    assert made.ids == [parse_row(long).id]


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: CurateConfig(heldout_fraction=1.0), "try 0.1"),
        (lambda: CurateConfig(rows_per_part=0), "rows_per_part"),
        (lambda: CurateConfig(examples=-1), "examples"),
        (lambda: CurateConfig(keep=("size",)), "quality, length, source"),
        (lambda: CurateConfig(keep=("length", "length")), "name each once"),
        (lambda: CurateConfig(quality="score"), "module:attribute"),
        (lambda: CurateConfig(second_look=("score",)), "unigram, word_order, embedding_outlier"),
        (lambda: Dedup(threshold=1.2), "dedup.threshold"),
        (lambda: Dedup(threshold=0.2, recall=0.999, max_hashes=4), "dedup.max_hashes"),
        (lambda: Shingling(size=0), "shingling.size"),
        (lambda: Statistics(mads=0), "statistics.mads"),
    ],
)
def test_impossible_settings_name_the_fix(make: Any, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        make()
