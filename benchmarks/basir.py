"""The ranking metric beside scikit-learn's `ndcg_score`: the same values, and the time.

python benchmarks/basir.py
"""

from __future__ import annotations

from importlib import metadata

import numpy as np
from sklearn.metrics import ndcg_score

from common import Row, faster, turns, warn_if_busy, write
from outlay.evals.ranking import ndcg_rows

CASES = {  # events, items, distinct scores (0: all distinct)
    "1000 events of 12 items": (1000, 12, 0),
    "1000 events of 12 items, ties": (1000, 12, 4),
    "300 events of 81 items, ties": (300, 81, 20),
}
REPEATS = 7


def main() -> None:
    warn_if_busy()
    peer = f"scikit-learn {metadata.version('scikit-learn')} ndcg_score"
    rows: list[Row] = []
    for name, (events, items, distinct) in CASES.items():
        random = np.random.default_rng(0)
        relevance_EN = random.integers(0, items, (events, items)).astype(float)
        scores_EN = random.random((events, items))
        if distinct:
            scores_EN = np.floor(scores_EN * distinct)

        def ours(r: np.ndarray = relevance_EN, s: np.ndarray = scores_EN) -> np.ndarray:
            return ndcg_rows(r, s)

        def theirs(r: np.ndarray = relevance_EN, s: np.ndarray = scores_EN) -> np.ndarray:
            return np.array([ndcg_score(r[i : i + 1], s[i : i + 1]) for i in range(len(r))])

        def theirs_mean(r: np.ndarray = relevance_EN, s: np.ndarray = scores_EN) -> float:
            return float(ndcg_score(r, s))

        worst = float(np.abs(ours() - theirs()).max())
        seconds = turns({"ours": ours, "theirs": theirs_mean}, REPEATS, clock="cpu")
        note = f"largest difference of a value {worst:.1e}; theirs gives the mean only"
        rows.append(faster(name, seconds["ours"], seconds["theirs"], peer, note))
    write("basir", rows)


if __name__ == "__main__":
    main()
