"""From what people write to what cannot change."""

from pathlib import Path

import pytest

from llmray import artifact
from llmray.artifact import Artifact
from llmray.errors import InputError, NotFoundError
from llmray.flow.inputs import adopt_model, model_folder, resolve, source_files
from llmray.registry.registry import Registry


def sealed(kind: str, text: str) -> Artifact:
    with artifact.draft(kind) as draft:
        (draft.folder / "a.txt").write_text(text)
        return draft.seal()


@pytest.fixture
def registry() -> Registry:
    return Registry.open()


def test_every_way_to_name_a_thing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = sealed("dataset", "old"), sealed("dataset", "new")
    for each in (old, new):
        registry.put_artifact(each, name="docs")
    registry.move_alias("docs", "stable", old.digest, kind="dataset", actor="ada", reason="test")
    for what in ("docs@stable", "docs:1", old.digest, old.digest[:12], old.uri, f"file://{old.uri}", old):
        found = resolve(registry, what, kind="dataset")
        assert (found.digest, found.kind) == (old.digest, "dataset")
    assert resolve(registry, "docs@latest", kind="dataset") == new
    monkeypatch.chdir(Path(old.uri).parent)
    assert resolve(registry, Path(old.uri).name, kind="dataset").digest == old.digest


def test_a_thing_of_another_kind_is_refused(registry: Registry) -> None:
    model = sealed("model", "weights")
    registry.put_artifact(model, name="chat")
    for what in (model, model.uri):
        with pytest.raises(InputError, match="is of kind model, and one of kind dataset is needed"):
            resolve(registry, what, kind="dataset")
    with pytest.raises(NotFoundError):
        resolve(registry, model.digest, kind="dataset")


@pytest.mark.parametrize("what", ["docs@latest", "docs:1", "0123456789abcdef", "/no/such/folder"])
def test_what_does_not_exist_is_not_found(registry: Registry, what: str) -> None:
    with pytest.raises(NotFoundError):
        resolve(registry, what, kind="dataset")


def test_what_is_no_reference_says_how_to_write_one(registry: Registry) -> None:
    with pytest.raises(InputError, match="write name@alias"):
        resolve(registry, "docs", kind="dataset")


def test_a_registered_thing_whose_bytes_are_gone_is_not_found(registry: Registry) -> None:
    made = sealed("dataset", "x")
    registry.put_artifact(made, name="docs")
    (Path(made.uri) / artifact.MANIFEST).unlink()
    with pytest.raises(NotFoundError, match="holds no artifact"):
        resolve(registry, "docs@latest", kind="dataset")


def files_of(folder: Path) -> Path:
    (folder / ".cache").mkdir(parents=True)
    (folder / "adapter").mkdir()
    for name in ("config.json", "model.safetensors", "adapter/weights.bin", ".cache/junk"):
        (folder / name).write_text(name)
    return folder


def test_a_model_folder_becomes_an_artifact_and_stays_as_it_is(tmp_path: Path) -> None:
    source = files_of(tmp_path / "llama")
    adopted = adopt_model(source)
    assert adopted.kind == "model"
    assert adopted.config["name"] == "llama"
    assert sorted(path.relative_to(adopted.uri).as_posix() for path in Path(adopted.uri).rglob("*.*")) == [
        "adapter/weights.bin", "config.json", artifact.MANIFEST, "model.safetensors",
    ]  # fmt: skip
    assert artifact.verify(adopted) == []
    assert not (source / artifact.MANIFEST).exists()
    assert adopt_model(source).digest == adopted.digest


def test_a_link_in_the_hubs_cache_is_followed(tmp_path: Path) -> None:
    source = files_of(tmp_path / "snapshot")
    blob = tmp_path / "blob"
    (source / "model.safetensors").rename(blob)
    (source / "model.safetensors").symlink_to(blob)
    adopted = Path(adopt_model(source).uri) / "model.safetensors"
    assert not adopted.is_symlink()
    assert adopted.read_text() == "model.safetensors"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it has no config\.json"):
        adopt_model(tmp_path)


def test_which_names_are_models_of_hugging_face(tmp_path: Path) -> None:
    source = files_of(tmp_path / "llama")
    assert model_folder(str(source)) == source
    assert model_folder(adopt_model(source).uri) is None
    for reference in ("chat@production", "chat:3", "0123456789ab", "/no/such/folder", "./nothing", "s3://bucket/model"):
        assert model_folder(reference) is None
    with pytest.raises(NotFoundError, match="neither a folder nor to be had from the hub"):
        model_folder("nobody/has-this-model")


def test_source_files_are_known_by_name_and_content_and_not_by_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "sub").mkdir(parents=True)
        for name in ("a.jsonl", "sub/b.jsonl", "c.txt"):
            (tmp_path / place / name).write_text(name)
    here = source_files([str(tmp_path / "here" / "*.jsonl"), str(tmp_path / "here" / "sub" / "b.jsonl")])
    there = source_files([str(tmp_path / "there" / "**" / "*.jsonl")])
    assert [file.name for file in here] == ["a.jsonl", "sub/b.jsonl"]
    assert [(file.name, file.tag) for file in here] == [(file.name, file.tag) for file in there]
    assert all(Path(file.uri).is_file() for file in here)
    (tmp_path / "here" / "a.jsonl").write_text("changed")
    assert source_files([str(tmp_path / "here" / "a.jsonl")])[0].tag != here[0].tag


def test_sources_that_name_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sources: give at least one"):
        source_files([])
    with pytest.raises(NotFoundError, match="names no file"):
        source_files([str(tmp_path / "*.jsonl")])
