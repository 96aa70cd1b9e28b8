"""A run's data on disk and by Ray Data: the same blocks in the same order as in one process, and made once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_training import WORDS, base, snapshot

from llmray import artifact
from llmray.artifact import Artifact
from llmray.data.snapshot import load_rows
from llmray.data.tables import parquet_bytes
from llmray.errors import InputError
from llmray.train import streamed
from llmray.train.blocks import Tokenized, joined
from llmray.train.packed import EXAMPLES
from llmray.train.packing import Block
from llmray.train.prepared import DATA, build, folder_of, open_prepared, prepare
from llmray.train.spec import TrainSpec
from llmray.train.template import load_tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def spec(root: Path) -> TrainSpec:
    """Of a snapshot in three files, with conversations that are split and texts to mix in."""
    long = [{"question": "Say it all.", "answer": " ".join(WORDS * 8)}]
    texts = [{"text": f"{number} {' '.join(WORDS)}"} for number in range(12)]
    whole = snapshot(root, more=[*long, *texts], validation=[21, 22, 23, 24])
    return TrainSpec(
        model=base(root, whole).uri, data=in_files(root, whole, 3).uri, max_length=64, too_long="split", mix=0.25
    )


def in_files(root: Path, data: Artifact, count: int) -> Artifact:
    """The same rows, dealt to several files."""
    rows = load_rows(data.uri)
    with artifact.draft("dataset", root_uri=str(root)) as draft:
        (draft.folder / "kept").mkdir()
        for part in range(count):
            dealt = rows.take(list(range(part, len(rows), count)))
            (draft.folder / "kept" / f"part-{part:05}.parquet").write_bytes(parquet_bytes(dealt))
        return draft.seal()


def content(blocks: Sequence[Block]) -> list[tuple[Any, ...]]:
    return [
        (
            block.rows,
            block.num_tokens,
            block.num_targets,
            *(getattr(block, name).tolist() for name in ("input_ids", "labels", "position_ids")),
        )
        for block in blocks
    ]


def test_rows_are_counted_over_all_parts_also_those_without_any() -> None:
    parts = [Tokenized(examples=EXAMPLES.empty_table(), counts=counts) for counts in ({"rows": 5}, {}, {"rows": 7}, {})]
    assert joined(parts).counts == {"rows": 12}


def test_blocks_are_counted_without_being_made(spec: TrainSpec) -> None:
    blocks = build(spec, load_tokenizer(spec.model)).train
    some = [len(blocks) - 1, 0, 3]
    made = [blocks[index] for index in some]
    assert blocks.tokens_and_targets(some) == (
        sum(block.num_tokens for block in made),
        sum(block.num_targets for block in made),
    )


def test_what_lies_in_the_folder_is_what_one_process_makes_and_is_made_once(spec: TrainSpec, tmp_path: Path) -> None:
    words = load_tokenizer(spec.model)
    made = build(spec, words)
    folder = prepare(spec, words, tmp_path)
    found = open_prepared(folder)
    assert content(found.train) == content(made.train)
    assert content(found.heldout) == content(made.heldout)
    assert found.counts == made.counts
    assert made.counts["split"] == 1
    assert len(made.heldout) > 0
    written = folder.stat().st_mtime_ns
    assert prepare(spec, None, tmp_path) == folder
    assert folder.stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / DATA).iterdir() if path.name != ".drafts"] == [folder.name]


def test_other_data_goes_into_another_folder(spec: TrainSpec, root: Path, tmp_path: Path) -> None:
    before = folder_of(spec, tmp_path)
    other = in_files(root, artifact.load(spec.data), 2)
    changed: dict[str, Any] = {
        "max_length": 96,
        "too_long": "truncate",
        "template": "plain",
        "seed": 1,
        "data": other.uri,
    }
    for name, value in changed.items():
        assert folder_of(TrainSpec(**{**vars_of(spec), name: value}), tmp_path) != before, name
    for name, value in {"lr": 1e-4, "zero": 3, "num_workers": 1}.items():
        assert folder_of(TrainSpec(**{**vars_of(spec), name: value}), tmp_path) == before, name


def vars_of(spec: TrainSpec) -> dict[str, Any]:
    names = ("model", "data", "max_length", "too_long", "mix")
    return {name: getattr(spec, name) for name in names}


def test_blocks_out_of_a_table_are_a_sequence(spec: TrainSpec) -> None:
    blocks = build(spec, load_tokenizer(spec.model)).train
    whole = content(list(blocks))
    assert content(blocks[1:3]) == whole[1:3]
    assert content([blocks[-1]]) == whole[-1:]
    with pytest.raises(IndexError):
        blocks[len(whole)]


@pytest.mark.ray
def test_ray_data_makes_the_same_blocks(
    ray_cluster: None, spec: TrainSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = load_tokenizer(spec.model)
    streamed.prepare_if_large(spec, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    streamed.prepare_if_large(spec, tmp_path, from_bytes=0)
    folder = folder_of(spec, tmp_path)
    assert len(list(folder.glob("*-00000*.arrow"))) == 6, "three parts, of two shapes"
    found, made = open_prepared(folder), build(spec, words)
    assert content(found.train) == content(made.train)
    assert content(found.heldout) == content(made.heldout)
    assert found.counts == made.counts
    with pytest.raises(InputError, match=r"row \d+ of test has \d+ tokens, more than train\.max_length \(64\)"):
        streamed.prepare_if_large(TrainSpec(**{**vars_of(spec), "too_long": "refuse"}), tmp_path, from_bytes=0)
