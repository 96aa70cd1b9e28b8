"""Adding to a snapshot on the shared Ray cluster: what is new is judged against what is there, which stays as it is."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from llmray import artifact
from llmray.artifact import Artifact
from llmray.data import index as index_module
from llmray.data.config import CurateConfig, Dedup
from llmray.data.index import OldRows
from llmray.data.minhash import Shingling
from llmray.data.normalize import Normalization
from llmray.data.rows import parse_row
from llmray.data.rules import Outliers
from llmray.data.snapshot import load_rows, write_snapshot
from llmray.errors import ConfigError, InputError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

CONFIG = CurateConfig(rows_per_part=50, outliers=Outliers(rules=("empty",)))
WORDS = [f"word{number}" for number in range(500)]
Write = Callable[[str, Any], str]


def texts(seed: int, count: int = 160) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randrange(30, 60))) for _ in range(count)]


def edited(text: str, words: int = 1) -> str:
    return " ".join([*text.split()[:-words], *(f"edit{number}" for number in range(words))])


def run(sources: list[str], config: CurateConfig = CONFIG, **given: Any) -> Artifact:
    from llmray.data.curate import curate

    return curate(sources, config=config, **given)


def table(made: Artifact, folder: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(made.local() / folder).to_pylist()
    return rows


def test_new_rows_are_held_against_old_ones(ray_cluster: None, write_lines: Write) -> None:
    before = texts(1)
    old = run([write_lines("old/a.jsonl", [{"text": text} for text in before])])
    new_texts = texts(2, 40)
    added = [
        {"text": before[3].upper()},
        {"text": edited(before[60])},
        {"text": edited(before[70]) + " longer"},
        *({"text": text} for text in new_texts),
        {"text": edited(new_texts[0])},
        {"text": before[150] + " \n"},
        {"text": " "},
    ]
    made = run([write_lines("new/b.jsonl", added)], against=old.uri)
    assert made.parents == {"against": old.digest}
    assert artifact.verify(made) == []
    assert made.report["rows"] == {"in": 46, "kept": 40, "removed": 6, "quarantined": 0}
    assert made.report["onto"] == {"digest": old.digest, "rows": 160, "repeated_by": 4}

    removed = {row["row"]: row for row in table(made, "removed")}
    expected = {1: before[3], 2: before[60], 3: before[70], 45: before[150]}
    for row, text in expected.items():
        assert removed[row]["matched_id"] == parse_row({"text": text}).id
        assert removed[row]["match"] == ("exact" if row in (1, 45) else "near")
    assert removed[44]["matched_id"] == parse_row({"text": new_texts[0]}).id
    assert removed[46]["reasons"][0]["rule"] == "empty"
    assert {row["kept_id"] for row in table(made, "clusters")} >= {removed[row]["matched_id"] for row in expected}

    rows = load_rows(made.uri)
    assert rows.num_rows == 200
    assert rows.slice(0, 160).equals(load_rows(old.uri))
    assert len(set(rows["id"].to_pylist())) == 200
    # The old parts are the same files, not copies of them.
    assert (old.local() / "kept/part-00000.parquet").samefile(made.local() / "kept/part-00000.parquet")
    assert "Added to snapshot" in (made.local() / "report.html").read_text()


def test_a_third_generation_knows_both_before_it(ray_cluster: None, write_lines: Write) -> None:
    first, second, third = texts(1), texts(2, 60), texts(3, 30)
    one = run([write_lines("one/a.jsonl", [{"text": text} for text in first])])
    two = run([write_lines("two/b.jsonl", [{"text": text} for text in second])], against=one.uri)
    added = [{"text": text} for text in (*third, first[0], edited(first[1]), second[0], edited(second[1]))]
    three = run([write_lines("three/c.jsonl", added)], against=two.uri)
    assert three.report["rows"] == {"in": 34, "kept": 30, "removed": 4, "quarantined": 0}
    matched = [row["matched_id"] for row in table(three, "removed")]
    assert matched == [parse_row({"text": text}).id for text in (first[0], first[1], second[0], second[1])]
    assert load_rows(three.uri).num_rows == 250
    assert OldRows(folder=three.local()).num_rows == 250
    again = run([write_lines("three/c.jsonl", added)], against=three.uri)
    assert again.report["rows"] == {"in": 34, "kept": 0, "removed": 34, "quarantined": 0}
    assert load_rows(again.uri).equals(load_rows(three.uri))


def test_only_old_rows_that_are_candidates_are_read(
    ray_cluster: None, write_lines: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pure_curation import run_stages

    before = texts(1)
    old = run([write_lines("old/a.jsonl", [{"text": text} for text in before])])
    read: list[int] = []
    real = OldRows.read

    def counted(self: OldRows, rows: Any, columns: Any) -> Any:
        read.extend(rows.tolist())
        return real(self, rows, columns)

    monkeypatch.setattr(OldRows, "read", counted)
    added = [{"text": text} for text in (*texts(2, 30), before[5], edited(before[90]))]
    config = replace(CONFIG, examples=0)
    with run_stages([write_lines("new/b.jsonl", added)], config, onto=(old.uri, old.digest)) as (_, settled):
        assert settled["removed"] == 2
    assert read == [90]


def test_usual_lengths_stay_those_of_the_first_rows(ray_cluster: None, write_lines: Write) -> None:
    old = run([write_lines("old/a.jsonl", [{"text": text} for text in texts(1)])])
    giants = [{"text": " ".join(f"g{row}x{at}" for at in range(3000))} for row in range(20)]
    made = run([write_lines("new/b.jsonl", [*giants, {"text": texts(5, 1)[0]}])], against=old.uri)
    assert made.report["rules"] == {"length": 20}
    assert made.report["limits"] == old.report["limits"]


@pytest.mark.parametrize(
    ("dedup", "field"),
    [
        (Dedup(shingling=Shingling(size=4)), "dedup.shingling"),
        (Dedup(normalization=Normalization(case=False)), "dedup.normalization"),
        (Dedup(threshold=0.6), "dedup.num_bands"),
        (Dedup(exact_by="prompt"), "dedup.exact_by"),
    ],
)
def test_other_settings_are_refused(ray_cluster: None, write_lines: Write, dedup: Dedup, field: str) -> None:
    source = write_lines("a.jsonl", [{"text": text} for text in texts(1, 20)])
    old = run([source])
    with pytest.raises(ConfigError, match=rf"{field} is .*was made with"):
        run([source], replace(CONFIG, dedup=dedup), against=old.uri)
    with pytest.raises(ConfigError, match="seed is 1"):
        run([source], replace(CONFIG, seed=1), against=old.uri)
    with pytest.raises(ConfigError, match="learns from all of the data"):
        run([source], replace(CONFIG, second_look=("unigram",)), against=old.uri)


def test_a_snapshot_without_an_index_says_what_to_do(ray_cluster: None, write_lines: Write) -> None:
    written = write_snapshot([{"text": text} for text in texts(1, 20)], source="s")
    source = write_lines("a.jsonl", [{"text": text} for text in texts(2, 20)])
    with pytest.raises(InputError, match=r"has no index: .* Curate it once by itself"):
        run([source], against=written.uri)
    curated = run([f"{written.uri}/kept"])
    assert run([source], against=curated.uri).report["onto"]["rows"] == 20


def test_the_index_in_many_shards_finds_the_same(write_lines: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from pure_curation import run_stages

    source = write_lines("a.jsonl", [{"text": text} for text in texts(1, 60)])
    found: list[Any] = []
    for entries in (index_module.SHARD_ENTRIES, 100):
        monkeypatch.setattr(index_module, "SHARD_ENTRIES", entries)
        with run_stages([source], CONFIG) as (job, settled):
            shards = [job.work.path(f"index/{at:05d}") for at in range(-(-settled["kept"] * 16 // entries))]
            found.append(
                {
                    name: np.concatenate(
                        [np.load(shard / f"{name}-{at:05d}.npy") for at, shard in enumerate(shards)], -1
                    )
                    for name in ("exact", "exact-rows", "bands", "bands-rows")
                }
            )
    assert len(found[0]["bands"]) == 960
    for name, whole in found[0].items():
        assert np.array_equal(whole, found[1][name]), name


def test_nothing_new_to_read(ray_cluster: None, write_lines: Write, tmp_path: Path) -> None:
    old = run([write_lines("a.jsonl", [{"text": text} for text in texts(1, 20)])])
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(InputError, match="none of the 1 records can be read"):
        run([str(tmp_path / "bad.jsonl")], against=old.uri)
