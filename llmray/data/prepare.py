"""Records to the columns that decide about them: id, exact key, band hashes, failed rules. Pure, a batch at a time."""

from collections.abc import Iterator, Sequence
from itertools import islice

import pyarrow as pa

from llmray.data import minhash
from llmray.data.config import CurateConfig
from llmray.data.exact import exact_key
from llmray.data.readers import Found, Loss, Quarantined, Record, read
from llmray.data.rows import Row
from llmray.data.rules import Rule, build, judge
from llmray.data.tables import WORK, content_columns

_EXCERPT = 300


def prepare_file(uri: str, source: str, config: CurateConfig, batch_rows: int) -> Iterator[pa.Table]:
    """Work tables of a file, `batch_rows` records at a time; `source` is its name in the snapshot."""
    rules = build(config.outliers)
    records = read(uri)
    while batch := list(islice(records, batch_rows)):
        yield prepare(batch, source, config, rules)


def prepare(records: Sequence[Record], source: str, config: CurateConfig, rules: Sequence[Rule]) -> pa.Table:
    """The work table of some records."""
    rows = [record.row if isinstance(record, Found) else None for record in records]
    failures = [[] if row is None else judge(row, rules) for row in rows]
    columns = {
        "status": [_STATUS[type(record)] for record in records],
        "reason": [None if isinstance(record, Found) else record.reason for record in records],
        "raw": [record.raw if isinstance(record, Quarantined) else None for record in records],
        "lost_rows": [record.rows if isinstance(record, Loss) else None for record in records],
        "source": [source] * len(records),
        "row": [record.number for record in records],
        "kind": [row and row.kind for row in rows],
        "length": [row and length(row) for row in rows],
        "exact": [row and exact_key(row, config.dedup.normalization) for row in rows],
        "bands": _bands(rows, failures, config),
        "failed": [
            [{"rule": f.rule, "value": f.value, "threshold": f.threshold} for f in failed] for failed in failures
        ],
        "excerpt": [row and excerpt(row) for row in rows],
    }
    content = content_columns(rows)
    return pa.table(
        [content[field.name] if field.name in content else pa.array(columns[field.name], field.type) for field in WORK],
        schema=WORK,
    )


def length(row: Row) -> int:
    """Characters of what a model would learn to write; of all of it where that is one of some choices."""
    return len(row.whole if row.kind == "choice" else row.answer)


def excerpt(row: Row) -> str:
    """How the row begins, for a person."""
    if row.shape == "text":
        return (row.text or "")[:_EXCERPT]
    if row.shape == "messages":
        return "\n".join(f"{role}: {content}" for role, content in row.messages or ())[:_EXCERPT]
    return f"prompt: {row.prompt}\nchosen: {row.chosen}\nrejected: {row.rejected}"[:_EXCERPT]


def _bands(rows: Sequence[Row | None], failures: Sequence[Sequence[object]], config: CurateConfig) -> pa.Array:
    """Bucket names of the rows that may have near repeats: null where a rule has already decided."""
    banding = config.dedup.banding()
    texts = [
        (at, text)
        for at, (row, failed) in enumerate(zip(rows, failures, strict=True))
        if config.dedup.near and row is not None and not failed and (text := config.dedup.near_text(row)) is not None
    ]
    bands_DN, num_shingles_D = minhash.sketch(
        [text for _, text in texts], config.dedup.shingling(), banding, config.seed
    )
    # A text without words has nothing in common with anything.
    made = {at: bands for (at, _), bands, some in zip(texts, bands_DN, num_shingles_D, strict=True) if some}
    return [made.get(at) for at in range(len(rows))]


_STATUS = {Found: "row", Quarantined: "quarantined", Loss: "lost"}
