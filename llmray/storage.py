"""The one seam to files: any fsspec URI in, bytes or a local path out, and writes that appear whole or not at all.

A bare path is a local file. Local writes go to a sibling and are renamed; object stores publish an object when its
upload completes, so the same code is atomic there. Rejected: `pyarrow.fs` (fewer stores, and no globbing), and handing
fsspec objects around (every module would then know two kinds of path).
"""

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llmray.digest import digest_bytes, digest_file
from llmray.errors import InputError, NotFoundError, UnavailableError

_DISK_TROUBLE = {
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the disk is read-only",
    errno.EDQUOT: "the quota is used up",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
}


def home() -> str:
    """Root URI of everything that llmray keeps: `$LLMRAY_HOME`, or `~/.llmray`."""
    return os.environ.get("LLMRAY_HOME") or str(Path.home() / ".llmray")


def local_home() -> Path:
    """Local folder for what cannot live in an object store (the SQLite registry, caches): made if missing."""
    root = home()
    path = Path(root) if is_local(root) else Path.home() / ".llmray"
    with disk_errors(str(path)):
        path.mkdir(parents=True, exist_ok=True)
    return path


def is_local(uri: str) -> bool:
    """Whether the URI names a file of this machine."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path of a local URI.

    Raises:
        InputError: the URI names another store.
    """
    if not is_local(uri):
        raise InputError(f"{uri} is not a local path")
    return Path(uri.removeprefix("file://")).expanduser()


def join(uri: str, *parts: str) -> str:
    """The URI of something below a folder."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    if is_local(uri):
        return local_path(uri).exists()
    system, path = _system(uri)
    return bool(system.exists(path))


def expand(patterns: Sequence[str]) -> list[str]:
    """Every file that the URIs and globs name, sorted, each once; a folder stands for all files below it.

    What begins with a dot is left out, as in a shell, unless a pattern names it.

    Raises:
        NotFoundError: a pattern that names nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        system, path = _system(pattern)
        fixed = len(re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0])
        matches = [
            match
            for match in system.glob(path)
            if system.isfile(match) and (not _hidden(match[fixed:]) or _hidden(path[fixed:]))
        ]
        if system.isdir(path):
            matches = [match for match in system.find(path) if not _hidden(match[len(path) :])]
        if not matches:
            raise NotFoundError(f"{pattern} names no file: check the path, or quote the glob")
        found.update(str(system.unstrip_protocol(match)).removeprefix("file://") for match in matches)
    return sorted(found)


def names_below(uris: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that all files share, and each file's name below it: the same files elsewhere have the same names."""
    folders = [uri.rsplit("/", 1)[0].split("/") for uri in uris]
    shared: list[str] = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    base = "/".join(shared)
    return base, [uri[len(base) :].lstrip("/") for uri in uris]


@contextmanager
def open_read(uri: str) -> Iterator[IO[bytes]]:
    """Open any URI for reading bytes.

    Raises:
        NotFoundError: there is no such file.
    """
    system, path = _system(uri)
    try:
        file = system.open(path, "rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri} does not exist") from error
    with file:
        yield file


def content_tag(uri: str) -> str:
    """What changes when a file's content does: its SHA-256 for a local file, what the store itself says elsewhere."""
    if is_local(uri):
        return digest_file(local_path(uri))
    system, path = _system(uri)
    return str(system.ukey(path))


def size(uri: str) -> int:
    """Bytes of a file.

    Raises:
        NotFoundError: there is no such file.
    """
    system, path = _system(uri)
    try:
        return int(system.size(path) or 0)
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri} does not exist") from error


def stamp(uri: str) -> str:
    """What changes, as good as surely, when a file does, without reading it: size and time of a local file, what the
    store itself says elsewhere."""
    if is_local(uri):
        status = local_path(uri).stat()
        return f"{status.st_size}:{status.st_mtime_ns}"
    system, path = _system(uri)
    return str(system.ukey(path))


def stamps(uris: Iterable[str]) -> tuple[str, ...]:
    """The stamp of each."""
    return tuple(stamp(uri) for uri in uris)


def read_bytes(uri: str) -> bytes:
    """The whole content of a file."""
    with open_read(uri) as file:
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it.

    Raises:
        UnavailableError: the disk is full, read-only or forbidden; nothing was written.
    """
    if not is_local(uri):
        system, path = _system(uri)
        system.pipe_file(path, data)
        return
    target = local_path(uri)
    with disk_errors(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def draft_folder(parent_uri: str) -> Iterator[Path]:
    """A local folder to fill, on the disk of `parent_uri` where that is local; gone afterwards unless published."""
    with disk_errors(parent_uri):
        if is_local(parent_uri):
            base = local_path(parent_uri) / ".drafts"
            base.mkdir(parents=True, exist_ok=True)
        else:
            base = Path(tempfile.gettempdir())
        folder = Path(tempfile.mkdtemp(dir=base))
        folder.chmod(0o755)  # what is published may be read by a replica that runs as somebody else
    try:
        with disk_errors(parent_uri):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_folder(draft: Path, uri: str, *, last: str) -> None:
    """Make a filled draft visible at `uri`: a rename locally; elsewhere an upload that ends with the file `last`.

    A folder counts as published when `last` is in it. Publishing over a published folder keeps the one that is there.

    Raises:
        InputError: other files are there already.
    """
    if is_local(uri):
        target = local_path(uri)
        with disk_errors(uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                draft.rename(target)
            except OSError as error:
                if (target / last).exists():
                    return
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise InputError(f"{uri} holds other files: name a new folder, or empty it") from error
                raise
        return
    system, path = _system(uri)
    if system.exists(f"{path}/{last}"):
        return
    files = sorted(file for file in draft.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == draft / last):
        system.put_file(str(file), f"{path}/{file.relative_to(draft).as_posix()}")


def local_copy_or_name(uri: str) -> str:
    """The local copy of a folder that is there; anything else, such as a hub id, as it is."""
    return str(local_copy(uri)) if exists(uri) else uri


def local_copy(uri: str) -> Path:
    """A local folder with the content of a published folder: itself, or a download kept under the local home."""
    if is_local(uri):
        path = local_path(uri)
        if not path.exists():
            raise NotFoundError(f"{uri} does not exist")
        return path
    target = local_home() / "downloads" / digest_bytes(uri.encode())[:32]
    if not target.exists():
        system, there = _system(uri)
        with draft_folder(str(local_home())) as draft:
            files = system.find(there)
            if not files:
                raise NotFoundError(f"{uri} does not exist")
            for file in files:
                here = draft / file[len(there) :].lstrip("/")
                here.parent.mkdir(parents=True, exist_ok=True)
                system.get_file(file, str(here))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                draft.rename(target)
    return target


def remove(uri: str) -> None:
    """Delete a file or a folder with all below it; nothing happens where there is none."""
    if is_local(uri):
        path = local_path(uri)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return
    system, path_there = _system(uri)
    if system.exists(path_there):
        system.rm(path_there, recursive=True)


@contextmanager
def disk_errors(uri: str) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into an `UnavailableError` that names where.

    Raises:
        InputError: the path leads through a file.
    """
    try:
        yield
    except (NotADirectoryError, FileExistsError) as error:
        raise InputError(f"cannot write {uri}: a part of that path is a file ({error.filename})") from error
    except OSError as error:
        if error.errno in _DISK_TROUBLE:
            raise UnavailableError(
                f"cannot write {uri}: {_DISK_TROUBLE[error.errno]}; free it or set LLMRAY_HOME elsewhere"
            ) from error
        raise


def _hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.strip("/").split("/"))


def _system(uri: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(str(local_path(uri).absolute()) if is_local(uri) else uri)
    except (ValueError, ImportError) as error:
        raise InputError(f"{uri} cannot be opened: {error}") from error
    return system, path
