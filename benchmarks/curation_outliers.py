"""Claim: measures whose limits are learned from the data find junk of every kind at few false drops.

Into real documentation (docstrings of the Python packages that are installed, those that pass the fixed rules) go
outliers of seven kinds, each of the length of a document that it replaces, so that length gives nothing away:

    mojibake         text of another script read as Latin-1, or English read as UTF-16
    base64           a compressed document, in lines of 76 characters
    token loop       the beginning of a document, then a few of its words over and over
    wrong language   translated manual pages
    link spam        the beginning of a document, then links
    shuffled words   a document's words in random order
    off-topic        Shakespeare

All measures see the mixture, as in a curation; nothing is trained on labels. But the measures' axes, their numbers of
MADs and their designs were chosen by looking at results like these, on part 0 of the documents. So the figures to quote
are those of part 1: other documents, other draws, settings left as they were. Peers run at their defaults, by an
interpreter that has them: scikit-learn's IsolationForest on the same values, and semhash's outlier filter on the same
TF-IDF vectors.

    python benchmarks/curation_outliers.py $LLMRAY_DATA --peers PYTHON
"""

import argparse
import ast
import base64
import gzip
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmray.data import neighbours, robust
from llmray.data.corpus import CorpusMeasure
from llmray.data.features import BUILT_IN, measure_all
from llmray.data.likelihood import Unigram, WordOrder
from llmray.data.neighbours import EmbeddingOutliers
from llmray.data.robust import Axis
from llmray.data.rows import Row
from llmray.data.rules import Outliers, build, judge

KINDS = ("mojibake", "base64", "token loop", "wrong language", "link spam", "shuffled words", "off-topic")
MADS = 5.0
COMMENTS = ('.\\"', "'\\\"", "\\#")
Scores = dict[str, NDArray[np.float64]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with tinyshakespeare.txt")
    parser.add_argument(
        "--manuals", type=Path, default=Path("/usr/share/man"), help="folder of translated manual pages"
    )
    parser.add_argument("--peers", help="Python interpreter with scikit-learn and semhash")
    parser.add_argument("--rows", type=int, default=6000, help="clean documents")
    parser.add_argument("--share", type=float, default=0.015, help="outliers of each kind, as a share of those")
    parser.add_argument("--part", type=int, default=1, help="which documents: 0 are those that settings were chosen on")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    clean, kind_N, texts = mixture(args)
    print(f"{clean:,} documents, {len(texts) - clean:,} outliers of {len(KINDS)} kinds; {processor()}")
    values, axes, seconds, vectors_NK = measured(texts)
    scores = {name: distance(values[name], axes[name]) for name in values}
    scores["single texts"] = np.max([scores[name] for name in BUILT_IN], axis=0)
    scores["union"] = np.max([scores[name] for name in axes], axis=0)
    false_drops = {name: float(np.mean(score[:clean] > 1)) for name, score in scores.items()}
    recalls = {
        name: {kind: float(np.mean(score[kind_N == kind] > 1)) for kind in KINDS} for name, score in scores.items()
    }
    if args.peers:
        scores |= peers(args.peers, values, vectors_NK)
    table = {
        name: {kind: quality(score, kind_N == "", kind_N == kind) for kind in KINDS} for name, score in scores.items()
    }
    show(table, recalls, false_drops)
    print("\nprocessor µs a text: " + ", ".join(f"{name} {1e6 * s / len(texts):.0f}" for name, s in seconds.items()))
    result = {
        "claim": (__doc__ or "").splitlines()[0].removeprefix("Claim: "),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": processor(),
        "python": platform.python_version(),
        "documents": clean,
        "part": args.part,
        "settings_chosen_on_this_part": args.part == 0,
        "outliers_of_each_kind": round(args.share * clean),
        "mads": {name: axis.mads for name, axis in axes.items()},
        "false_drops_at_limits": false_drops,
        "cpu_us_a_text": {name: 1e6 * spent / len(texts) for name, spent in seconds.items()},
        "recall_at_limits": recalls,
        "quality": table,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"curation_outliers-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(f"\nwrote {path.name}")
    return 0


def mixture(args: argparse.Namespace) -> tuple[int, NDArray[np.str_], list[str]]:
    """Clean documents first, then the outliers: their number, the kind of each text, the texts."""
    rules = build(Outliers())
    documents = sorted(
        (text for text in set(docstrings()) if not judge(Row(shape="text", text=text), rules)),
        key=lambda text: hashlib.sha256(text.encode()).digest(),
    )
    each = round(args.share * args.rows)
    needed = args.rows + each * len(KINDS)
    if len(documents) < needed * (args.part + 1):
        raise SystemExit(f"{needed * (args.part + 1)} documents are needed, {len(documents)} are here: lower --rows")
    documents = documents[needed * args.part : needed * (args.part + 1)]
    spare = iter(documents[args.rows : needed])
    foreign = [text for text in manual_pages(args.manuals) if len(text) > 3000]
    plays = (args.data / "tinyshakespeare.txt").read_text()
    generator = np.random.default_rng(args.part)
    makers: dict[str, Callable[[str], str]] = {
        "mojibake": lambda text: mojibake(text, foreign, generator),
        "base64": encoded,
        "token loop": lambda text: loop(text, generator),
        "wrong language": lambda text: piece(foreign[generator.integers(len(foreign))], len(text), generator),
        "link spam": lambda text: spam(text, generator),
        "shuffled words": lambda text: " ".join(generator.permutation(text.split())),
        "off-topic": lambda text: piece(plays, len(text), generator),
    }
    made = [(kind, makers[kind](next(spare))) for kind in KINDS for _ in range(each)]
    kinds = np.array([""] * args.rows + [kind for kind, _ in made])
    return args.rows, kinds, documents[: args.rows] + [text for _, text in made]


def docstrings() -> Iterator[str]:
    """Docstrings of 300 characters and more, of all that is installed; no module is run."""
    folders = {Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib"))}
    for path in sorted({path for folder in folders for path in folder.rglob("*.py")}):
        if {"test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # Templates and test data of packages are no modules; they have no docstrings to lose.
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text is not None and len(text) >= 300:
                    yield text


def manual_pages(folder: Path) -> Iterator[str]:
    """Translated manual pages, their markup taken away."""
    for path in sorted(folder.glob("*/man*/*.gz")):
        source = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        lines = [re.sub(r"^[.']\w+ ?", "", line) for line in source.splitlines() if not line.startswith(COMMENTS)]
        yield re.sub(r"\\f\[\w*\]|\\f.|\\s[+-]?\d|\\\(..|\\\[\w+\]|\\&|\\", "", "\n".join(lines))


def piece(text: str, length: int, generator: np.random.Generator) -> str:
    """A stretch of whole lines of about this length, not from the very beginning, where licences stand."""
    start = text.find("\n", int(generator.integers(len(text) // 5, max(len(text) // 5 + 1, len(text) - length)))) + 1
    return text[start : start + length]


def mojibake(text: str, foreign: Sequence[str], generator: np.random.Generator) -> str:
    """What a wrong encoding makes of a text."""
    if generator.random() < 0.5:
        return text.encode("utf-8")[: len(text) // 2 * 2].decode("utf-16-le", "replace")
    far = [page for page in foreign if sum(not character.isascii() for character in page) > len(page) / 5]
    other = piece(far[generator.integers(len(far))], len(text), generator)
    return other.encode("utf-8").decode("latin-1")[: len(text)]


def encoded(text: str) -> str:
    """A document as an attachment."""
    packed = zlib.compress((text * 4).encode(), 1) * (1 + len(text) // 200)
    return base64.encodebytes(packed).decode()[: len(text)]


def loop(text: str, generator: np.random.Generator) -> str:
    """What a model writes that has lost its way."""
    words = text.split()
    start = len(words) // 3
    phrase = " ".join(words[start : start + int(generator.integers(1, 9))])
    return (" ".join(words[:start]) + (" " + phrase) * len(text))[: len(text)]


def spam(text: str, generator: np.random.Generator) -> str:
    """A page that lives on its links."""
    words = re.findall(r"[a-z]{4,9}", text) or ["page"]
    lines = [text[: len(text) // 4]]
    while sum(map(len, lines)) < len(text):
        one, two, three = generator.choice(words, 3)
        lines.append(f"best {one} {two} cheap: http://www.{one}-{two}.example/{three}/{generator.integers(10**6)}.html")
    return "\n".join(lines)[: len(text)]


def measured(texts: Sequence[str]) -> tuple[Scores, dict[str, Axis], dict[str, float], NDArray[np.float32]]:
    """Values, axes and processor seconds of every measure, and the TF-IDF vectors of the texts."""
    values: Scores = {}
    begun = time.process_time()
    values_NM = measure_all(texts, list(BUILT_IN.values()))
    seconds = {"single texts": time.process_time() - begun}
    axes = {name: learned.axis(MADS) for name, learned in BUILT_IN.items()}
    values |= {name: values_NM[:, column] for column, name in enumerate(BUILT_IN)}
    ids = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    embedded = EmbeddingOutliers()
    measures: list[CorpusMeasure] = [Unigram(), WordOrder(), embedded]
    model = None
    for measure in measures:
        begun = time.process_time()
        model = measure.fit([measure.survey(texts, ids)])
        values[measure.name] = measure.score(texts, ids, model)
        seconds[measure.name] = time.process_time() - begun
        axes[measure.name] = measure.axis
    assert isinstance(model, neighbours.Neighbourhood)
    places = neighbours.places_of(model.keys, ids)
    return values, axes, seconds, model.vectors[places]


def distance(values: NDArray[np.float64], axis: Axis) -> NDArray[np.float64]:
    """How far a value lies from the middle, 1 at the limit; a measure that says nothing calls a text usual."""
    found = robust.usual(values, transform=axis.transform)
    if found is None:
        return np.zeros(len(values))
    return np.nan_to_num(found.distance(values, axis.side) / axis.mads, nan=0.0)


def peers(interpreter: str, values: Mapping[str, NDArray[np.float64]], vectors_NK: NDArray[np.float32]) -> Scores:
    """Scores of IsolationForest on the same values and of semhash on the same vectors."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "in.npz", values=np.stack(list(values.values()), axis=1), vectors=vectors_NK)
        script = Path(__file__).with_name("curation_outliers_peers.py")
        subprocess.run([interpreter, str(script), folder], check=True)  # noqa: S603 (our own script)
        with np.load(Path(folder) / "out.npz") as found:
            return {name: found[name] for name in found.files}


def quality(score: NDArray[np.float64], clean: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> dict[str, float]:
    """Area under the precision-recall curve among clean documents and this kind, and recall at 1% false drops."""
    limit = np.quantile(score[clean], 0.99)
    kept = np.concatenate((score[clean], score[wanted]))
    truth = np.concatenate((np.zeros(clean.sum()), np.ones(wanted.sum())))
    # Ties are taken together: a step of the curve is a distinct score.
    order = np.argsort(-kept, kind="stable")
    last = np.flatnonzero(np.append(np.diff(kept[order]) != 0, True))
    hits = np.cumsum(truth[order])[last]
    precision, steps = hits / (last + 1), np.diff(hits, prepend=0) / truth.sum()
    return {"auprc": float((precision * steps).sum()), "recall_at_1pct": float(np.mean(score[wanted] > limit))}


def show(
    table: Mapping[str, Mapping[str, Mapping[str, float]]],
    recalls: Mapping[str, Mapping[str, float]],
    false_drops: Mapping[str, float],
) -> None:
    """Print what was measured."""
    for what, title in (("auprc", "AUPRC"), ("recall_at_1pct", "recall at 1% false drops")):
        print(f"\n{title:28}" + "".join(f"{kind:>16}" for kind in KINDS))
        for name, row in table.items():
            print(f"{name:28}" + "".join(f"{row[kind][what]:16.3f}" for kind in KINDS))
    print(f"\n{'recall at limits (false)':28}" + "".join(f"{kind:>16}" for kind in KINDS))
    for name, row in recalls.items():
        print(f"{name:19} ({false_drops[name]:6.2%})" + "".join(f"{row[kind]:16.3f}" for kind in KINDS))


def processor() -> str:
    """Model and number of the cores."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
