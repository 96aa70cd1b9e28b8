"""Curate raw rows into a dataset snapshot: exact and near repeats, outliers, splits, with a report of what went and why.

python jobs/curate.py --sources raw/*.jsonl.gz more.parquet --name docs --output /data/docs
python jobs/curate.py --sources today.jsonl --name docs --against docs@latest
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmray import console
from llmray.data.config import CurateConfig
from llmray.flow import operations
from llmray.options import run_job


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is curated, and where it goes."""

    sources: tuple[str, ...] = ()
    """Files, globs or folders of jsonl, csv, tsv, text, parquet or arrow; by default the running Python's documentation."""
    name: str = "docs"
    """The snapshot becomes the next version of this dataset."""
    output: str = ""
    """Folder that gets a copy of the snapshot, at any URI."""
    against: str = ""
    """Snapshot that is added to (`docs@latest`): its rows stay, and what repeats one of them goes; none by default."""
    curate: CurateConfig = field(default_factory=CurateConfig)
    """What is kept."""


def job(config: Config) -> None:
    made = operations.curate(
        config.sources,
        name=config.name,
        config=config.curate,
        output=config.output or None,
        against=config.against or None,
    )
    report = made.report
    counts = [[name, report["rows"][name]] for name in ("in", "kept", "removed", "quarantined")]
    why = {**{f"{how} repeat": count for how, count in report["repeats"].items()}, **report["rules"]}
    reasons = [[f"  {reason}", count] for reason, count in sorted(why.items(), key=lambda one: -one[1]) if count]
    print(console.table(["rows", "count"], [*counts[:3], *reasons, counts[3]]))
    if "onto" in report:
        onto = report["onto"]
        print(f"\nadded to {onto['digest'][:12]} of {onto['rows']:,} rows; {onto['repeated_by']:,} new rows repeat one")
    print(f"\n{config.name}@latest is {made.digest[:12]}; report: {made.uri}/report.html")


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(job, Config, argv, prog="jobs/curate.py", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
