"""Curation on the shared Ray cluster, from files to a published snapshot."""

import fcntl
import gzip
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from pyarrow import parquet

from llmray import artifact
from llmray.artifact import Artifact
from llmray.data.config import CurateConfig, Dedup
from llmray.data.readers import Chunk
from llmray.data.rules import Outliers
from llmray.data.snapshot import dataset, load_rows
from llmray.errors import ConfigError, InputError, NotFoundError

pytestmark = [
    pytest.mark.ray,
    # Ray 2.60 sets its own deprecated fields whenever a DataContext is made.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

CONFIG = CurateConfig(rows_per_part=40, outliers=Outliers(min_words=2))
WORDS = [f"word{number}" for number in range(400)]


def corpus(seed: int = 0) -> list[dict[str, Any]]:
    """Rows of all kinds with exact and near repeats and junk."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(120):
        words = chance.choices(WORDS, k=chance.randrange(20, 60))
        text = " ".join(words)
        rows.append({"text": text, "group": f"g{number % 40}"})
        if number % 3 == 0:
            rows.append({"text": text.upper()})
        if number % 4 == 0:
            rows.append({"text": f"{text} {chance.choice(WORDS)}"})
        if number % 5 == 0:
            rows.append({"question": f"What is {number}?", "answer": text})
        if number % 10 == 0:
            rows.append({"question": f"And what is {number}?", "answer": text})
            rows.append({"prompt": "p", "chosen": text, "rejected": "no"})
            rows.append({"question": "Which?", "answer": "a", "choices": ["a", f"b{number}"]})
            rows.append({"text": ""})
    return rows


def spread(folder: Path, rows: list[dict[str, Any]], num_files: int, bad: bool = True) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    uris = []
    for number in range(num_files):
        lines = [orjson.dumps(row) for row in rows[number::num_files]]
        if bad:
            lines.insert(3, b'{"text": 1}')
        data = b"\n".join(lines)
        name = f"part-{number}.jsonl" + (".gz" if number % 2 else "")
        (folder / name).write_bytes(gzip.compress(data, mtime=0) if number % 2 else data)
        uris.append(str(folder / name))
    return uris


def run(sources: list[str], **given: Any) -> Artifact:
    from llmray.data.curate import curate

    return curate(sources, **{"config": CONFIG, **given})


def files_of(made: Artifact) -> dict[str, bytes]:
    return {
        path.relative_to(made.local()).as_posix(): path.read_bytes()
        for path in sorted(made.local().rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return spread(tmp_path_factory.mktemp("raw"), corpus(), 3)


def test_a_snapshot_and_its_accounts(ray_cluster: None, sources: list[str]) -> None:
    made = run(sources, parents={"raw": "0" * 64})
    rows = made.report["rows"]
    assert rows["in"] == rows["kept"] + rows["removed"] + rows["quarantined"] == len(corpus()) + 3
    assert rows["quarantined"] == 3
    assert made.parents == {"raw": "0" * 64}
    assert artifact.verify(made) == []

    kept = load_rows(made.uri)
    removed = parquet.read_table(made.local() / "removed")
    assert (kept.num_rows, removed.num_rows) == (rows["kept"], rows["removed"])
    assert len(list((made.local() / "kept").iterdir())) == -(-rows["kept"] // 40)
    for table in (kept, removed):
        in_order = list(zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True))
        assert in_order == sorted(in_order)
    places = [(row["source"], row["row"]) for table in (kept, removed) for row in table.to_pylist()]
    quarantine = [
        orjson.loads(line) for line in (made.local() / "quarantine/quarantined.jsonl").read_bytes().splitlines()
    ]
    places += [(row["source"], row["row"]) for row in quarantine]
    assert len(set(places)) == len(places) == rows["in"]
    assert quarantine[0] == {
        "source": "part-0.jsonl",
        "row": 4,
        "reason": "text is a number, not a string",
        "raw": '{"text": 1}',
    }


def test_each_removed_row_says_why(ray_cluster: None, sources: list[str]) -> None:
    made = run(sources)
    kept = set(load_rows(made.uri)["id"].to_pylist())
    for row in parquet.read_table(made.local() / "removed").to_pylist():
        if row["match"] is None:
            assert row["reasons"]
            assert row["matched_id"] is row["similarity"] is None
        else:
            assert row["reasons"] == []
            assert row["matched_id"] in kept
            assert row["similarity"] == 1.0 if row["match"] == "exact" else 0.8 <= row["similarity"] <= 1.0
    clusters = parquet.read_table(made.local() / "clusters").to_pylist()
    assert {row["kept_id"] for row in clusters} <= kept
    assert len({row["cluster"] for row in clusters}) == made.report["dedup"]["clusters"] > 30


def test_a_group_lies_on_one_side(ray_cluster: None, sources: list[str]) -> None:
    sides: dict[str, set[str]] = {}
    for row in load_rows(run(sources).uri, columns=["group", "split"]).to_pylist():
        if row["group"]:
            sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())


def test_the_same_bytes_whatever_the_order_and_the_pieces(
    ray_cluster: None, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.data import DataContext

    from llmray.data import curate as module

    one = files_of(run(sources, root_uri=str(tmp_path / "one")))
    context = DataContext.get_current().copy()
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(cpu=1)
    monkeypatch.setattr(module, "NAMES_ALONE", 500)
    monkeypatch.setattr(module, "CHUNKS_ALONE", 1)
    with DataContext.current(context):
        other = files_of(run(sources[::-1], root_uri=str(tmp_path / "other"), chunk_bytes=3000))
    assert ray.cluster_resources()["CPU"] >= 2
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_names_are_shared_when_that_pays_and_when_memory_asks_for_it() -> None:
    from llmray.data.curate import NAMES_ALONE, NAMES_AT_MOST, num_shards

    assert num_shards(0, 8) == num_shards(NAMES_ALONE, 8) == 1
    assert num_shards(NAMES_ALONE + 1, 8) == 2
    assert num_shards(100 * NAMES_ALONE, 2) == 10
    assert num_shards(100 * NAMES_ALONE, 64) == 100
    assert num_shards(1000 * NAMES_AT_MOST, 64) == 1000


def test_nothing_is_left_of_the_work(ray_cluster: None, sources: list[str], tmp_path: Path, llmray_home: Path) -> None:
    run(sources)
    run(sources, work_uri=str(tmp_path / "work"))
    assert list((llmray_home / "work").iterdir()) == list((tmp_path / "work").iterdir()) == []


def test_the_same_data_elsewhere_has_the_same_digest(ray_cluster: None, sources: list[str], tmp_path: Path) -> None:
    there = spread(tmp_path / "else" / "where", corpus(), 3)
    one = run(sources)
    # A root of its own: where the digest is published already, the manifest that is there stays.
    other = run([str(tmp_path / "else")], root_uri=str(tmp_path / "root"))
    assert one.digest == other.digest
    assert other.config["source_root"] == str(Path(there[0]).parent)


def test_the_report_stands_alone(ray_cluster: None, sources: list[str]) -> None:
    made = run(sources)
    page = (made.local() / "report.html").read_text()
    assert "<svg" in page
    for outside in ("http://", "https://", "src=", "<link"):
        assert outside not in page
    report = orjson.loads((made.local() / "report.json").read_bytes())
    assert report["rows"] == made.report["rows"]
    example = report["examples"]["near repeat"][0]
    assert example["id"] != example["repeats"]["id"]
    assert {"empty", "exact repeat", "near repeat"} <= set(report["examples"])


def test_a_copy_at_the_output(ray_cluster: None, sources: list[str], tmp_path: Path) -> None:
    there = str(tmp_path / "out")
    made = run(sources, output_uri=there)
    assert artifact.load(there).digest == made.digest
    assert artifact.verify(artifact.load(there)) == []
    run(sources, output_uri=there)
    with pytest.raises(ConfigError, match="already holds another artifact"):
        run(sources[:1], output_uri=there)


def test_ray_reads_the_snapshot(ray_cluster: None, sources: list[str]) -> None:
    made = run(sources)
    rows = dataset(made.uri, shape="text", split="train").take_all()
    assert {row["id"] for row in rows} == set(load_rows(made.uri, shape="text", split="train")["id"].to_pylist())
    assert len(rows) > 20


def test_damaged_files_lose_no_more_than_they_must(ray_cluster: None, tmp_path: Path) -> None:
    whole = gzip.compress(b"\n".join(orjson.dumps({"text": f"a row of number {n} {WORDS[n]}"}) for n in range(200)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.parquet").write_bytes(b"noise")
    (tmp_path / "good.jsonl").write_bytes(b'{"text": "good old row here"}\n')
    made = run([str(tmp_path)], config=CurateConfig(dedup=Dedup(near=False), outliers=Outliers(rules=())))
    losses = {loss["source"]: loss for loss in made.report["losses"]}
    assert set(losses) == {"cut.jsonl.gz", "noise.parquet"}
    assert made.report["sources"]["cut.jsonl.gz"]["kept"] == losses["cut.jsonl.gz"]["after_row"] > 20
    lost = [orjson.loads(line) for line in (made.local() / "quarantine/lost.jsonl").read_bytes().splitlines()]
    assert {record["source"] for record in lost} == set(losses)
    assert "Could not be read" in (made.local() / "report.html").read_text()


def test_nothing_to_curate(
    ray_cluster: None, tmp_path: Path, llmray_home: Path, write_lines: Callable[[str, Any], str]
) -> None:
    with pytest.raises(NotFoundError, match="names no file"):
        run([str(tmp_path / "none-*.jsonl")])
    (tmp_path / "table.xlsx").write_text("a,b\n")
    with pytest.raises(InputError, match="cannot be read: name files"):
        run([str(tmp_path / "table.xlsx")])
    with pytest.raises(InputError, match="hold no rows"):
        run([write_lines("empty.jsonl", [])])
    with pytest.raises(InputError, match=r"none of the 2 records can be read; the first is bad\.jsonl, row 1: not an"):
        run([write_lines("bad.jsonl", [1, 2])])
    with pytest.raises(InputError, match="none of the 1 records can be read"):
        run([write_lines("only_bad.jsonl", [1])], config=CurateConfig(second_look=("word_order", "embedding_outlier")))
    (tmp_path / "garbage.parquet").write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"none of the 1 records can be read; the first is garbage\.parquet"):
        run([str(tmp_path / "garbage.parquet")])
    with pytest.raises(InputError, match="all 2 rows were removed"):
        run([write_lines("junk.jsonl", [{"text": ""}, {"text": " "}])])
    assert not (llmray_home / "artifacts" / "dataset").exists()
    assert list((llmray_home / "work").iterdir()) == []


@pytest.mark.parametrize("chunks_alone", [128, 1])
def test_what_a_worker_cannot_read_is_said_in_its_words_and_no_work_is_left(
    ray_cluster: None, sources: list[str], llmray_home: Path, monkeypatch: pytest.MonkeyPatch, chunks_alone: int
) -> None:
    """By plain tasks, and by a stream of Ray Data."""
    from llmray.data import curate as module

    monkeypatch.setattr(module, "CHUNKS_ALONE", chunks_alone)
    there = module.chunks

    def with_one_gone(uri: str, name: str, **given: Any) -> list[Chunk]:
        found: list[Chunk] = there(uri, name, **given)
        return [*found, Chunk(uri=f"{uri}.gone.jsonl", source=name)]

    monkeypatch.setattr(module, "chunks", with_one_gone)
    with pytest.raises(NotFoundError) as raised:
        run(sources[:1], chunk_bytes=300)
    assert str(raised.value) == f"{sources[0]}.gone.jsonl does not exist"
    assert list((llmray_home / "work").iterdir()) == []


def test_tasks_that_run_are_taken_back_when_one_fails(ray_cluster: None, tmp_path: Path) -> None:
    from llmray.data.tasks import finished

    def goes_on(folder: Path) -> None:
        with (folder / "held").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (folder / "began").touch()
            threading.Event().wait()

    def fails(folder: Path) -> None:
        while not (folder / "began").exists():
            threading.Event().wait(0.01)
        raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        list(finished(None, [(goes_on, (tmp_path,)), (fails, (tmp_path,))]))
    with (tmp_path / "held").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # for ever, if the task still ran


@pytest.mark.data
def test_real_questions_and_answers(ray_cluster: None) -> None:
    folder = os.environ.get("LLMRAY_DATA")
    if not folder:
        pytest.skip("LLMRAY_DATA names no folder with gsm8k_train.jsonl")
    made = run([f"{folder}/gsm8k_train.jsonl"], config=CurateConfig())
    rows = made.report["rows"]
    assert rows["in"] == 7473
    assert rows["quarantined"] == 0
    # Known to be clean: curated by hand, with a few templates that come up again.
    assert rows["kept"] > 7000
    kept = load_rows(made.uri, shape="messages")
    assert kept.num_rows == rows["kept"]
    assert all(turns[-1]["content"].count("####") == 1 for turns in kept["messages"].to_pylist())
