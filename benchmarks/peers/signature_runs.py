"""Time one library's signatures of the same documents, in the environment that has it; prints seconds a run as JSON.

datasketch and rensa take shingles that their user makes, so making them counts: runs of word characters of the
lower-cased text, joined by spaces. Their time for shingles that are there already is told beside. datatrove and llmray
make their own. Processor time of this one process, so that other work on the machine is not counted; libraries with
threads are told to use one.

    python signature_runs.py LIBRARY documents.json NUM_BANDS ROWS_PER_BAND RUNS
"""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

WORD = re.compile(r"\w+")
SHINGLE_WORDS = 5
Sign = Callable[[Any], int]
"""Makes all signatures, of texts or of their shingles; says how many documents have one."""


def main(argv: Sequence[str]) -> int:
    library, documents, *numbers = argv
    num_bands, rows_per_band, runs = map(int, numbers)
    texts: list[str] = json.loads(Path(documents).read_text(encoding="utf-8"))
    sign, prepare = LIBRARIES[library](num_bands, rows_per_band)
    said: dict[str, Any] = {}
    if prepare is shingles:
        said["given_shingles_s"], _ = _timed(partial(sign, shingles(texts)), runs)
        said["seconds"], said["made"] = _timed(lambda: sign(shingles(texts)), runs)
    else:
        said["seconds"], said["made"] = _timed(partial(sign, prepare(texts)), runs)
    print(json.dumps(said))
    return 0


def _timed(run: Callable[[], int], runs: int) -> tuple[list[float], int]:
    seconds, made = [], run()  # The first run loads and compiles, and is not counted.
    for _ in range(runs):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return seconds, made


def shingles(texts: Sequence[str]) -> list[list[str]]:
    made = []
    for text in texts:
        words = WORD.findall(text.lower())
        made.append(
            [" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1))]
            if words
            else []
        )
    return made


def llmray(num_bands: int, rows_per_band: int) -> tuple[Sign, Callable[[list[str]], Any]]:
    import pyarrow as pa

    return llmray_list(num_bands, rows_per_band)[0], pa.array


def llmray_list(num_bands: int, rows_per_band: int) -> tuple[Sign, Callable[[list[str]], Any]]:
    from llmray.data.banding import Banding
    from llmray.data.minhash import Shingling, sketch

    shingling, banding = Shingling(size=SHINGLE_WORDS), Banding(num_bands=num_bands, rows_per_band=rows_per_band)
    return lambda texts: int((sketch(texts, shingling, banding, 0)[1] > 0).sum()), list


def datatrove(num_bands: int, rows_per_band: int) -> tuple[Sign, Callable[[list[str]], Any]]:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    config = MinhashConfig(n_grams=SHINGLE_WORDS, num_buckets=num_bands, hashes_per_bucket=rows_per_band)
    step = MinhashDedupSignature("memory://signatures", config)

    def sign(texts: list[str]) -> int:
        made = 0
        for text in texts:
            if (found := step.get_shingles(text)).size:
                step.get_signature(found)
                made += 1
        return made

    return sign, list


def datasketch(num_bands: int, rows_per_band: int) -> tuple[Sign, Callable[[list[str]], Any]]:
    from datasketch import MinHash

    def sign(found: list[list[str]]) -> int:
        tokens = ([shingle.encode() for shingle in of_one] for of_one in found)
        return sum(not made.is_empty() for made in MinHash.bulk(tokens, num_perm=num_bands * rows_per_band))

    return sign, shingles


def datasketch_xxhash(num_bands: int, rows_per_band: int) -> tuple[Sign, Callable[[list[str]], Any]]:
    from datasketch import MinHash
    from xxhash import xxh32_intdigest

    def sign(found: list[list[str]]) -> int:
        made = MinHash.bulk(found, num_perm=num_bands * rows_per_band, hashfunc=xxh32_intdigest)
        return sum(not one.is_empty() for one in made)

    return sign, shingles


def rensa(num_bands: int, rows_per_band: int) -> tuple[Sign, Callable[[list[str]], Any]]:
    from rensa import RMinHash

    return lambda found: RMinHash.digest_matrix_from_token_sets(found, num_bands * rows_per_band, 1).len(), shingles


LIBRARIES = {
    "llmray": llmray,
    "llmray (list of str)": llmray_list,
    "datatrove": datatrove,
    "datasketch": datasketch,
    "datasketch (xxhash)": datasketch_xxhash,
    "rensa": rensa,
}

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
