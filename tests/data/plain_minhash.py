"""What `llmray.data.minhash` computes, in plain Python: the reference for its kernels. Lists and whole numbers only."""

import re
import unicodedata
from collections.abc import Sequence

ODD = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
WORD = re.compile(r"\w+")
UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff])")


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * MIX_1) % 2**64
    x = ((x ^ (x >> 27)) * MIX_2) % 2**64
    return x ^ (x >> 31)


def words(text: str, *, spaced: bool) -> list[str]:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return WORD.findall(UNSPACED.sub(r" \1 ", folded) if spaced else folded)


def word_hash(word: str) -> int:
    data = word.encode()
    value = len(data) * ODD % 2**64
    for at in range(0, len(data), 8):
        value = mix(value ^ int.from_bytes(data[at : at + 8], "little"))
    return value


def elements(text: str, unit: str) -> list[int]:
    if unit == "word":
        return [word_hash(word) for word in words(text, spaced=True)]
    return [ord(letter) for letter in " ".join(words(text, spaced=False))]


def shingles(text: str, unit: str, size: int) -> list[int]:
    found = elements(text, unit)
    return [gram_hash(found[at : at + size]) for at in range(max(1, len(found) - size + 1))] if found else []


def gram_hash(gram: Sequence[int]) -> int:
    value = 0
    for element in gram:
        value = (value * ODD + element) % 2**64
    return mix((value + len(gram) * MIX_1) % 2**64)


def minima(hashes: Sequence[int], num_hashes: int, seed: int) -> list[int]:
    state = mix(seed)
    multipliers = [mix((state + k * ODD) % 2**64) >> 32 for k in range(1, num_hashes + 1)]
    return [min((h % 2**32 + multiplier * (h >> 32)) % 2**32 for h in hashes) for multiplier in multipliers]


def bands(text: str, unit: str, size: int, num_bands: int, rows: int, seed: int) -> list[int]:
    hashes = shingles(text, unit, size)
    if not hashes:
        return [0] * num_bands
    least = minima(hashes, num_bands * rows, seed)
    names = []
    for band in range(num_bands):
        name = mix(band + 1)
        for minimum in least[band * rows : (band + 1) * rows]:
            name = mix((name * ODD + minimum) % 2**64)
        names.append(name)
    return names
