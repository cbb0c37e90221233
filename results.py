"""Results of an evaluation: computed from embeddings, shown as a table, kept as CSV and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomic_files import write_atomically
from evaluate_utils import auc, evaluate, pair_similarities, tar_at_far

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
_FOLDS = 10


@dataclass(frozen=True)
class SetResult:
    """What was measured on one set of pairs.

    Attributes:
        name: of the set.
        pairs: number of pairs P.
        folds: number of folds of the protocol: 10, or P where there are fewer.
        accuracy: mean accuracy over the folds, %.
        accuracy_std: its standard deviation over the folds, %.
        threshold: mean of the folds' thresholds, as cosine similarity.
        tar: false accept rate -> true accept rate, %, as far as the impostor pairs allow.
        auc: area under the ROC, %; NaN without genuine or impostor pairs.
        similarity: (P,) cosine similarities.
        issame: (P,) booleans.
    """

    name: str
    pairs: int
    folds: int
    accuracy: float
    accuracy_std: float
    threshold: float
    tar: dict[float, float]
    auc: float
    similarity: np.ndarray = field(repr=False)
    issame: np.ndarray = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as one flat row."""
        row: dict[str, Any] = {
            "set": self.name,
            "pairs": self.pairs,
            "folds": self.folds,
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "threshold": self.threshold,
            "auc": None if math.isnan(self.auc) else self.auc,
        }
        return row | {f"tar_at_far_{far:g}": self.tar.get(far) for far in FARS}


def evaluate_set(name: str, embeddings: np.ndarray, issame: np.ndarray) -> SetResult:
    """Evaluate one set of pairs.

    Args:
        name: of the set.
        embeddings: (2P, D) unit vectors; rows 2k and 2k+1 are pair k.
        issame: (P,) booleans.

    Raises:
        ValueError: fewer than two pairs, or embeddings that are not finite (the set is named).
    """
    issame = np.asarray(issame, bool)
    folds = min(_FOLDS, len(issame))
    try:
        _, _, accuracy, thresholds = evaluate(embeddings, issame, folds)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    similarity = pair_similarities(embeddings, issame)
    impostors = int((~issame).sum())
    both = bool(issame.any()) and impostors > 0
    # a rate below one in the number of impostor pairs cannot be measured
    fars = [far for far in FARS if far * impostors >= 1 - 1e-9] if both else []
    return SetResult(
        name=name,
        pairs=len(issame),
        folds=folds,
        accuracy=100 * float(accuracy.mean()),
        accuracy_std=100 * float(accuracy.std()),
        threshold=1 - float(thresholds.mean()) / 2,  # |a - b|^2 = 2 - 2 cos for unit vectors
        tar={far: 100 * tar for far, tar in tar_at_far(similarity, issame, fars).items()} if fars else {},
        auc=100 * auc(similarity, issame) if both else math.nan,
        similarity=similarity,
        issame=issame,
    )


def results_table(results: Sequence[SetResult]) -> str:
    """Return a plain-text table with one line a set and a line of means.

    Args:
        results: of each set.
    """
    header = ["set", "pairs", "accuracy %", "+-", "threshold", *(f"TAR@{far:g}" for far in FARS), "AUC"]
    rows = [
        [
            r.name + (f" ({r.folds} folds)" if r.folds != _FOLDS else ""),
            f"{r.pairs:,}",
            f"{r.accuracy:.2f}",
            f"{r.accuracy_std:.2f}",
            f"{r.threshold:.3f}",
            *(f"{r.tar[far]:.2f}" if far in r.tar else "-" for far in FARS),
            "-" if math.isnan(r.auc) else f"{r.auc:.2f}",
        ]
        for r in results
    ]
    mean = ["mean", "", f"{np.mean([r.accuracy for r in results]):.2f}", *[""] * (len(header) - 3)]
    widths = [max(len(row[i]) for row in [header, *rows, mean]) for i in range(len(header))]
    line = "-" * (sum(widths) + 2 * (len(widths) - 1))
    shown = [_aligned(header, widths), line, *(_aligned(row, widths) for row in rows), line, _aligned(mean, widths)]
    return "\n".join(text.rstrip() for text in shown)


def _aligned(row: list[str], widths: list[int]) -> str:
    return "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])


def write_results(folder: Path, results: Sequence[SetResult]) -> None:
    """Write ``results.csv`` and ``results.json``, each whole or not at all.

    Args:
        folder: run folder.
        results: of each set.
    """
    rows = [result.as_dict() for result in results]
    mean = float(np.mean([result.accuracy for result in results]))
    write_atomically(folder / "results.csv", pd.DataFrame(rows).to_csv(index=False))
    write_atomically(folder / "results.json", json.dumps({"mean_accuracy": mean, "sets": rows}, indent=2) + "\n")
