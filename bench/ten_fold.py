"""10-fold accuracy over 6,000 pairs, against one pass over the pairs for each threshold and fold.

    python -m bench.ten_fold

The baseline is the textbook form: for each fold and each of 400 thresholds a prediction, a confusion matrix, a rate.
"""

import numpy as np

from adaface.metrics.verification import evaluate
from bench.timing import Side, compare, options, report

_FOLDS = 10
_THRESHOLDS = np.arange(0, 4, 0.01)


def per_threshold_loops(embeddings: np.ndarray, issame: np.ndarray) -> float:
    """Return the mean accuracy of ten folds, (2P, D) unit embeddings and issame (P,)."""
    distance_sq = np.sum(np.square(embeddings[0::2] - embeddings[1::2]), 1)
    places = np.arange(len(issame))
    accuracies = []
    for test in np.array_split(places, _FOLDS):
        train = np.setdiff1d(places, test)
        training = [_accuracy(t, distance_sq[train], issame[train]) for t in _THRESHOLDS]
        best = _THRESHOLDS[int(np.argmax(training))]
        testing = [_accuracy(t, distance_sq[test], issame[test]) for t in _THRESHOLDS]
        accuracies.append(testing[int(np.argmax(best == _THRESHOLDS))])
    return float(np.mean(accuracies))


def _accuracy(threshold: float, distance_sq: np.ndarray, issame: np.ndarray) -> float:
    predicted = np.less(distance_sq, threshold)
    true_positives = np.sum(np.logical_and(predicted, issame))
    true_negatives = np.sum(np.logical_and(np.logical_not(predicted), np.logical_not(issame)))
    return float(true_positives + true_negatives) / len(issame)


def same_accuracy(baseline: float, candidate: tuple[np.ndarray, ...]) -> dict[str, float]:
    """Raise unless both found the same accuracy."""
    accuracy = float(candidate[2].mean())
    np.testing.assert_allclose(accuracy, baseline, rtol=1e-12)
    return {"accuracy of both": round(accuracy, 4)}


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    pairs = 600 if chosen.quick else 6000
    rng = np.random.default_rng(0)
    issame = np.arange(pairs) % 2 == 0
    first, other = rng.standard_normal((2, pairs, 512))
    second = np.where(issame[:, None], first + 7 * other, other)
    embeddings = np.stack((first, second), 1).reshape(2 * pairs, 512)
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    result = compare(
        "10-fold over 6,000 pairs",
        Side("per-threshold loops", lambda: per_threshold_loops(embeddings, issame)),
        Side("evaluate_utils.evaluate", lambda: evaluate(embeddings, issame)),
        count=pairs,
        unit="pairs",
        target=10,
        check=same_accuracy,
        repeats=chosen.repeats,
    )
    report(result, __file__, chosen.output)


if __name__ == "__main__":
    main()
