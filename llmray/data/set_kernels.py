"""Sets of shingles compared and settled, compiled: the loops of `near` and `components`, which say what they are for.

A set is a sorted run of distinct 64-bit hashes in one long array (`shingles_S`, `offsets_D1`). Shape legend: D
documents, S shingles, P pairs, B buckets, M members of all buckets, E edges.
"""

# ruff: noqa: PLR0917 (numba passes arrays one by one)

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmray.data.compiled import entry, inner

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

_1, _2, _3, _4 = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
_SLOTS = np.uint64(20)
"""Counters of shingles are told apart by this many of their bits: 4 MiB of counters."""
_PLACE_BITS = 36


@entry
def jaccard_of_pairs(shingles_S: U64, offsets_D1: I64, left_P: I64, right_P: I64, threshold: float) -> F64:
    """Jaccard similarity of pairs of documents; 0 below the threshold, and where both are empty."""
    similarity_P = np.empty(len(left_P), np.float64)
    for pair in range(len(left_P)):
        similarity_P[pair] = _jaccard(shingles_S, offsets_D1, left_P[pair], right_P[pair], threshold)
    return similarity_P


@entry
def compare_buckets(
    shingles_S: U64, offsets_D1: I64, members_M: I64, offsets_B1: I64, threshold: float
) -> tuple[I64, I64, F64, int]:
    """Compare every two documents that share a bucket, once.

    Args:
        members_M: documents, bucket by bucket, ascending in each.

    Returns:
        left, right and similarity of pairs at the threshold or above, by left, and the number of comparisons.
    """
    left_E, right_E, similarity_E = np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(1024, np.float64)
    met_D = np.full(len(offsets_D1) - 1, -1, np.int64)
    num_edges, num_compared = 0, 0
    places_M, ends_M = _by_document(members_M, offsets_B1, len(met_D))
    for place in places_M:
        document = members_M[place]
        for other in members_M[place + 1 : ends_M[place]]:
            if met_D[other] == document:
                continue
            met_D[other] = document
            num_compared += 1
            similarity = _jaccard(shingles_S, offsets_D1, document, other, threshold)
            if similarity >= threshold:
                if num_edges == len(left_E):
                    left_E, right_E = _doubled(left_E), _doubled(right_E)
                    similarity_E = _doubled(similarity_E)
                left_E[num_edges], right_E[num_edges], similarity_E[num_edges] = document, other, similarity
                num_edges += 1
    return left_E[:num_edges].copy(), right_E[:num_edges].copy(), similarity_E[:num_edges].copy(), num_compared


@entry
def compare_with_hubs(
    shingles_S: U64, offsets_D1: I64, members: I64, rounds: int, threshold: float
) -> tuple[I64, I64, F64, I64, int]:
    """The first member with all others; those alike leave; the first of the rest, and so on for some rounds.

    Returns:
        left, right and similarity of pairs at the threshold or above, who is left, and the number of comparisons.
    """
    waiting, num_waiting, num_edges, num_compared = members.copy(), len(members), 0, 0
    left_E, right_E = np.empty(len(members), np.int64), np.empty(len(members), np.int64)
    similarity_E = np.empty(len(members), np.float64)
    for _ in range(rounds):
        if num_waiting < 2:
            break
        hub, stay = waiting[0], 0
        for place in range(1, num_waiting):
            other = waiting[place]
            similarity = _jaccard(shingles_S, offsets_D1, hub, other, threshold)
            if similarity >= threshold:
                left_E[num_edges], right_E[num_edges], similarity_E[num_edges] = hub, other, similarity
                num_edges += 1
            else:
                waiting[stay] = other
                stay += 1
        num_compared += num_waiting - 1
        num_waiting = stay
    return left_E[:num_edges], right_E[:num_edges], similarity_E[:num_edges], waiting[:num_waiting], num_compared


@entry
def prefixes(shingles_S: U64, offsets_D1: I64, documents: I64, threshold: float) -> tuple[U64, I64]:
    """Prefixes of some documents: the shingles of which two must share one to be `threshold` alike.

    A pair with Jaccard similarity t shares at least t · |A| shingles of A. So, in one order of all shingles, the first
    |A| - ceil(t · |A|) + 1 of A and as many of B must have one in common (Chaudhuri, Ganti and Kaushik 2006; Bayardo,
    Ma and Srikant 2007). The order is by how many of the documents have a shingle, rarest first, as told by counters
    that some shingles share: any one order is right, and this one is nearly the best. Shingles that only one document
    has are left out.

    Returns:
        shingle and document of each entry.
    """
    counters = np.zeros(1 << np.int64(_SLOTS), np.int32)
    room = 0
    for document in documents:
        for shingle in shingles_S[offsets_D1[document] : offsets_D1[document + 1]]:
            counters[np.int64(shingle >> (np.uint64(64) - _SLOTS))] += 1
        room += _prefix_size(offsets_D1[document + 1] - offsets_D1[document], threshold)
    entries, owners, num_entries = np.empty(room, np.uint64), np.empty(room, np.int64), 0
    for document in documents:
        own = shingles_S[offsets_D1[document] : offsets_D1[document + 1]]
        # How many documents have it, then its place, that is its hash: so ties fall alike in each document.
        keys = np.empty(len(own), np.int64)
        for place in range(len(own)):
            counted = np.int64(counters[np.int64(own[place] >> (np.uint64(64) - _SLOTS))])
            keys[place] = (counted << _PLACE_BITS) + place
        _sort(keys)
        for key in keys[: _prefix_size(len(own), threshold)]:
            if key >> _PLACE_BITS > 1:
                entries[num_entries], owners[num_entries] = own[key & ((1 << _PLACE_BITS) - 1)], document
                num_entries += 1
    return entries[:num_entries].copy(), owners[:num_entries].copy()


@entry
def settle(
    shingles_S: U64,
    offsets_D1: I64,
    starts_D1: I64,
    neighbours: I64,
    similarity: F64,
    threshold: float,
    max_looks: int,
    kept_for_D: I64,
    similarity_D: F64,
) -> None:
    """Best first, keep what nothing kept has removed, and remove what repeats it; written to the last two arguments.

    Args:
        starts_D1, neighbours, similarity: edges in both directions, by document and ascending neighbour.
        max_looks: documents that look through the neighbours of one that they have an edge with.
        kept_for_D: at first each document's own number.
        similarity_D: at first ones.
    """
    num_documents = len(offsets_D1) - 1
    decided_D, met_D = np.zeros(num_documents, np.bool_), np.full(num_documents, -1, np.int64)
    looks_D = np.zeros(num_documents, np.int64)
    for document in range(num_documents):
        begin, end = starts_D1[document], starts_D1[document + 1]
        if begin == end or decided_D[document]:
            continue
        decided_D[document] = True
        met_D[document] = document
        for place in range(begin, end):
            near = neighbours[place]
            met_D[near] = document
            if not decided_D[near] and similarity[place] >= threshold:
                decided_D[near] = True
                kept_for_D[near] = document
                similarity_D[near] = similarity[place]
        for place in range(begin, end):
            near = neighbours[place]
            looks_D[near] += 1
            if looks_D[near] > max_looks:
                continue
            for far in neighbours[starts_D1[near] : starts_D1[near + 1]]:
                if met_D[far] == document:
                    continue
                met_D[far] = document
                if decided_D[far]:
                    continue
                alike = _jaccard(shingles_S, offsets_D1, document, far, threshold)
                if alike >= threshold:
                    decided_D[far] = True
                    kept_for_D[far] = document
                    similarity_D[far] = alike


@inner
def _by_document(members_M: I64, offsets_B1: I64, num_documents: int) -> tuple[I64, I64]:
    """Places of members in order of document, and where the bucket of each place ends."""
    next_D = np.zeros(num_documents + 1, np.int64)
    for document in members_M:
        next_D[document + 1] += 1
    for document in range(num_documents):
        next_D[document + 1] += next_D[document]
    places_M, ends_M = np.empty(len(members_M), np.int64), np.empty(len(members_M), np.int64)
    for bucket in range(len(offsets_B1) - 1):
        for place in range(offsets_B1[bucket], offsets_B1[bucket + 1]):
            places_M[next_D[members_M[place]]] = place
            next_D[members_M[place]] += 1
            ends_M[place] = offsets_B1[bucket + 1]
    return places_M, ends_M


@inner
def _jaccard(shingles_S: U64, offsets_D1: I64, one: int, other: int, threshold: float) -> float:
    """Jaccard similarity; 0 as soon as it is sure to be below the threshold.

    Near repeats are alike in long runs, which four at a time pass; where they differ, no branch depends on which of
    the two has the lesser hash, since that cannot be guessed. Places are unsigned: numba reads a negative one from the
    end, and would ask each time.
    """
    at, end = np.uint64(offsets_D1[one]), np.uint64(offsets_D1[one + 1])
    across, far_end = np.uint64(offsets_D1[other]), np.uint64(offsets_D1[other + 1])
    size, far_size = np.int64(end - at), np.int64(far_end - across)
    if min(size, far_size) == 0 or min(size, far_size) / max(size, far_size) < threshold:
        return 0.0
    # A similarity of t takes t / (1 + t) of both sizes together: so many may miss. One more for rounding.
    may_miss = size + far_size - 2 * (np.int64(threshold / (1.0 + threshold) * (size + far_size)) - 1)
    start = at + across
    shared: int | np.int64 = 0
    while at + _4 <= end and across + _4 <= far_end:
        apart = (shingles_S[at] ^ shingles_S[across]) | (shingles_S[at + _1] ^ shingles_S[across + _1])
        apart |= (shingles_S[at + _2] ^ shingles_S[across + _2]) | (shingles_S[at + _3] ^ shingles_S[across + _3])
        if apart == 0:
            shared += 4
            at += _4
            across += _4
            continue
        for _ in range(4):
            here, there = shingles_S[at], shingles_S[across]
            shared += np.int64(here == there)
            at += np.uint64(here <= there)
            across += np.uint64(there <= here)
        if np.int64(at + across - start) - 2 * shared > may_miss:
            return 0.0
    while at < end and across < far_end:
        here, there = shingles_S[at], shingles_S[across]
        shared += np.int64(here == there)
        at += np.uint64(here <= there)
        across += np.uint64(there <= here)
    similarity = shared / (size + far_size - shared)
    return similarity if similarity >= threshold else 0.0


@inner
def _sort(values: I64) -> None:
    """Shell's sort, in place: short to compile, where numpy's takes seconds."""
    gap = len(values) >> 1
    while gap:
        for at in range(gap, len(values)):
            value, place = values[at], at
            while place >= gap and values[place - gap] > value:
                values[place] = values[place - gap]
                place -= gap
            values[place] = value
        gap = 1 if gap == 2 else gap * 5 // 11


@inner
def _prefix_size(size: int, threshold: float) -> Any:
    # A little less than the product: rounding must never shorten a prefix.
    return 0 if size == 0 else min(size, size - np.int64(np.ceil(threshold * size * (1.0 - 1e-12))) + 1)


@inner
def _doubled(values: Any) -> Any:
    grown = np.empty(2 * len(values), values.dtype)
    grown[: len(values)] = values
    return grown
