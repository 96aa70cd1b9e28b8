"""Files: whole or not at all, the same in an object store as on a disk, and clear about a disk that fails."""

import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import pytest

from llmray import artifact, storage
from llmray.artifact import Artifact
from llmray.errors import InputError, NotFoundError, UnavailableError


@pytest.fixture(params=["local", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder of every kind of store."""
    if request.param == "memory":
        uri = f"memory://{uuid.uuid4().hex}"
        yield uri
        storage.remove(uri)
        return
    yield f"file://{tmp_path}/root" if request.param == "file" else f"{tmp_path}/root"


def test_what_is_written_is_read(root: str) -> None:
    uri = storage.join(root, "a/b", "/c.txt")
    assert uri == f"{root}/a/b/c.txt"
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"two"
    with storage.open_read(uri) as file:
        assert file.read(2) == b"tw"


def test_what_is_removed_is_gone_and_removing_nothing_is_nothing(root: str) -> None:
    for name in ("f/a", "f/g/b", "h"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.remove(storage.join(root, "f"))
    storage.remove(storage.join(root, "never"))
    assert not storage.exists(storage.join(root, "f/g/b"))
    assert storage.exists(storage.join(root, "h"))


def test_what_does_not_exist_is_not_found(root: str) -> None:
    for read in (storage.read_bytes, storage.local_copy, artifact.load, lambda uri: storage.expand([uri])):
        with pytest.raises(NotFoundError):
            read(storage.join(root, "nothing"))


def test_globs_and_folders_name_every_file_once(root: str) -> None:
    names = ["raw/a.jsonl", "raw/b.jsonl", "raw/deep/c.jsonl", "raw/d.txt", "raw/.hidden/e.jsonl", "raw/.f"]
    for name in names:
        storage.write_bytes(storage.join(root, name), name.encode())
    bare = root.removeprefix("file://")

    def found(*patterns: str) -> list[str]:
        uris = storage.expand([storage.join(root, pattern) for pattern in patterns])
        assert all(storage.exists(uri) for uri in uris)
        return [uri.removeprefix(f"{bare}/") if "://" not in uri else uri.rpartition("raw/")[2] for uri in uris]

    def short(*chosen: str) -> list[str]:
        return [name if "://" not in bare else name.removeprefix("raw/") for name in chosen]

    assert found("raw/*.jsonl") == short("raw/a.jsonl", "raw/b.jsonl")
    assert found("raw/**/*.jsonl", "raw/a.jsonl")[:1] == short("raw/a.jsonl")
    assert found("raw") == short("raw/a.jsonl", "raw/b.jsonl", "raw/d.txt", "raw/deep/c.jsonl")
    assert found("raw/a.jsonl", "raw/a.jsonl") == short("raw/a.jsonl")
    with pytest.raises(NotFoundError, match="names no file: check the path, or quote the glob"):
        found("raw/*.jsonl", "raw/*.parquet")


def test_a_tag_changes_with_the_content(root: str) -> None:
    uri = storage.join(root, "a")
    storage.write_bytes(uri, b"one")
    before = storage.content_tag(uri)
    assert storage.content_tag(uri) == before
    storage.write_bytes(uri, b"other")
    assert storage.content_tag(uri) != before


def seal(root: str, text: str = "text", **more: Any) -> Artifact:
    with artifact.draft("dataset", root_uri=root) as draft:
        (draft.folder / "kept").mkdir()
        (draft.folder / "kept" / "a.txt").write_text(text)
        (draft.folder / "report.txt").write_text(f"{more}")
        return draft.seal(outside_digest=["report.txt"], **more)


def test_an_artifact_is_the_same_in_every_store(root: str, tmp_path: Path) -> None:
    made = seal(root, parents={"from": "a" * 64}, config={"k": 1}, report={"rows": 2})
    assert artifact.load(made.uri) == made
    assert (made.parents, made.config, made.report) == ({"from": "a" * 64}, {"k": 1}, {"rows": 2})
    assert (made.local() / "kept" / "a.txt").read_text() == "text"
    assert made.local() == made.local()
    assert artifact.missing(made) == artifact.verify(made) == []
    assert made.digest == seal(f"{tmp_path}/other").digest != seal(f"{tmp_path}/other", "else").digest


def test_sealing_the_same_again_keeps_what_is_there(root: str) -> None:
    first = seal(root, report={"seconds": 1})
    again = seal(root, report={"seconds": 2})
    assert again == first
    assert again.report == {"seconds": 1}


def test_an_artifact_that_lost_a_file_says_so_and_sealing_it_again_heals_it(root: str) -> None:
    made = seal(root)
    storage.remove(storage.join(made.uri, "kept/a.txt"))
    assert artifact.missing(made) == ["kept/a.txt"]
    assert artifact.missing(seal(root)) == []
    assert storage.read_bytes(storage.join(made.uri, "kept/a.txt")) == b"text"


def test_a_changed_byte_is_found_by_verifying(tmp_path: Path) -> None:
    made = seal(str(tmp_path))
    (made.local() / "kept" / "a.txt").write_text("test")
    assert artifact.missing(made) == []
    assert artifact.verify(made) == ["kept/a.txt"]


def test_a_draft_that_is_not_sealed_leaves_nothing(root: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mid-way"), artifact.draft("dataset", root_uri=root) as draft:
        (draft.folder / "a.txt").write_text("half")
        raise ValueError("mid-way")
    assert not draft.folder.exists()
    assert not storage.exists(storage.join(root, "dataset"))
    with pytest.raises(InputError, match="needs at least one file"), artifact.draft("dataset", root_uri=root) as draft:
        draft.seal()


def test_a_folder_in_a_store_becomes_visible_with_its_last_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"memory://{uuid.uuid4().hex}"
    store = fsspec.filesystem("memory")
    put = type(store).put_file
    order: list[str] = []

    def watched(self: Any, source: str, target: str, **more: Any) -> None:
        order.append(Path(source).name)
        put(self, source, target, **more)

    monkeypatch.setattr(type(store), "put_file", watched)
    seal(uri)
    assert order == ["a.txt", "report.txt", artifact.MANIFEST]


def test_publishing_into_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "done").write_text("x")
    with pytest.raises(InputError, match="holds other files: name a new folder, or empty it"):
        storage.publish_folder(draft, str(tmp_path / "mine"), last="done")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        storage.publish_folder(draft, str(tmp_path / "file"), last="done")


def test_readers_see_one_whole_version_whoever_writes(tmp_path: Path) -> None:
    """Four writers of 100 KB each, and a reader that looks all the while."""
    uri = str(tmp_path / "shared")
    versions = {bytes([65 + n]) * 100_000 for n in range(4)}
    storage.write_bytes(uri, min(versions))
    over = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not over.is_set():
            seen.append(storage.read_bytes(uri))

    def write(version: bytes) -> None:
        for _ in range(12):
            storage.write_bytes(uri, version)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(version,)) for version in versions]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert seen
    assert set(seen) <= versions
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


TROUBLE = [
    (errno.ENOSPC, "the disk is full"),
    (errno.EROFS, "read-only"),
    (errno.EDQUOT, "quota"),
    (errno.EACCES, "permission"),
]


def failing(number: int) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(("number", "said"), TROUBLE)
def test_a_disk_that_fails_says_what_to_do_and_leaves_the_old_file(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(storage.os, call, failing(number))
            with pytest.raises(UnavailableError, match=f"cannot write .*file: .*{said}.*set LLMRAY_HOME elsewhere"):
                storage.write_bytes(uri, b"new")
        assert storage.read_bytes(uri) == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["mkdir", "rename"])
def test_a_disk_that_fails_under_an_artifact_is_unavailable_too(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(errno.ENOSPC))
        with pytest.raises(UnavailableError, match="the disk is full"):
            seal(f"{tmp_path}/root")


def test_another_fault_of_the_system_is_not_renamed() -> None:
    with pytest.raises(OSError, match="Input/output") as caught, storage.disk_errors("x"):
        failing(errno.EIO)()
    assert caught.value.errno == errno.EIO


def test_a_path_through_a_file_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for below in ("file/a", "file/a/b"):
        with pytest.raises(InputError, match="a part of that path is a file"):
            storage.write_bytes(str(tmp_path / below), b"x")
        with pytest.raises(InputError, match="a part of that path is a file"):
            seal(str(tmp_path / below))
    for home in ("file", "file/home"):
        monkeypatch.setenv("LLMRAY_HOME", str(tmp_path / home))
        with pytest.raises(InputError, match="a part of that path is a file"):
            storage.local_home()


def test_where_things_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMRAY_HOME", str(tmp_path / "new"))
    assert storage.home() == str(tmp_path / "new")
    assert storage.local_home() == tmp_path / "new"
    assert (tmp_path / "new").is_dir()
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("LLMRAY_HOME", "memory://bucket")
    assert storage.home() == "memory://bucket"
    assert storage.local_home() == tmp_path / "me" / ".llmray"
    monkeypatch.delenv("LLMRAY_HOME")
    assert storage.home() == str(tmp_path / "me" / ".llmray")


def test_local_paths_and_others() -> None:
    assert storage.local_path("file:///a/b") == Path("/a/b")
    assert storage.local_path("a/b") == Path("a/b")
    assert storage.is_local("/a")
    assert not storage.is_local("s3://bucket/a")
    with pytest.raises(InputError, match="is not a local path"):
        storage.local_path("s3://bucket/a")
    with pytest.raises(InputError, match="nosuch://x cannot be opened"):
        storage.read_bytes("nosuch://x")


def test_the_same_files_elsewhere_have_the_same_names() -> None:
    base, names = storage.names_below(["s3://b/raw/a.jsonl", "s3://b/raw/sub/c.jsonl"])
    assert (base, names) == ("s3://b/raw", ["a.jsonl", "sub/c.jsonl"])
    assert storage.names_below(["/x/a"]) == ("/x", ["a"])
