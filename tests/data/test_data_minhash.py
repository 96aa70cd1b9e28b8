"""The kernels against plain Python on any Unicode, and signatures against the probability that they promise."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_minhash import bands, shingles

import llmray
from llmray.data import minhash
from llmray.data.banding import Banding
from llmray.data.folding import LIMIT, folding
from llmray.data.minhash import Shingling, shingle_sets, sketch
from llmray.data.normalize import word_text
from llmray.errors import ConfigError

UNITS = st.sampled_from(["word", "character"])
SHINGLINGS = st.builds(Shingling, unit=UNITS, size=st.integers(1, 9))
SOME = [
    "",
    "?!",
    "The quick brown fox; the QUICK brown fox_1!",
    "Über naïve ﬁancées’ “ﬂat” white—№ 5½ km²",
    "e\u0301 and \u00e9, ᾳ ΐ ΣΑΣ ς İ ı ß ẞ Å K",
    "漢字かな交じり文ｶﾞｷﾞ ㍿ 한국어 \u1112\u1161\u11ab",
    "हिन्दी में लिखा ไทย عَرَبِيّ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🙂👩‍👩‍👧 𠀋 \U000e0041",
    "\x00\x1c\x85\u2028\u00ad\ufeff lone \ud800 and \udc00",
    "x" * 7 + " " + "x" * 8 + " " + "x" * 9 + " " + "Y" * 200,
]
TEXTS = st.lists(
    st.one_of(st.text(max_size=60), st.sampled_from(SOME), st.text(st.sampled_from("aB1_ .\u0301é漢"), max_size=150)),
    max_size=6,
)


@settings(deadline=None)
@given(TEXTS, SHINGLINGS)
@example(SOME, Shingling())
@example(SOME, Shingling(unit="character"))
def test_shingle_sets_are_those_of_the_definition(texts: list[str], shingling: Shingling) -> None:
    hashes, offsets = shingle_sets(texts, shingling)
    assert offsets[-1] == len(hashes)
    for place, text in enumerate(texts):
        made = hashes[offsets[place] : offsets[place + 1]].tolist()
        assert made == sorted(set(shingles(text, shingling.unit, shingling.size)))


@settings(deadline=None)
@given(TEXTS, SHINGLINGS, st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**64 - 1))
@example(SOME, Shingling(), 16, 6, 0)
@example(SOME, Shingling(unit="character"), 14, 8, 1)
def test_sketches_are_those_of_the_definition(
    texts: list[str], shingling: Shingling, num_bands: int, rows: int, seed: int
) -> None:
    made_DN, num_shingles_D = sketch(texts, shingling, Banding(num_bands=num_bands, rows_per_band=rows), seed)
    unit, size = shingling.unit, shingling.size
    assert num_shingles_D.tolist() == [len(shingles(text, unit, size)) for text in texts]
    assert made_DN.tolist() == [bands(text, unit, size, num_bands, rows, seed) for text in texts]


@pytest.mark.parametrize("spaced", [True, False])
def test_the_table_folds_each_character_in_any_company(spaced: bool) -> None:
    table = folding(spaced=spaced)
    known = np.flatnonzero(np.diff(table.starts))
    assert len(known) > 0.98 * (LIMIT - 0x80)
    letters = [chr(point) for point in known]
    np.random.default_rng(3).shuffle(letters)
    together = word_text("".join(letters), spaced=spaced).encode().split()
    pieces = [bytes(table.data[table.starts[ord(letter)] : table.starts[ord(letter) + 1]]) for letter in letters]
    assert b"".join(pieces).replace(b"\0", b" ").split() == together


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string()])
def test_arrow_arrays_are_read_where_they_lie(type_: pa.DataType) -> None:
    texts = [text for text in SOME if text.isprintable()]
    banding = Banding(num_bands=4, rows_per_band=2)
    wanted, counts = sketch(texts, Shingling(), banding, 7)
    array = pa.array(["before", *texts, None, "behind"], type_).slice(1, len(texts) + 1)
    for column in (array, pa.chunked_array([array.slice(0, 2), array.slice(2)])):
        made, made_counts = sketch(column, Shingling(), banding, 7)
        assert made.tolist() == [*wanted.tolist(), [0, 0, 0, 0]]
        assert made_counts.tolist() == [*counts.tolist(), 0]
        assert shingle_sets(column, Shingling())[0].tolist() == shingle_sets(texts, Shingling())[0].tolist()
    assert len(sketch(pa.array([], type_), Shingling(), banding, 7)[0]) == 0


def test_more_texts_than_are_read_at_once() -> None:
    texts = [f"text {number} of é many" for number in range(2 * minhash._TEXTS_AT_ONCE + 3)]
    banding = Banding(num_bands=3, rows_per_band=2)
    made, _ = sketch(texts, Shingling(), banding, 1)
    for place in (0, minhash._TEXTS_AT_ONCE, len(texts) - 1):
        assert made[place].tolist() == bands(texts[place], "word", 5, 3, 2, 1)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_long_text(size: int) -> None:
    text = "a " * 3000 + "b " * 3000 + "-" * 5000 + " ".join(map(str, range(5000))) + "é" * 5000
    made, _ = shingle_sets([text], Shingling(size=size))
    assert np.array_equal(made, np.unique(np.array(shingles(text, "word", size), np.uint64)))


def test_a_text_that_repeats_itself_is_sorted_too() -> None:
    text = " ".join("a b" if number % 3 else "c" for number in range(100_000))
    hashes, _ = shingle_sets([text], Shingling(size=1))
    assert hashes.tolist() == sorted(set(shingles("a b c", "word", 1)))


@pytest.mark.parametrize("num_words", [6, 40, 400])
@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.8, 0.9])
def test_minima_agree_as_often_as_the_sets_are_alike(jaccard: float, num_words: int) -> None:
    # One row a band: two documents share a bucket exactly where a minimum agrees.
    pairs, truth = overlapping(jaccard, num_words, num_pairs=60_000 // num_words)
    banding = Banding(num_bands=96, rows_per_band=1)
    made, _ = sketch(pairs, Shingling(size=1), banding, seed=5)
    agree = (made[0::2] == made[1::2]).mean(axis=1)
    deviation = (truth * (1 - truth) / banding.num_hashes) ** 0.5
    assert agree.mean() == pytest.approx(truth, abs=5 * deviation / len(agree) ** 0.5)
    # The trials of a pair are as good as independent: their mean varies as that of a coin.
    assert agree.std() == pytest.approx(deviation, rel=0.05 + 5 / (2 * len(agree)) ** 0.5)


@pytest.mark.parametrize("rows", [4, 6, 8])
@pytest.mark.parametrize("num_words", [8, 60, 400])
@pytest.mark.parametrize("jaccard", [0.5, 0.7, 0.8, 0.9])
def test_candidates_are_as_frequent_as_the_s_curve_promises(jaccard: float, num_words: int, rows: int) -> None:
    banding = Banding(num_bands=96 // rows, rows_per_band=rows)
    pairs, truth = overlapping(jaccard, num_words, num_pairs=1500)
    made, _ = sketch(pairs, Shingling(size=1), banding, seed=rows)
    met = (made[0::2] == made[1::2]).any(axis=1).mean()
    promised = banding.candidate_probability(truth)
    assert met == pytest.approx(promised, abs=5 * (promised * (1 - promised) / 1500) ** 0.5 + 1e-3)


def overlapping(jaccard: float, num_words: int, num_pairs: int) -> tuple[list[str], float]:
    """Pairs of documents of distinct words, one after the other, and how alike they are."""
    shared = round(num_words * 2 * jaccard / (1 + jaccard))
    texts = []
    for pair in range(num_pairs):
        common = [f"c{pair}x{number}" for number in range(shared)]
        for side in "ab":
            texts.append(" ".join([*common, *(f"{side}{pair}x{number}" for number in range(num_words - shared))]))
    return texts, shared / (2 * num_words - shared)


def test_seeds_and_bands_differ() -> None:
    banding = Banding(num_bands=4, rows_per_band=3)
    one, other = (sketch(["some text of a few words"], Shingling(), banding, seed)[0] for seed in (1, 2))
    assert len({*one[0].tolist(), *other[0].tolist()}) == 8


@pytest.mark.parametrize(
    ("options", "said"), [({"size": 0}, "try 5"), ({"size": 101}, "to 100"), ({"unit": "x"}, "'x'")]
)
def test_impossible_shinglings_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Shingling(**options)  # type: ignore[arg-type]


def test_kernels_run_where_nothing_can_be_kept(tmp_path: Path) -> None:
    # A copy of the package where even the superuser cannot write: its cache folders are files.
    package = tmp_path / "llmray"
    shutil.copytree(Path(llmray.__path__[0]), package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "data" / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    code = "from llmray.data import kernels, minhash as m; print(kernels.__file__, m.shingle_sets(['a b'], m.Shingling())[0][0])"
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.split() == [str(package / "data" / "kernels.py"), str(shingles("a b", "word", 5)[0])]
    assert "NUMBA_CACHE_DIR" in done.stderr
