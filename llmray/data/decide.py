"""A fate for every row: what rules and exact repeats say (`judge`), and what verified near repeats add (`settle`).

Rows are known by their numbers (`places`), in order of source and place, so nothing depends on how sources were cut or
who read them. A row costs some hundred bytes here, so one task judges tens of millions; the bucket names, of which a
row has twenty, are what is sharded (`buckets`). A row that exact rules or learned limits fail takes part in nothing
further: it must be nobody's better copy, and contradicts no preference. Which copy stays is a rank: what `config.keep` says, then the content id.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from llmray.data import features
from llmray.data.config import CurateConfig
from llmray.data.exact import KEY_BYTES, first_of_each, halves
from llmray.data.limits import F64, Limits, failed, learn_limits, unusual
from llmray.data.places import Places
from llmray.data.rules.config import ACROSS
from llmray.data.rules.preferences import Conflict, conflicts
from llmray.data.tables import FAILED, MEASURED, PAIRS, fixed_bytes
from llmray.data.verify import Verdicts

I64 = NDArray[np.int64]
I8 = NDArray[np.int8]
Keys = tuple[NDArray[np.uint64], NDArray[np.uint64]]

KEPT, FAILED_RULES, EXACT, NEAR, SEMANTIC = range(5)
"""Fates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What is known of R rows before any text is compared."""

    kind_R: I8
    length_R: I64
    rank_R: I64
    """A permutation; 0 is the best."""
    living_R: NDArray[np.bool_]
    """Rows that failed nothing."""
    copy_of_R: I64
    """The row that each is an exact copy of, its own number where it is none; an old row p is R + p."""

    @property
    def original(self) -> NDArray[np.bool_]:
        """Rows that take part in the search for near repeats, if they have bucket names."""
        return np.asarray(self.living_R & (self.copy_of_R == np.arange(len(self.copy_of_R))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fates:
    """What becomes of R rows; an old row p, of the snapshot that is added to, is R + p."""

    fate_R: I8
    matched_R: I64
    """The row that each was found to repeat; its own number where it repeats nothing. It stayed, or went by meaning."""
    similarity_R: F64
    """How alike the two are."""
    cluster_R: I64
    """The best row of its cluster; its own number for a row without repeats, -1 for one that failed a rule."""

    def kept_for(self, rows: I64) -> I64:
        """The rows that stayed where some rows stand: those they repeat, or what those went for by meaning."""
        kept = np.array(self.matched_R[rows])
        new = kept < len(self.matched_R)
        kept[new] = self.matched_R[kept[new]]
        return kept


def judge(
    config: CurateConfig,
    places: Places,
    *,
    fixed: pa.Table,
    values: Mapping[str, F64],
    known: Limits,
    old_exact: Iterable[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]],
) -> tuple[Judged, pa.Table, Limits]:
    """Judge rows by what is known of each.

    Args:
        fixed: fixed rules that were failed, as `FAILED`, with numbers of rows.
        values: what second looks found of each row [R], NaN where they do not apply.
        known: learned limits of the snapshot that is added to.
        old_exact: its exact keys: sorted, as two halves, with the old rows' numbers; segment by segment.

    Returns:
        What was found, all failures by row, and the learned limits.
    """
    learned = [one.name for one in features.build(config.statistics)]
    small = places.small(["id", "kind", "length", "exact", "quality", *(MEASURED + name for name in learned)])
    kind_R, length_R = small["kind"], small["length"]
    sound = np.ones(places.num_rows, bool)
    sound[fixed["row"].to_numpy()] = False
    measures = {**{name: small[MEASURED + name] for name in learned}, **values}
    limits = learn_limits(config, kind_R, sound, measures, known)
    strange = unusual(limits, kind_R, measures)
    living = sound.copy()
    living[strange["row"].to_numpy()] = False
    contradicted = _conflicting(config, places, living)
    living[contradicted["row"].to_numpy()] = False
    failures = pa.concat_tables([fixed, strange, contradicted])
    failures = failures.take(pa.array(np.argsort(failures["row"].to_numpy(), kind="stable")))
    rank_R = _rank(config, places, small)
    copy_of = np.arange(places.num_rows)
    if config.dedup.exact:
        alive = np.flatnonzero(living)
        keys = halves(small["exact"][alive])
        copy_of[alive] = alive[first_of_each(keys, rank_R[alive])]
        for high, low, rows in old_exact:
            old = look_up((high, low, rows), keys)
            known_R = (old >= 0) & (copy_of[alive] < places.num_rows)
            copy_of[alive[known_R]] = old[known_R] + places.num_rows
    judged = Judged(kind_R=kind_R, length_R=length_R, rank_R=rank_R, living_R=living, copy_of_R=copy_of)
    return judged, failures.cast(FAILED), limits


def settle(judged: Judged, verdicts: Sequence[Verdicts], meanings: Verdicts | None = None) -> Fates:
    """Put together what is known of every row.

    Args:
        meanings: what became of the rows that near repeats left, where they were compared by what they mean. A row that
            had gone for one of them goes on naming it, that being the row whose words it repeats, and follows it into
            its cluster.
    """
    num_rows = len(judged.copy_of_R)
    everyone = np.arange(num_rows)
    matched, similarity = judged.copy_of_R.copy(), np.ones(num_rows)
    cluster = np.where(judged.living_R, everyone, -1)
    for verdict in verdicts:
        matched[verdict.rows_C] = verdict.kept_for_C
        similarity[verdict.rows_C] = verdict.similarity_C
        cluster[verdict.rows_C] = verdict.cluster_C
    fate = np.where(judged.living_R, np.where(matched == everyone, KEPT, NEAR), FAILED_RULES).astype(np.int8)
    copies = np.flatnonzero(judged.copy_of_R != everyone)
    originals = judged.copy_of_R[copies]
    fate[copies] = EXACT
    old = originals >= num_rows
    cluster[copies[old]] = originals[old]
    # A copy follows its original: its words are the same, so it repeats the same kept row, just as closely.
    copies, originals = copies[~old], originals[~old]
    similarity[copies], cluster[copies] = similarity[originals], cluster[originals]
    fate[copies] = np.where(matched[originals] == originals, EXACT, NEAR)
    matched[copies] = matched[originals]
    if meanings is not None:
        rows, gone = meanings.rows_C, meanings.kept_for_C != meanings.rows_C
        fate[rows[gone]] = SEMANTIC
        matched[rows[gone]], similarity[rows[gone]] = meanings.kept_for_C[gone], meanings.similarity_C[gone]
        cluster = _united(cluster, rows, meanings.cluster_C, judged.rank_R)
    return Fates(fate_R=fate, matched_R=matched, similarity_R=similarity, cluster_R=cluster)


def look_up(index: tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]], keys: Keys) -> I64:
    """The row that has each key in a sorted index of 128-bit keys, or -1."""
    high, low, rows = index
    found = np.full(len(keys[0]), -1, np.int64)
    begin, end = np.searchsorted(high, keys[0]), np.searchsorted(high, keys[0], side="right")
    # Two keys of a corpus hardly ever share 64 bits: one step is nearly always the whole search.
    for step in range(int((end - begin).max(initial=0))):
        place = begin + step
        here = np.flatnonzero((place < end) & (found < 0))
        match = here[low[place[here]] == keys[1][here]]
        found[match] = rows[place[match]]
    return found


def _united(cluster_R: I64, rows_C: I64, meaning_C: I64, rank_R: I64) -> I64:
    """Clusters of near repeats and of one meaning, made one where they share a row, by their best row.

    Both kinds are named by their best row, which no other cluster of its kind holds. So a row is the node of both.
    """
    near_C = cluster_R[rows_C]
    other = near_C != meaning_C
    if not other.any():
        return cluster_R
    nodes, node_2C = np.unique(np.concatenate((near_C[other], meaning_C[other])), return_inverse=True)
    ends = (node_2C[: len(node_2C) // 2], node_2C[len(node_2C) // 2 :])
    edges = sparse.coo_matrix((np.ones(len(ends[0]), np.int8), ends), shape=(len(nodes), len(nodes)))
    _, label = csgraph.connected_components(edges.tocsr(), directed=False)
    best_first = np.argsort(rank_R[nodes])
    _, first = np.unique(label[best_first], return_index=True)
    name = nodes[best_first[first]][label]
    place = np.minimum(np.searchsorted(nodes, cluster_R), len(nodes) - 1)
    return np.where(nodes[place] == cluster_R, name[place], cluster_R)


def read_failed(places: Places) -> pa.Table:
    """The fixed rules that were failed, with numbers of rows."""
    return places.numbered("failed.arrow", FAILED)


def _conflicting(config: CurateConfig, places: Places, living_R: NDArray[np.bool_]) -> pa.Table:
    """Preferences that contradict others, as `FAILED`; one that goes for itself contradicts nobody."""
    pairs = places.numbered("pairs.arrow", PAIRS)
    pairs = pairs.filter(pa.array(living_R[pairs["row"].to_numpy()]))
    found = [FAILED.empty_table()]
    if pairs.num_rows:
        keys = [fixed_bytes(pairs[name]).view(f"V{KEY_BYTES}").ravel() for name in PAIRS.names[1:]]
        codes, rows = conflicts(*keys), pairs["row"].to_numpy()
        for rule, code in zip(ACROSS, (Conflict.SWAPPED, Conflict.CONTRADICTORY), strict=True):
            if rule in config.outliers.names:
                mine = rows[codes == code]
                found.append(failed(mine, rule, np.ones(len(mine)), np.zeros(len(mine))))
    return pa.concat_tables(found)


def _rank(config: CurateConfig, places: Places, small: Mapping[str, NDArray]) -> I64:  # type: ignore[type-arg]
    """A permutation of the rows, best first, by what `config.keep` says, then by content id and place."""
    priority = np.array([_priority(source, config) for source in places.sources], np.int64)
    of_row = np.repeat(priority, np.diff(places.source_bases))
    by = {"quality": -small["quality"], "length": -small["length"], "source": of_row}
    high, low = halves(small["id"])
    # The rows are in order of source and place, and the sort is stable: ties fall as they should.
    order = np.lexsort((low, high, *(by[name] for name in reversed(config.keep))))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _priority(source: str, config: CurateConfig) -> int:
    matches = (place for place, pattern in enumerate(config.source_priority) if fnmatchcase(source, pattern))
    return next(matches, len(config.source_priority))
