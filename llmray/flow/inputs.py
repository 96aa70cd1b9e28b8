"""From what people write (a reference, a path, a glob, a hub id) to immutable content.

References are resolved here, once, where work is submitted; everything below sees artifacts.
"""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmray import artifact as artifacts
from llmray import storage
from llmray.artifact import Artifact
from llmray.data.readers import expand
from llmray.digest import digest_bytes
from llmray.errors import InputError, NotFoundError
from llmray.reference import parse_reference
from llmray.registry.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file whose content takes part in a cache key."""

    uri: str = field(metadata={"identity": False})
    name: str
    """Relative to the folder that all files share."""
    tag: str
    """SHA-256 of a local file, the store's own checksum elsewhere."""


def source_files(patterns: Sequence[str]) -> list[SourceFile]:
    """The files that URIs and globs name, with what identifies their content.

    Raises:
        InputError: no pattern at all.
        NotFoundError: a pattern that names no file.
    """
    if not patterns:
        raise InputError("no sources: give at least one URI or glob, such as raw/*.jsonl.gz")
    uris = expand(patterns)
    _, names = storage.names_below(uris)
    return [SourceFile(uri=uri, name=name, tag=storage.content_tag(uri)) for uri, name in zip(uris, names, strict=True)]


def resolve(registry: Registry, what: str | Artifact, *, kind: str) -> Artifact:
    """An artifact from a reference (`docs@latest`, `docs:3`, a digest), the URI of one, or itself.

    Raises:
        NotFoundError: nothing of that name, or its bytes are gone.
        InputError: it is of another kind.
    """
    if isinstance(what, Artifact):
        found = what
    elif "/" in what or (Path(what) / artifacts.MANIFEST).exists():
        found = artifacts.load(what)
    else:
        parse_reference(what)
        found = artifacts.load(registry.resolve(what, kind).uri)
    if found.kind != kind:
        raise InputError(f"{what} is of kind {found.kind}, and one of kind {kind} is needed")
    return found


def name_of(registry: Registry, what: str | Artifact, digest: str) -> str | None:
    """The name that somebody means: the one in their reference, else the only one that the artifact has.

    Raises:
        InputError: it has several.
    """
    if isinstance(what, str) and "/" not in what:
        with contextlib.suppress(InputError):
            if (written := parse_reference(what).name) is not None:
                return written
    names = registry.names_of(digest)
    if len(names) > 1:
        raise InputError(f"{digest[:12]} is called {' and '.join(names)}: say which by name@alias, or by name")
    return names[0] if names else None


def model_folder(what: str) -> Path | None:
    """The local folder of a Hugging Face model that is no artifact yet: a path, or a hub id; None for a reference.

    Raises:
        NotFoundError: the hub or the network does not have it.
    """
    path = Path(what).expanduser()
    if path.is_dir():
        return None if (path / artifacts.MANIFEST).exists() else path
    if "/" not in what or what.startswith(("/", ".")) or "://" in what:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(what))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotFoundError(f"model {what} is neither a folder nor to be had from the hub: {error}") from error


def adopt_model(folder: Path) -> Artifact:
    """Make an artifact of a Hugging Face folder.

    Raises:
        InputError: the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no Hugging Face model: it has no config.json")
    with artifacts.draft("model") as draft:
        for source in sorted(folder.rglob("*")):
            if source.is_file() and not any(part.startswith(".") for part in source.relative_to(folder).parts):
                target = draft.folder / source.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                _take_in(source, target)
        return draft.seal(config={"adopted_from": digest_bytes(str(folder).encode())[:12], "name": folder.name})


def _take_in(source: Path, target: Path) -> None:
    """A link to what never changes (the hub's cache links to files named by their content), else a copy."""
    if source.is_symlink():
        try:
            target.hardlink_to(source.resolve())
        except OSError:
            shutil.copyfile(source, target)
    else:
        shutil.copyfile(source, target)
