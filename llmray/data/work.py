"""The work folder of a curation: what is done already, so that a run that was stopped goes on where it stood.

A piece of work is a folder that appears whole or not at all, with `done.json` as its last file, so any number of
workers, retries and runs may make it: they make the same. The folder is named by what goes in (settings, sources,
code), never by when, and it is gone once the snapshot is published. A lock keeps a second run of the same work waiting
until the first has ended; it goes with the process that holds it. Rejected: a database of progress (the files are the
progress), and checkpoints of Ray Data, which do not reach across stages.
"""

import fcntl
import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llmray import storage
from llmray.code_names import is_code_name
from llmray.data.config import CurateConfig
from llmray.data.embedding import model_files
from llmray.data.neighbours import TFIDF
from llmray.digest import canonical_json, digest_bytes, digest_file, digest_of

log = logging.getLogger(__name__)

DONE = "done.json"
COUNTS = ".counts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A work folder; it pickles, and means the same on every node that sees its URI."""

    uri: str

    def has(self, name: str) -> bool:
        """Whether a piece is done."""
        return storage.exists(storage.join(self.uri, name, DONE))

    def path(self, name: str) -> Path:
        """A local folder with the files of a piece: itself, or a download where the work lies in an object store."""
        return storage.local_copy(storage.join(self.uri, name))

    def facts(self, name: str) -> Any:
        """What was said of a piece when it was done."""
        return json.loads(storage.read_bytes(storage.join(self.uri, name, DONE)))

    @contextmanager
    def piece(self, name: str) -> Iterator["Piece"]:
        """A piece to fill and `finish`; whoever is first to do so wins, the others' work is dropped."""
        with storage.draft_folder(self.uri) as folder:
            piece = Piece(folder)
            yield piece
            if piece.facts is not None:
                (folder / DONE).write_bytes(orjson.dumps(piece.facts, option=orjson.OPT_SORT_KEYS))
                storage.publish_folder(folder, storage.join(self.uri, name), last=DONE)

    @property
    def counts(self) -> Path | None:
        """Where workers write how far they are in what is not done (`progress`); nowhere in an object store."""
        return storage.local_path(self.uri) / COUNTS if storage.is_local(self.uri) else None

    def remove(self) -> None:
        """Everything goes."""
        storage.remove(self.uri)


class Piece:
    """A piece of work being done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: Mapping[str, Any] | None = None

    def finish(self, **facts: Any) -> None:
        """The files are whole; `facts` are small and can be had without them."""
        self.facts = facts


def work_key(config: CurateConfig, sources: Sequence[tuple[str, str, str]], **given: Any) -> str:
    """What names the work: settings, sources (name, URI, stamp), everything else that decides, and the code.

    The code takes part because a piece that older code made may not fit what newer code makes of it.
    """
    plain = {"config": config, "sources": sources, "given": given, "code": _code(config)}
    return digest_of(plain)[:32]


def other_files(config: CurateConfig) -> list[str]:
    """Files besides the sources that decide: evaluation sets, models of embedders.

    Raises:
        NotFoundError: one that is not there.
    """
    looked_for = config.embedding_outlier.embedding if "embedding_outlier" in config.second_look else TFIDF
    models = [model for model in (looked_for, config.semantic.embedding) if model is not None and model != TFIDF]
    return [*config.contamination.uris, *(file for model in models for file in model_files(model))]


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """One run at a time on a work folder: waits for another to end.

    A file lock, so it holds on one machine and on shared file systems that lock. In an object store there is none:
    pieces are published whole and are the same whoever makes them, so two runs there only do the work twice.
    """
    if not storage.is_local(uri):
        yield
        return
    path = storage.local_path(uri + ".lock")
    with storage.disk_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("curate: another run is at the same work; waiting for it to end")
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        # The run that we waited for has taken its lock file away with it: ours must be the one that others see.


def _code(config: CurateConfig) -> str:
    package = Path(__file__).parent
    names = json.loads(canonical_json(config))
    ours = {path.relative_to(package).as_posix(): digest_file(path) for path in sorted(package.rglob("*.py"))}
    return digest_of({**ours, **{module: _module_digest(module) for module in sorted(_modules(names))}})


def _modules(value: Any) -> set[str]:
    """Modules of every `module:attribute` in a config."""
    if isinstance(value, str):
        return {value.partition(":")[0]} if is_code_name(value) else set()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*(_modules(item) for item in inner))


def _module_digest(module: str) -> str:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    path = Path(found.origin) if found is not None and found.origin else None
    return digest_bytes(path.read_bytes()) if path is not None and path.is_file() else "unknown"
