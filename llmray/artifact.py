"""An artifact: an immutable folder whose `manifest.json` says what is in it and what it was made from.

Datasets, models and evaluations are all this one thing. The digest covers the kind and the digests of the files: the
same bytes made twice are the same artifact, whoever made them and when. Parents, configuration and report travel in
the manifest and stay out of the digest. Rejected: mutable "latest" folders, and a digest over file times.
"""

import json
import posixpath
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmray import storage
from llmray.digest import canonical_json, digest_file, digest_of
from llmray.errors import ConfigError, InputError, NotFoundError

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    kind: str
    """`dataset`, `model`, `evaluation`, `report`."""
    digest: str
    """Hexadecimal SHA-256 over the kind and the digests of the files."""
    uri: str
    """Folder that holds the files."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """Role to digest of what it was made from: `{"data": …, "base": …}`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The settings that made it."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """Figures about it: row counts, losses, scores."""

    def __str__(self) -> str:
        return f"{self.kind} {self.digest[:12]}"

    def local(self) -> Path:
        """A local folder with the files: a download where the artifact lies in an object store."""
        return storage.local_copy(self.uri)


class Draft:
    """A folder being filled; `seal` turns it into an artifact."""

    def __init__(self, root_uri: str, kind: str, folder: Path) -> None:
        self.folder = folder
        self._root_uri = root_uri
        self._kind = kind

    def seal(
        self,
        *,
        parents: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        report: Mapping[str, Any] | None = None,
        outside_digest: Sequence[str] = (),
        known: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Publish the folder at `<root>/<kind>/<digest>` and return the artifact.

        Args:
            outside_digest: relative paths kept out of the digest (a report with times in it, say).
            known: relative path to SHA-256 of files that need not be read again: they were hashed as they were
                written, or come from an artifact whose manifest says it.

        Raises:
            InputError: the folder is empty.
        """
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        known = known or {}
        files = {
            (name := path.relative_to(self.folder).as_posix()): {
                "sha256": known.get(name) or digest_file(path),
                "bytes": path.stat().st_size,
            }
            for path in paths
        }
        if not files:
            raise InputError(f"an artifact of kind {self._kind} needs at least one file")
        identity = {name: entry["sha256"] for name, entry in files.items() if name not in outside_digest}
        digest = digest_of({"kind": self._kind, "files": identity})
        manifest = {
            "kind": self._kind,
            "digest": digest,
            "files": files,
            "parents": dict(parents or {}),
            "config": dict(config or {}),
            "report": dict(report or {}),
        }
        (self.folder / MANIFEST).write_bytes(canonical_json(manifest))
        uri = storage.join(self._root_uri, self._kind, digest[:24])
        if _damaged(uri):
            storage.remove(uri)
        storage.publish_folder(self.folder, uri, last=MANIFEST)
        return load(uri)


@contextmanager
def draft(kind: str, *, root_uri: str | None = None) -> Iterator[Draft]:
    """Open a folder to fill; leaving without `seal` leaves nothing behind.

    Args:
        kind: what it will be: `dataset`, `model`, `evaluation`.
        root_uri: where artifacts live; `<home>/artifacts` by default.
    """
    root = root_uri or storage.join(storage.home(), "artifacts")
    with storage.draft_folder(root) as folder:
        yield Draft(root, kind, folder)


def load(uri: str) -> Artifact:
    """Read the artifact that lies at a folder.

    Raises:
        NotFoundError: there is no manifest, so nothing was published there.
    """
    try:
        manifest = json.loads(storage.read_bytes(storage.join(uri, MANIFEST)))
    except (NotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{uri} holds no artifact: it has no {MANIFEST}") from error
    return Artifact(
        kind=manifest["kind"],
        digest=manifest["digest"],
        uri=uri,
        parents=manifest["parents"],
        config=manifest["config"],
        report=manifest["report"],
    )


def copy(artifact: Artifact, uri: str) -> None:
    """Publish the same files at a folder of somebody's choice; nothing happens where they are already.

    Raises:
        ConfigError: the folder holds another artifact.
    """
    if storage.exists(storage.join(uri, MANIFEST)):
        if load(uri).digest != artifact.digest:
            raise ConfigError(f"{uri} already holds another artifact: name another folder, or remove that one")
        return
    with storage.draft_folder(posixpath.dirname(uri.rstrip("/")) or ".") as folder:
        shutil.copytree(artifact.local(), folder / "copy")
        storage.publish_folder(folder / "copy", uri, last=MANIFEST)


def missing(artifact: Artifact) -> list[str]:
    """Relative paths of files that are gone or have another size than they were sealed with: quick, reads no content."""
    files = _files(artifact)
    if not storage.is_local(artifact.uri):
        return [name for name in files if not storage.exists(storage.join(artifact.uri, name))]
    folder = artifact.local()
    return [
        name
        for name, entry in files.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != entry["bytes"]
    ]


def verify(artifact: Artifact) -> list[str]:
    """Relative paths of files that are missing or no longer have the bytes they were sealed with."""
    folder = artifact.local()
    return [
        name
        for name, entry in _files(artifact).items()
        if not (folder / name).is_file() or digest_file(folder / name) != entry["sha256"]
    ]


def digests(artifact: Artifact) -> dict[str, str]:
    """Relative path to SHA-256 of every file, as they were sealed."""
    return {name: entry["sha256"] for name, entry in _files(artifact).items()}


def _damaged(uri: str) -> bool:
    """Whether an artifact was published here once and has lost files since."""
    if storage.exists(storage.join(uri, MANIFEST)):
        return bool(missing(load(uri)))
    return storage.is_local(uri) and storage.exists(uri)  # here folders appear whole; elsewhere the manifest comes last


def _files(artifact: Artifact) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(storage.read_bytes(storage.join(artifact.uri, MANIFEST)))
    return manifest["files"]
