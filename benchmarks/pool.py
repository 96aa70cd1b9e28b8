"""The pool of real documents that a corpus is grown from: read once from Debian and Python packages, then memory-mapped.

`text.bin` holds every document, paragraphs parted by a blank line; `documents.npy` [D, 2] and `paragraphs.npy` [P, 2]
hold their ends. Paragraphs are those of 80 to 2,000 bytes, each text once, sorted by length: a recombined document
draws among paragraphs that are short beside it. `pool.json` names every package, its version and its share.
"""

import gzip
import hashlib
import importlib.metadata
import json
import mmap
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plain_text import documents, format_of

PACKAGES = Path(__file__).parent / "corpus_packages.txt"
PARAGRAPH_BYTES = (80, 2000)
_MOST_PER_SOURCE = 40_000_000
"""Bytes of text taken from one package: no project's style shall be most of the corpus."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Real text, mapped and not read."""

    text: mmap.mmap
    documents: NDArray[np.int64]
    """Begin and end of each document [D, 2]."""
    paragraphs: NDArray[np.int64]
    """Begin and end of each distinct paragraph, shortest first [P, 2]."""
    words: list[bytes]
    """Words to put in place of others, as often as they come up."""
    about: dict[str, Any]

    def document(self, number: int) -> bytes:
        begin, end = self.documents[number]
        return self.text[begin:end]


def load(folder: Path) -> Pool:
    """Open a pool."""
    with (folder / "text.bin").open("rb") as file:
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    ends = np.load(folder / "documents.npy")
    spread = np.linspace(0, len(ends) - 1, 400).astype(int)
    words = [word for number in spread for word in text[slice(*ends[number])].split()[:100] if 2 < len(word) < 16]
    return Pool(
        text=text,
        documents=ends,
        paragraphs=np.load(folder / "paragraphs.npy", mmap_mode="r"),
        words=words,
        about=json.loads((folder / "pool.json").read_text()),
    )


def build(folder: Path, *, any_version: bool, workers: int) -> None:
    """Fetch the packages, take their text, write the pool; what was made is not made again.

    Raises:
        RuntimeError: apt cannot fetch a package in its pinned version.
    """
    if (folder / "pool.json").exists():
        return
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    archives = [fetch(line.split()[0], folder / "archives", any_version) for line in _lines()]
    names = sorted({dist.metadata["Name"].lower() for dist in importlib.metadata.distributions()} - {"llmray"})
    tasks = [*(("debian", str(path)) for path in archives), *(("python", name) for name in names)]
    with ProcessPoolExecutor(workers) as executor:
        parts = list(executor.map(partial(_extract, folder / "parts"), range(len(tasks)), tasks))
    _put_together(folder, parts)


def fetch(pin: str, folder: Path, any_version: bool) -> Path:
    """The archive of a Debian package, by `apt-get download`, which checks its signature and digest."""
    folder.mkdir(parents=True, exist_ok=True)
    name, version = pin.split("=", 1)
    pattern = f"{name}_*.deb" if any_version else f"{name}_{version.replace(':', '%3a')}_*.deb"
    if not list(folder.glob(pattern)):
        wanted = name if any_version else pin
        done = subprocess.run(  # noqa: S603
            ["apt-get", "download", "-q", wanted],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"apt-get download {wanted} failed (run apt-get update, or --any-version):\n{done.stderr}"
            )
    return sorted(folder.glob(pattern))[-1]


def _lines() -> list[str]:
    lines = PACKAGES.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _extract(folder: Path, number: int, task: tuple[str, str]) -> dict[str, Any]:
    """Write one source's documents to a part file; returns what is in it."""
    kind, name = task
    files = _debian_files(Path(name)) if kind == "debian" else _python_files(name)
    lengths: list[int] = []
    with (folder / f"{number:04d}.bin").open("wb") as out:
        for path, data in files:
            form = format_of(path)
            if form is None or sum(lengths) > _MOST_PER_SOURCE:
                continue
            for document in documents(data, form):
                encoded = document.encode("utf-8", "replace")
                out.write(encoded)
                lengths.append(len(encoded))
    if kind == "debian":
        package, version, _ = Path(name).name.replace("%3a", ":").split("_")
    else:
        package, version = name, importlib.metadata.version(name)
    return {"kind": kind, "name": package, "version": version, "number": number, "lengths": lengths}


def _debian_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,  # noqa: S603
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            if member.isfile() and member.size < 20_000_000 and format_of(member.name) not in (None, "python"):
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                yield member.name, gzip.decompress(data) if member.name.endswith(".gz") else data


def _python_files(name: str) -> Iterator[tuple[str, bytes]]:
    for file in sorted(importlib.metadata.distribution(name).files or (), key=str):
        path = Path(str(file.locate()))
        if format_of(path.name) in ("python", "text") and path.is_file() and path.stat().st_size < 5_000_000:
            yield path.name, path.read_bytes()


def _put_together(folder: Path, parts: list[dict[str, Any]]) -> None:
    ends: list[NDArray[np.int64]] = []
    paragraphs: dict[bytes, tuple[int, int]] = {}
    total, digest = 0, hashlib.sha256()
    with (folder / "text.bin").open("wb") as out:
        for part in parts:
            path = folder / "parts" / f"{part['number']:04d}.bin"
            data = path.read_bytes()
            cuts = np.concatenate(([0], np.cumsum(part["lengths"], dtype=np.int64)))
            for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
                _note_paragraphs(data[begin:end], total + begin, paragraphs)
            ends.append(np.stack((cuts[:-1], cuts[1:]), axis=1) + total)
            out.write(data)
            digest.update(data)
            total += len(data)
            path.unlink()
    places = np.array(list(paragraphs.values()), np.int64)
    np.save(folder / "paragraphs.npy", places[np.lexsort((places[:, 0], places[:, 1] - places[:, 0]))])
    np.save(folder / "documents.npy", np.concatenate(ends))
    about = {
        "bytes": total,
        "documents": sum(len(part["lengths"]) for part in parts),
        "paragraphs": len(places),
        "sha256": digest.hexdigest(),
        "sources": [
            {key: part[key] for key in ("kind", "name", "version")}
            | {"documents": len(part["lengths"]), "bytes": sum(part["lengths"])}
            for part in parts
            if part["lengths"]
        ],
    }
    (folder / "pool.json").write_text(json.dumps(about, indent=1) + "\n")


def _note_paragraphs(document: bytes, at: int, paragraphs: dict[bytes, tuple[int, int]]) -> None:
    begin = 0
    for paragraph in document.split(b"\n\n"):
        if PARAGRAPH_BYTES[0] <= len(paragraph) <= PARAGRAPH_BYTES[1]:
            key = hashlib.blake2b(paragraph, digest_size=12).digest()
            paragraphs.setdefault(key, (at + begin, at + begin + len(paragraph)))
        begin += len(paragraph) + 2
