"""The accounts of a curation: what came in, what stayed, what went and why; and that they balance.

The figures hold no times and no machine, so the same data gives the same report. Rejected: figures summed up by the
tasks as they run; a retried task would count twice. They are taken from the fates of the rows, after the fact.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmray.data.config import CurateConfig
from llmray.data.decide import Candidates, Fates
from llmray.data.rows import SHAPES
from llmray.data.rules import build


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Rows by length; bin i holds lengths from `edges[i]` to below `edges[i + 1]` characters."""

    edges: list[int]
    before: list[int]
    after: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounts:
    """All figures of one curation."""

    records: int
    """Rows and quarantined records that came in."""
    kept: int
    removed: int
    quarantined: int
    losses: list[dict[str, Any]]
    """Parts of files that could not be read: source, last row before, reason, rows where known."""
    kinds: dict[str, dict[str, int]]
    """Kind of row (shape, or `choice`) to counts in, kept, rules, exact, near."""
    sources: dict[str, dict[str, int]]
    """Source to counts in, kept, removed, quarantined."""
    rules: dict[str, int]
    """Rows that failed each rule; a row that failed two counts under both."""
    repeats: dict[str, int]
    """Rows removed as exact and as near repeats."""
    quarantine: dict[str, int]
    """Records by reason, the commonest first."""
    limits: dict[str, dict[str, float | None]]
    """Lengths that count as usual, as learned for each kind."""
    dedup: dict[str, Any]
    """Banding, clusters, pairs compared and skipped."""
    histograms: dict[str, Histogram]
    """Lengths before and after, by kind."""
    examples: dict[str, list[dict[str, Any]]]
    """Places of rows to show for each reason."""
    why: dict[str, str]
    """What each rule measures, in a phrase."""

    def report(self) -> dict[str, Any]:
        """All of it as plain values, for the manifest."""
        return {
            "rows": {"in": self.records, "kept": self.kept, "removed": self.removed, "quarantined": self.quarantined},
            "kinds": self.kinds,
            "sources": self.sources,
            "rules": self.rules,
            "repeats": self.repeats,
            "quarantine": self.quarantine,
            "losses": self.losses,
            "length_limits": self.limits,
            "dedup": self.dedup,
            "lengths": {
                kind: {"edges": histogram.edges, "before": histogram.before, "after": histogram.after}
                for kind, histogram in self.histograms.items()
            },
        }

    def summary(self) -> str:
        """One line for a person."""
        lost = f"; {len(self.losses)} files damaged" if self.losses else ""
        return (
            f"kept {self.kept:,} of {self.records:,} rows: {self.removed:,} removed "
            f"({self.repeats['exact']:,} exact and {self.repeats['near']:,} near repeats), "
            f"{self.quarantined:,} quarantined{lost}"
        )


def account(found: Candidates, fates: Fates, quarantine: Sequence[Mapping[str, Any]], config: CurateConfig) -> Accounts:
    """Take the figures and see that they balance: in = kept + removed + quarantined, by source as well."""
    table, kept = found.table, fates.kept
    kinds = np.asarray(table["kind"].to_pylist(), dtype=str)
    failed = np.array([bool(failures) for failures in found.failures])
    bad = [record for record in quarantine if record["status"] == "quarantined"]
    by_kind = {
        kind: {
            "in": int((kinds == kind).sum()),
            "kept": int((kinds == kind)[kept].sum()),
            "rules": int((kinds == kind)[failed].sum()),
            **{how: int(((kinds == kind) & (fates.match == how)).sum()) for how in ("exact", "near")},
        }
        for kind in (*SHAPES, "choice")
        if (kinds == kind).any()
    }
    accounts = Accounts(
        records=table.num_rows + len(bad),
        kept=int(kept.sum()),
        removed=int((~kept).sum()),
        quarantined=len(bad),
        losses=[
            {name: record[key] for name, key in _LOSS.items() if record[key] is not None}
            for record in quarantine
            if record["status"] == "lost"
        ],
        kinds=by_kind,
        sources=_sources(table["source"].to_pylist(), kept, bad),
        rules=_counted(failure.rule for failures in found.failures for failure in failures),
        repeats={how: int((fates.match == how).sum()) for how in ("exact", "near")},
        quarantine=_counted(record["reason"] for record in bad),
        limits={
            kind: {"low": float(low) if low > 0 else None, "high": float(high) if np.isfinite(high) else None}
            for kind, (low, high) in found.limits.items()
        },
        dedup=_dedup(fates, config),
        histograms={
            kind: _histogram(table["length"].to_numpy()[kinds == kind], kept[kinds == kind]) for kind in by_kind
        },
        examples=_examples(found, fates, config.examples),
        why={rule.name: rule.why for rule in build(config.outliers)},
    )
    _balance(accounts)
    return accounts


_LOSS = {"source": "source", "after_row": "row", "reason": "reason", "rows": "lost_rows"}


def _balance(accounts: Accounts) -> None:
    assert accounts.records == accounts.kept + accounts.removed + accounts.quarantined
    for name, count in accounts.sources.items():
        assert count["in"] == count["kept"] + count["removed"] + count["quarantined"], name
    for kind, count in accounts.kinds.items():
        assert count["in"] == count["kept"] + count["rules"] + count["exact"] + count["near"], kind


def _sources(
    names: Sequence[str], kept: NDArray[np.bool_], bad: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, int]]:
    stayed = Counter(name for name, stays in zip(names, kept, strict=True) if stays)
    went = Counter(name for name, stays in zip(names, kept, strict=True) if not stays)
    broken = Counter(record["source"] for record in bad)
    return {
        name: {
            "in": stayed[name] + went[name] + broken[name],
            "kept": stayed[name],
            "removed": went[name],
            "quarantined": broken[name],
        }
        for name in sorted({*stayed, *went, *broken})
    }


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _dedup(fates: Fates, config: CurateConfig) -> dict[str, Any]:
    banding = config.dedup.banding()
    clusters, sizes = np.unique(fates.cluster[fates.cluster >= 0], return_counts=True)
    return {
        "threshold": config.dedup.threshold,
        "bands": banding.num_bands,
        "rows_per_band": banding.rows_per_band,
        "recall_at_threshold": round(banding.candidate_probability(config.dedup.threshold), 6),
        "clusters": int((sizes > 1).sum()),
        "largest_cluster": int(sizes.max()) if len(clusters) else 0,
        "pairs_compared": fates.num_candidates,
        "pairs_skipped_in_hot_buckets": fates.num_skipped,
    }


def _histogram(lengths: NDArray[np.int64], kept: NDArray[np.bool_]) -> Histogram:
    # Edges 0, 1, 2, 3, 4, 6, 8, 11, …: half octaves, the same for every data set.
    edges = sorted({0, *(round(2 ** (step / 2)) for step in range(0, 2 * max(4, int(lengths.max()).bit_length()) + 1))})
    return Histogram(
        edges=edges,
        before=np.histogram(lengths, edges)[0].tolist(),
        after=np.histogram(lengths[kept], edges)[0].tolist(),
    )


def _examples(found: Candidates, fates: Fates, most: int) -> dict[str, list[dict[str, Any]]]:
    """For each rule, the rows that failed it furthest; for repeats, the least alike that still went. Ties by row."""
    block, at = found.table["block"].to_numpy(), found.table["at"].to_numpy()

    def place(row: int) -> dict[str, Any]:
        return {"block": int(block[row]), "at": int(at[row])}

    wanted: dict[str, list[tuple[float, int, dict[str, Any]]]] = {}
    for row, failures in enumerate(found.failures):
        for failed in failures:
            further = -abs(failed.value - failed.threshold)
            figures = {"value": failed.value, "threshold": failed.threshold}
            wanted.setdefault(failed.rule, []).append((further, row, {**place(row), **figures}))
    for how in ("near", "exact"):
        for row in np.flatnonzero(fates.match == how).tolist():
            like = float(fates.similarity[row])
            shown = {**place(row), "similarity": like, "repeats": place(int(fates.matched[row]))}
            wanted.setdefault(f"{how} repeat", []).append((like, row, shown))
    return {
        reason: [shown for *_, shown in sorted(rows, key=lambda item: item[:2])[:most]]
        for reason, rows in sorted(wanted.items())
        if most
    }
