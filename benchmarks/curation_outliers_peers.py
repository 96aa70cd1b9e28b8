"""The peers of curation_outliers.py, for an interpreter of their own: reads in.npz in a folder and writes out.npz."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from semhash import SemHash
from sklearn.ensemble import IsolationForest


class Known:
    """An encoder that has seen all its texts: each is the number of its vector."""

    def __init__(self, vectors_nk: Any) -> None:
        self._vectors_nk = vectors_nk

    def encode(self, inputs: Any, **_: Any) -> Any:
        """Vectors of the numbers."""
        return self._vectors_nk[[int(text) for text in inputs]]


def main(folder: Path) -> None:
    """Score every text by each peer; higher is stranger."""
    with np.load(folder / "in.npz") as given:
        values_nm, vectors_nk = given["values"], given["vectors"].astype(np.float32)
    usual_m = np.nanmedian(values_nm, axis=0)
    filled_nm = np.where(np.isnan(values_nm), usual_m, values_nm)
    forest = IsolationForest(n_estimators=300, random_state=0).fit(filled_nm)
    scores = {"IsolationForest": -forest.score_samples(filled_nm)}
    # semhash first drops repeats; each number is a text of its own, so it judges all of them.
    found = SemHash.from_records(
        [str(n) for n in range(len(vectors_nk))], model=Known(vectors_nk)
    ).self_filter_outliers()
    likeness_n = np.zeros(len(vectors_nk))
    for records, likeness in ((found.selected, found.scores_selected), (found.filtered, found.scores_filtered)):
        likeness_n[[int(record) for record in records]] = likeness
    scores["semhash"] = -likeness_n
    np.savez(folder / "out.npz", **scores)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
