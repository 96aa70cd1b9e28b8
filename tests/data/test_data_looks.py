"""Personal data, evaluation sets, contradictory preferences, boilerplate, strange texts and meanings, in the whole flow."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from pure_curation import Curated, curate_purely, run_stages

from llmray.data import looks
from llmray.data.boilerplate import Boilerplate
from llmray.data.config import CurateConfig, Dedup
from llmray.data.contamination import Contamination
from llmray.data.corpus import key_of
from llmray.data.features import Statistics
from llmray.data.likelihood import WordOrder
from llmray.data.rows import parse_row
from llmray.data.rules import Outliers, Personal
from llmray.data.semantic import Semantic
from llmray.errors import ConfigError

PLAIN = {"statistics": Statistics(measures=()), "outliers": Outliers(rules=("empty",))}


def reasons(made: Curated) -> dict[int, list[dict[str, Any]]]:
    return {row["row"]: row["reasons"] for row in made.removed if row["reasons"]}


def texts(count: int) -> list[dict[str, str]]:
    """Documents of one vocabulary, no two alike."""
    draw = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ba", "de", "fi", "go", "ku") for b in ("la", "me", "no", "ri", "su", "ta")]
    return [{"text": " ".join(draw.choice(words, 60))} for _ in range(count)]


def test_personal_data_is_counted_masked_or_a_reason_to_go() -> None:
    rows = [{"text": "write to ada@example.org or call nobody"}, {"text": "nothing to see in this one here"}]

    def curated(action: Any) -> Curated:
        rules = Outliers(rules=("personal",), personal=Personal(action=action, kinds=("email",)))
        return curate_purely([rows], CurateConfig(statistics=Statistics(measures=()), outliers=rules))

    counted, masked, removed = curated("count"), curated("mask"), curated("remove")
    assert counted.report["personal"] == masked.report["personal"] == {"email": 1}
    assert "ada@example.org" in counted.kept[0]["text"]
    assert masked.kept[0]["text"] == "write to <EMAIL> or call nobody"
    assert masked.kept[0]["id"] != counted.kept[0]["id"]
    assert [failed["rule"] for failed in reasons(removed)[1]] == ["personal"]
    assert "personal" not in removed.report


def test_what_stands_in_an_evaluation_set_goes_and_the_item_is_named(tmp_path: Path) -> None:
    question = "how many apples are left in the basket when ada takes three of the twelve that bob had picked"
    held = tmp_path / "gsm.jsonl"
    held.write_bytes(orjson.dumps({"question": question, "answer": "nine"}) + b"\n")
    rows = [*texts(3), {"text": f"a page that quotes it: {question}, and goes on about something else"}]
    config = CurateConfig(**PLAIN, contamination=Contamination(sets=(f"gsm={held}",)))
    [failed] = reasons(curate_purely([rows], config))[4]
    assert (failed["rule"], failed["value"]) == ("contamination", 1.0)
    assert failed["detail"].startswith("holds 100% of item 1 of gsm")


def test_preferences_that_contradict_others_go_wherever_they_stand() -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    first = [pair("p", "a b c", "d e f"), pair("q", "one", "two"), pair("q", "two", "three"), pair("r", "x", "y")]
    second = [pair("p", "D e f", "a b c"), pair("q", "three", "one"), pair("r", "x", "z")]
    made = curate_purely([first, second], CurateConfig())
    assert made.report["rules"] == {"contradictory_preference": 3, "swapped_preference": 2}
    assert sorted(row["prompt"] for row in made.kept) == ["r", "r"]


def test_a_preference_that_fails_a_rule_or_a_limit_contradicts_nobody() -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    good, tale = texts(31)[30]["text"], "so very long a tale " * 2000
    others = [pair(f"p{at}", one["text"][at:], "no") for at, one in enumerate(texts(30))]
    sound = [pair("p", good, tale), pair("q", good, " "), pair("r", good, "no")]
    failing = [pair("p", tale, good), pair("q", " ", good)]
    rules = Outliers(rules=("empty", "swapped_preference", "contradictory_preference"))
    made = curate_purely([[*others, *sound, *failing]], CurateConfig(dedup=Dedup(near=False), outliers=rules))
    assert made.report["rules"] == {"length": 2, "empty": 1}
    assert {row["row"] for row in made.removed} == {34, 35}


@pytest.mark.parametrize("chunk_bytes", [300, 1 << 20])
def test_lines_that_many_texts_share_are_taken_out(chunk_bytes: int) -> None:
    footer = "All rights reserved by the makers of this page"
    rows = [{"text": f"{one['text']}\n{footer}"} for one in texts(12)]
    mostly = {"text": f"short\n{footer}"}
    strip = CurateConfig(**PLAIN, boilerplate=Boilerplate(action="strip"))
    made = curate_purely([rows, [mostly]], strip, chunk_bytes=chunk_bytes)
    assert made.report["stripped"]["rows"] == 13
    assert not any(footer in row["text"] for row in made.kept)
    remove = CurateConfig(**PLAIN, boilerplate=Boilerplate(action="remove"))
    made = curate_purely([rows, [mostly]], remove, chunk_bytes=chunk_bytes)
    assert made.report["rules"] == {"boilerplate": 1}
    assert "stripped" not in made.report


@pytest.mark.parametrize("action", ["strip", "remove"])
@pytest.mark.parametrize("lines_at_once", [4, 10_000_000])
def test_ten_copies_of_a_text_leave_one(action: Any, lines_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "PAIRS_AT_ONCE", lines_at_once)
    article = {"text": "\n".join(one["text"] for one in texts(3))}
    footer = "All rights reserved by the makers of this page"
    others = [{"text": f"{one['text']}\n{footer}"} for one in texts(30)[10:]]
    config = CurateConfig(**PLAIN, boilerplate=Boilerplate(action=action))
    made = curate_purely([[article] * 10, others, [{"text": f" {article['text']}"}]], config, chunk_bytes=600)
    assert made.report["repeats"] == {"exact": 10, "near": 0, "semantic": 0}
    assert made.report["rules"] == {}
    assert [row["text"].strip() for row in made.kept if row["source"] != "001.jsonl"] == [article["text"]]
    assert [footer in row["text"] for row in made.kept if row["source"] == "001.jsonl"] == [action == "remove"] * 20


PATTERN = [{"text": " ".join(f"w{(start + at) % 40}" for at in range(60 + start % 7))} for start in range(120)]
"""Word n is followed by word n + 1."""


@pytest.mark.parametrize(
    ("look", "usual", "strange"),
    [
        ("unigram", texts(120), " ".join(f"xq{n}zv" for n in range(60))),
        ("word_order", PATTERN, " ".join(f"w{(at * 17) % 40}" for at in range(60))),
        ("embedding_outlier", texts(120), " ".join(f"xq{n}zv" for n in range(60))),
    ],
)
def test_a_strange_text_is_found_however_the_others_are_cut(look: str, usual: list[Any], strange: str) -> None:
    config = CurateConfig(**PLAIN, second_look=(look,))
    made = curate_purely([[*usual, {"text": strange}]], config)
    assert [failed["rule"] for failed in reasons(made)[121]] == [look]
    assert made.report["rules"][look] < 12
    assert curate_purely([[*usual, {"text": strange}]], config, chunk_bytes=2000).files == made.files


@pytest.mark.parametrize("chunk_bytes", [4000, 1 << 20])
def test_a_sample_is_as_large_as_asked_however_many_rows_fail_or_are_copies(tmp_path: Path, chunk_bytes: int) -> None:
    rows = [*texts(120), *texts(1) * 200, *[{"text": " "}] * 900]
    (tmp_path / "a.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    config = CurateConfig(**PLAIN, second_look=("word_order",), word_order=WordOrder(sample=60))
    with run_stages([str(tmp_path / "a.jsonl")], config, chunk_bytes=chunk_bytes) as (job, _):
        assert looks.surveyed(job) == 120
        model = pickle.loads((job.work.path("fit/0") / "model.pickle").read_bytes())
    ids = [bytes.fromhex(parse_row(row).id) for row in rows[:120]]
    assert list(model.keys) == sorted(map(key_of, ids))[:60]


def bag(batch: Sequence[str]) -> np.ndarray[Any, Any]:
    """Texts by the letters they hold: what a model of meaning is to this test."""
    return np.array([[text.count(chr(97 + letter)) + 0.001 for letter in range(26)] for text in batch], float)


def test_rows_of_one_meaning_keep_the_best_and_name_it() -> None:
    rows = [
        {"text": "listen silent tinsel alpha beta gamma delta"},
        {"text": "delta gamma beta alpha tinsel silent enlist !"},
        {"text": "quick brown foxes jump over zany wizards"},
        {"question": "listen silent tinsel alpha?", "answer": "beta gamma delta and more of the same"},
    ]
    config = CurateConfig(**PLAIN, semantic=Semantic(embedding=f"{__name__}:bag", threshold=0.99))
    made = curate_purely([rows], config)
    [gone] = made.removed
    assert gone["match"] == "semantic"
    assert gone["similarity"] > 0.99
    assert gone["matched_id"] in made.ids
    assert made.report["repeats"] == {"exact": 0, "near": 0, "semantic": 1}
    assert {row["kept_id"] for row in made.clusters} == {gone["matched_id"]}
    assert curate_purely([rows[::-1]], config).ids != []
    assert curate_purely([rows], config, chunk_bytes=50).files == made.files


def test_a_near_repeat_of_a_row_that_goes_by_meaning_follows_it_into_its_cluster() -> None:
    words = texts(1)[0]["text"].split()
    said, copy, repeat = " ".join(words), "\t".join(words), " ".join(words[:-1])
    better = " ".join(words[::-1]) + " a"
    other = {"text": "quick brown foxes jump over zany wizards"}
    config = CurateConfig(**PLAIN, semantic=Semantic(embedding=f"{__name__}:bag", threshold=0.99))
    made = curate_purely([[{"text": text} for text in (said, copy, repeat, better)], [other]], config)
    [one, _] = made.kept
    assert one["text"] == better
    assert made.report["repeats"] == {"exact": 1, "near": 1, "semantic": 1}
    # What went names what it was found to repeat, and that names what stayed.
    gone = {row["match"]: row for row in made.removed}
    assert gone["semantic"]["matched_id"] == one["id"]
    assert gone["exact"]["matched_id"] == gone["near"]["matched_id"] == gone["semantic"]["id"]
    assert 0.8 < gone["near"]["similarity"] < gone["exact"]["similarity"] == 1.0
    # The cluster is whole, and says who stayed.
    assert {row["id"] for row in made.clusters} == {one["id"], *(row["id"] for row in made.removed)}
    assert {(row["cluster"], row["kept_id"]) for row in made.clusters} == {(one["id"], one["id"])}
    similarity = {row["id"]: row["similarity"] for row in made.clusters}
    assert similarity == {
        one["id"]: 1.0,
        gone["semantic"]["id"]: gone["semantic"]["similarity"],
        gone["exact"]["id"]: None,
        gone["near"]["id"]: None,
    }
    assert made.report["dedup"]["clusters"] == 1
    assert made.report["dedup"]["largest_cluster"] == 4


def test_a_second_look_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose among unigram, word_order, embedding_outlier"):
        CurateConfig(second_look=("magic",))
