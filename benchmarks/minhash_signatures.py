"""Claim: the signature stage reads at least 100 MB/s a core on real English text, full normalisation included.

Documents of 2 KB or so, of docstrings of the installed Python packages, as they come: code, tables and names with
accents among them. All libraries get the same documents, word 5-grams, numbers of hashes, and one thread; each normalises
in its own way (`peers/signature_runs.py`). Bands that llmray chooses for threshold 0.8 and recall 0.99, then 112 hashes,
datatrove's choice.

    python benchmarks/minhash_signatures.py --venvs peers-venvs
"""

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from machine import MB, headline, versions, write_result

from llmray import console
from llmray.data.banding import Banding, choose_banding

PEERS = Path(__file__).parent / "peers"
LIBRARIES = {
    "llmray": None,
    "llmray (list of str)": None,
    "rensa": "rensa",
    "datasketch (xxhash)": "datasketch",
    "datasketch": "datasketch",
    "datatrove": "datatrove",
}
"""Libraries, and the pins of their environments."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS"), "1")
DOCUMENT_CHARACTERS = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, help="folder of the peers' environments, made once; a temporary one")
    parser.add_argument("--megabytes", type=float, default=8, help="text to be signed")
    parser.add_argument("--runs", type=int, default=5, help="runs of each library")
    args = parser.parse_args(argv)
    texts = documents(args.megabytes)
    sizes = [len(text.encode()) for text in texts]
    about = {
        "documents": len(texts),
        "bytes": sum(sizes),
        "mean_bytes": round(statistics.mean(sizes)),
        "not_ascii": sum(not text.isascii() for text in texts),
    }
    print(headline())
    print(f"{about['documents']:,} documents, {about['mean_bytes']:,} bytes each, {about['not_ascii']} not ASCII")
    measures = []
    with tempfile.TemporaryDirectory(prefix="signatures-") as folder:
        path = Path(folder) / "documents.json"
        path.write_text(json.dumps(texts), encoding="utf-8")
        for banding in (choose_banding(threshold=0.8, recall=0.99), Banding(num_bands=14, rows_per_band=8)):
            measured = _measured(path, sum(sizes) / MB, banding, args.venvs or Path(folder), args.runs)
            measures.append({"bands": banding.num_bands, "rows_per_band": banding.rows_per_band, "measured": measured})
    body = {"text": about, "runs": args.runs, "clock": "processor time of one process", "results": measures}
    claim = __doc__.split("\n\n")[0]
    print(write_result("minhash-signatures", claim, {"versions": versions("numba", "numpy", "pyarrow"), **body}).name)
    return 0


def documents(megabytes: float) -> list[str]:
    """Docstrings of installed packages in the order of their files, put together to documents."""
    made: list[str] = []
    size, waiting = 0, ""
    for text in _docstrings():
        waiting = f"{waiting}\n\n{text}" if waiting else text
        if len(waiting) >= DOCUMENT_CHARACTERS:
            made.append(waiting)
            size, waiting = size + len(waiting), ""
        if size >= megabytes * MB:
            break
    return made


def _docstrings() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # Packages keep broken files for their own tests.
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and len(text := ast.get_docstring(node) or "") > 80
            ):
                yield text


def _measured(path: Path, megabytes: float, banding: Banding, venvs: Path, runs: int) -> list[dict[str, Any]]:
    measured: list[dict[str, Any]] = []
    for library, pins in LIBRARIES.items():
        python = Path(sys.executable) if pins is None else environment(venvs, pins)
        numbers = [str(number) for number in (banding.num_bands, banding.rows_per_band, runs)]
        done = subprocess.run(  # noqa: S603
            [str(python), str(PEERS / "signature_runs.py"), library, str(path), *numbers],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **ONE_THREAD},
        )
        said = json.loads(done.stdout.splitlines()[-1])
        best, median = min(said["seconds"]), statistics.median(said["seconds"])
        row: dict[str, Any] = {
            "library": library,
            "best_mb_per_s": megabytes / best,
            "median_mb_per_s": megabytes / median,
        }
        if "given_shingles_s" in said:
            row["given_shingles_mb_per_s"] = megabytes / statistics.median(said["given_shingles_s"])
        ours = measured[0] if measured else row
        row["ours_faster_best"] = ours["best_mb_per_s"] / row["best_mb_per_s"]
        row["ours_faster_median"] = ours["median_mb_per_s"] / row["median_mb_per_s"]
        measured.append({**row, "seconds": said["seconds"], "documents_signed": said["made"]})
    print(f"\n{banding.num_bands} bands of {banding.rows_per_band}: {banding.num_hashes} hashes; MB/s a core")
    head = ["library", "best", "median", "given shingles", "ours faster by (best)", "(median)"]
    keys = ("best_mb_per_s", "median_mb_per_s", "given_shingles_mb_per_s", "ours_faster_best", "ours_faster_median")
    print(
        console.table(
            head, [[row["library"], *(f"{row[key]:,.1f}" if key in row else "" for key in keys)] for row in measured]
        )
    )
    return measured


def environment(venvs: Path, name: str) -> Path:
    """The Python of a peer's own virtual environment, made from its pins where it is not there."""
    python = venvs / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venvs / name)], check=True)  # noqa: S603
        pins = str(PEERS / f"{name}.txt")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", pins], check=True)  # noqa: S603
    return python


if __name__ == "__main__":
    raise SystemExit(main())
