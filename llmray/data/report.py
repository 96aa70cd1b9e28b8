"""The accounts of a curation: what came in, what stayed, what went and why; and that they balance.

The figures hold no times and no machine, so the same data gives the same report. Rejected: figures summed up by the
tasks as they run; a retried task would count twice. They are taken from the fates of the rows, after the fact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmray.data.config import CurateConfig
from llmray.data.decide import EXACT, FAILED_RULES, KEPT, NEAR, SEMANTIC, Fates, Judged
from llmray.data.index import OldRows
from llmray.data.limits import Limits, reasons
from llmray.data.outputs import clustered, excerpts
from llmray.data.places import Places
from llmray.data.rules import build
from llmray.data.tables import KINDS, SAID, hexadecimal

I64 = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Rows by length; bin i holds lengths from `edges[i]` to below `edges[i + 1]` characters."""

    edges: list[int]
    before: list[int]
    after: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What it took to find near repeats."""

    num_candidates: int
    num_skipped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounts:
    """All figures of one curation."""

    records: int
    """Rows and quarantined records that came in."""
    kept: int
    removed: int
    quarantined: int
    onto: dict[str, Any]
    """Of a snapshot that was added to: its digest, its rows, and how many new rows repeat one of them; else empty."""
    losses: list[dict[str, Any]]
    """Parts of files that could not be read: source, last row before, reason, rows where known."""
    kinds: dict[str, dict[str, int]]
    """Kind of row (shape, or `choice`) to counts in, kept, rules, exact, near, semantic."""
    sources: dict[str, dict[str, int]]
    """Source to counts in, kept, removed, quarantined."""
    rules: dict[str, int]
    """Rows that failed each rule; a row that failed two counts under both."""
    repeats: dict[str, int]
    """Rows removed as exact, near and semantic repeats."""
    quarantine: dict[str, int]
    """Records by reason, the commonest first."""
    stripped: dict[str, int]
    """Boilerplate that was taken out: rows, units (lines or paragraphs), characters; empty where it was not looked for."""
    personal: dict[str, int]
    """Personal data that was found and counted or masked, by kind; empty where it was not looked for."""
    limits: dict[str, dict[str, dict[str, float | None]]]
    """Learned limits: rule to kind to the smallest and largest usual value; None where there is none."""
    dedup: dict[str, Any]
    """Banding, clusters, pairs compared and skipped."""
    histograms: dict[str, Histogram]
    """Lengths before and after, by kind."""
    examples: dict[str, list[dict[str, Any]]]
    """Rows to show for each reason."""
    why: dict[str, str]
    """What each rule measures, in a phrase."""

    def report(self) -> dict[str, Any]:
        """All figures as plain values, for the manifest."""
        return {
            "rows": {"in": self.records, "kept": self.kept, "removed": self.removed, "quarantined": self.quarantined},
            **({"onto": self.onto} if self.onto else {}),
            "kinds": self.kinds,
            "sources": self.sources,
            "rules": self.rules,
            "repeats": self.repeats,
            "quarantine": self.quarantine,
            **({"personal": self.personal} if self.personal else {}),
            **({"stripped": self.stripped} if self.stripped else {}),
            "losses": self.losses,
            "limits": self.limits,
            "dedup": self.dedup,
            "lengths": {
                kind: {"edges": histogram.edges, "before": histogram.before, "after": histogram.after}
                for kind, histogram in self.histograms.items()
            },
        }

    def summary(self) -> str:
        """One line for a person."""
        lost = f"; {len(self.losses)} files damaged" if self.losses else ""
        semantic = f", {self.repeats['semantic']:,} by meaning" if self.repeats["semantic"] else ""
        onto = f", onto {self.onto['rows']:,} kept before" if self.onto else ""
        return (
            f"kept {self.kept:,} of {self.records:,} rows: {self.removed:,} removed "
            f"({self.repeats['exact']:,} exact and {self.repeats['near']:,} near repeats{semantic}), "
            f"{self.quarantined:,} quarantined{lost}{onto}"
        )


def account(
    places: Places,
    config: CurateConfig,
    *,
    judged: Judged,
    fates: Fates,
    failures: pa.Table,
    limits: Limits,
    compared: Compared,
    quarantine: Mapping[str, Any],
    onto: tuple[str, OldRows] | None = None,
) -> Accounts:
    """Take the figures and see that they balance: in = kept + removed + quarantined, by source as well.

    Args:
        quarantine: reasons, sources, losses and the first record, as `outputs.write_quarantine` tells them.
        onto: digest and rows of the snapshot that is added to.
    """
    fate, kind, kept = fates.fate_R, judged.kind_R, fates.fate_R == KEPT
    bad = sum(quarantine["reasons"].values())
    by_kind = {
        name: {how: int(count) for how, count in zip(_FATES, _count_fates(fate[kind == code]), strict=True)}
        for code, name in enumerate(KINDS)
        if (kind == code).any()
    }
    old = np.asarray(fates.matched_R) >= places.num_rows
    accounts = Accounts(
        records=places.num_rows + bad,
        kept=int(kept.sum()),
        removed=int((~kept).sum()),
        quarantined=bad,
        onto={} if onto is None else {"digest": onto[0], "rows": onto[1].num_rows, "repeated_by": int(old.sum())},
        losses=quarantine["losses"],
        kinds={name: {"in": sum(count.values()), **count} for name, count in by_kind.items()},
        sources=_sources(places, kept, quarantine["sources"]),
        rules=_by_count(dict(_rule_counts(failures))),
        repeats={how: int((fate == code).sum()) for how, code in _REPEATS.items()},
        quarantine=_by_count(quarantine["reasons"]),
        stripped=dict(places.stripped),
        personal=_by_count(places.personal),
        limits={
            rule: {name: {"low": _finite(low), "high": _finite(high)} for name, (low, high) in kinds.items()}
            for rule, kinds in limits.items()
        },
        dedup=_dedup(fates, compared, config),
        histograms={
            name: _histogram(judged.length_R[kind == KINDS.index(name)], kept[kind == KINDS.index(name)])
            for name in by_kind
        },
        examples=_examples(places, fates, failures, config.examples, onto and onto[1]),
        why={
            **{rule.name: rule.why for rule in build(config.outliers)},
            **reasons(config),
            **_WHY,
        },
    )
    _balance(accounts)
    return accounts


_WHY = {
    "boilerplate": "share of the text that many texts have",
    "contamination": "share of an evaluation item's runs of words that the row holds",
    "swapped_preference": "another row prefers the other answer",
    "contradictory_preference": "the preferences of this prompt go round in a circle",
}
_REPEATS = {"exact": EXACT, "near": NEAR, "semantic": SEMANTIC}
_FATES = ("kept", "rules", *_REPEATS)
assert (KEPT, FAILED_RULES, *_REPEATS.values()) == tuple(range(len(_FATES)))


def _count_fates(fate: NDArray[np.int8]) -> NDArray[np.int64]:
    return np.bincount(fate, minlength=len(_FATES))


def _balance(accounts: Accounts) -> None:
    assert accounts.records == accounts.kept + accounts.removed + accounts.quarantined
    for name, count in accounts.sources.items():
        assert count["in"] == count["kept"] + count["removed"] + count["quarantined"], name
    for kind, count in accounts.kinds.items():
        assert count["in"] == sum(count[fate] for fate in _FATES), kind
    for name in ("in", "kept", "removed", "quarantined"):
        whole = accounts.records if name == "in" else getattr(accounts, name)
        assert whole == sum(count[name] for count in accounts.sources.values()), name


def _sources(places: Places, kept: NDArray[np.bool_], bad: Mapping[str, int]) -> dict[str, dict[str, int]]:
    bases = places.source_bases
    stayed = np.diff(np.concatenate(([0], np.cumsum(kept)))[bases])
    rows = np.diff(bases)
    return {
        name: {
            "in": int(rows[at]) + bad.get(name, 0),
            "kept": int(stayed[at]),
            "removed": int(rows[at] - stayed[at]),
            "quarantined": bad.get(name, 0),
        }
        for at, name in enumerate(places.sources)
        if rows[at] or bad.get(name)
    }


def _rule_counts(failures: pa.Table) -> list[tuple[str, int]]:
    counts = failures["rule"].value_counts().to_pylist()
    return [(entry["values"], entry["counts"]) for entry in counts]


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _dedup(fates: Fates, compared: Compared, config: CurateConfig) -> dict[str, Any]:
    banding = config.dedup.banding()
    _, sizes = np.unique(np.asarray(fates.cluster_R)[clustered(fates)], return_counts=True)
    return {
        "threshold": config.dedup.threshold,
        "bands": banding.num_bands,
        "rows_per_band": banding.rows_per_band,
        "recall_at_threshold": round(banding.candidate_probability(config.dedup.threshold), 6),
        "clusters": len(sizes),
        "largest_cluster": int(sizes.max(initial=0)),
        "pairs_compared": compared.num_candidates,
        "pairs_skipped_in_hot_buckets": compared.num_skipped,
    }


def _histogram(lengths: I64, kept: NDArray[np.bool_]) -> Histogram:
    # Edges 0, 1, 2, 3, 4, 6, 8, 11, …: half octaves, the same for every data set.
    edges = sorted({0, *(round(2 ** (step / 2)) for step in range(0, 2 * max(4, int(lengths.max()).bit_length()) + 1))})
    return Histogram(
        edges=edges,
        before=np.histogram(lengths, edges)[0].tolist(),
        after=np.histogram(lengths[kept], edges)[0].tolist(),
    )


def _examples(
    places: Places, fates: Fates, failures: pa.Table, most: int, old: OldRows | None
) -> dict[str, list[dict[str, Any]]]:
    """For each rule, the rows that failed it furthest; for repeats, the least alike that still went. Ties by row."""
    if not most:
        return {}
    wanted: dict[str, list[dict[str, Any]]] = {}
    rule, value, threshold = (np.asarray(failures[name]) for name in ("rule", "value", "threshold"))
    detail = failures["detail"].to_pylist()
    rows = failures["row"].to_numpy()
    for name in sorted(set(rule.tolist())):
        mine = np.flatnonzero(rule == name)
        furthest = mine[np.argsort(-np.abs(value[mine] - threshold[mine]), kind="stable")[:most]]
        wanted[name] = [
            {
                "row": int(rows[at]),
                "value": float(value[at]),
                "threshold": float(threshold[at]),
                **({} if detail[at] is None else {"detail": detail[at]}),
            }
            for at in furthest
        ]
    for how, code in _REPEATS.items():
        mine = np.flatnonzero(fates.fate_R == code)
        least = mine[np.argsort(fates.similarity_R[mine], kind="stable")[:most]]
        if len(least):
            wanted[f"{how} repeat"] = [
                {"row": int(at), "similarity": float(fates.similarity_R[at]), "repeats": int(fates.matched_R[at])}
                for at in least
            ]
    needed = {row for shown in wanted.values() for one in shown for row in (one["row"], one.get("repeats", one["row"]))}
    looks = _look(places, old, np.array(sorted(needed), np.int64))
    return {
        reason: [
            {
                **looks[one["row"]],
                **{name: figure for name, figure in one.items() if name not in ("row", "repeats")},
                **({"repeats": looks[one["repeats"]]} if "repeats" in one else {}),
            }
            for one in shown
        ]
        for reason, shown in sorted(wanted.items())
    }


def _look(places: Places, old: OldRows | None, rows: I64) -> dict[int, dict[str, Any]]:
    """id, source, row and excerpt of rows, new ones and old ones."""
    new, before = rows[rows < places.num_rows], rows[rows >= places.num_rows]
    found: dict[int, dict[str, Any]] = {}
    if len(new):
        source, number = places.source_and_row(new)
        shown = excerpts(places.of(new, "content.arrow", ["kind", *SAID]))
        ids = hexadecimal(places.ids(new))
        _tell(found, new, ids.to_pylist(), source.to_pylist(), number.tolist(), shown.to_pylist())
    if len(before):
        assert old is not None
        table = old.read(before - places.num_rows, ["id", "shape", "source", "row", *SAID])
        kind = pa.array([KINDS.index(shape) for shape in table["shape"].to_pylist()], pa.int8())
        shown = excerpts(table.append_column("kind", kind))
        names = (table[name].to_pylist() for name in ("id", "source", "row"))
        _tell(found, before, *names, shown.to_pylist())
    return found


def _tell(found: dict[int, dict[str, Any]], rows: I64, *columns: Sequence[Any]) -> None:
    for row, id_, source, number, shown in zip(rows.tolist(), *columns, strict=True):
        found[row] = {"id": id_, "source": source, "row": number, "excerpt": shown}
