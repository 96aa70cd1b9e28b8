"""Curation without Ray: the same pure functions in the same order, on one table a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llmray.data import decide, outputs
from llmray.data.config import CurateConfig
from llmray.data.minhash import shingle_sets
from llmray.data.prepare import prepare
from llmray.data.readers import Found
from llmray.data.report import Accounts, account
from llmray.data.rows import parse_row
from llmray.data.rules import build


@dataclass(frozen=True, kw_only=True, slots=True)
class Curated:
    found: decide.Candidates
    fates: decide.Fates
    accounts: Accounts

    def ids(self, chosen: Any) -> list[str]:
        return self.found.table["id"].take(pa.array(np.flatnonzero(chosen))).to_pylist()

    @property
    def kept(self) -> list[str]:
        return self.ids(self.fates.kept)


def curate_purely(blocks: Sequence[Sequence[Any]], config: CurateConfig | None = None) -> Curated:
    """Each block is a list of records; record i of block b comes from source `b`, row i + 1."""
    config = config or CurateConfig()
    rules = build(config.outliers)
    tables = []
    for number, block in enumerate(blocks):
        found = [Found(row=parse_row(record), number=at) for at, record in enumerate(block, 1)]
        tables.append(prepare(found, f"{number}.jsonl", config, rules))
    return decide_tables(tables, config)


def decide_tables(tables: Sequence[pa.Table], config: CurateConfig) -> Curated:
    small = [
        table.append_column("at", pa.array(np.arange(table.num_rows))).select([*decide.SMALL, "at"]) for table in tables
    ]
    found = decide.find_candidates(config, small)
    rows = found.documents[found.compared]
    block, at = found.table["block"].to_numpy()[rows], found.table["at"].to_numpy()[rows]
    parts = {
        int(number): shingle_sets(
            outputs.near_texts(tables[number], at[block == number], config), config.dedup.shingling()
        )
        for number in np.unique(block)
    }
    fates = decide.settle(config, found, *outputs.gather_shingles(found, parts))
    return Curated(found=found, fates=fates, accounts=account(found, fates, [], config))
