"""Pairs to verify, and their metrics slowly and obviously: one pair, one threshold, one fold at a time."""

import math
from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

THRESHOLDS = [step / 100 for step in range(400)]


def random_pairs(pairs: int, noise: float = 1.0, seed: int = 0, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings (2P, size) in float32, and issame in random order."""
    generator = np.random.default_rng(seed)
    issame = generator.random(pairs) < 0.5
    left = generator.standard_normal((pairs, size))
    other = generator.standard_normal((pairs, size))
    right = np.where(issame[:, None], left + noise * other, other)
    embeddings = np.stack([left, right], axis=1).reshape(2 * pairs, size)
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32), issame


def pairs_at(distances_sq: list[float]) -> np.ndarray:
    """Unit embeddings in the plane whose pairs have these squared distances."""
    angles = [math.acos(1 - d / 2) for d in distances_sq]
    return np.array([row for angle in angles for row in ((1.0, 0.0), (math.cos(angle), math.sin(angle)))])


def distance_sq(left: np.ndarray, right: np.ndarray) -> float:
    return sum((float(a) - float(b)) ** 2 for a, b in zip(left, right, strict=True))


def rates(distances: Sequence[float], issame: Sequence[bool], threshold: float) -> tuple[float, float, float]:
    """True positive rate, false positive rate and accuracy; a rate with nothing to count is 0."""
    accepted_genuine = accepted_impostor = genuine = impostor = 0
    for distance, same in zip(distances, issame, strict=True):
        accepted = distance < threshold
        if same:
            genuine += 1
            accepted_genuine += accepted
        else:
            impostor += 1
            accepted_impostor += accepted
    correct = accepted_genuine + impostor - accepted_impostor
    return (
        accepted_genuine / genuine if genuine else 0.0,
        accepted_impostor / impostor if impostor else 0.0,
        correct / (genuine + impostor),
    )


def evaluate(embeddings: np.ndarray, issame: np.ndarray, nrof_folds: int = 10, pca: int = 0):
    tprs, fprs, accuracies, best_thresholds = [], [], [], []
    left, right = embeddings[0::2], embeddings[1::2]
    for chosen_on, tested in KFold(nrof_folds).split(left):
        a, b = left, right
        if pca:
            model = PCA(pca).fit(np.concatenate([left[chosen_on], right[chosen_on]]))
            a, b = normalize(model.transform(left)), normalize(model.transform(right))
        distances = [distance_sq(x, y) for x, y in zip(a, b, strict=True)]
        best, best_accuracy = None, -1.0
        for threshold in THRESHOLDS:
            accuracy = rates([distances[i] for i in chosen_on], issame[chosen_on], threshold)[2]
            if accuracy > best_accuracy:
                best, best_accuracy = threshold, accuracy
        at = [rates([distances[i] for i in tested], issame[tested], threshold) for threshold in THRESHOLDS]
        tprs.append([tpr for tpr, _, _ in at])
        fprs.append([fpr for _, fpr, _ in at])
        best_thresholds.append(best)
        accuracies.append(at[THRESHOLDS.index(best)][2])
    return np.mean(tprs, axis=0), np.mean(fprs, axis=0), np.array(accuracies), np.array(best_thresholds)


def tar_at_far(similarity: np.ndarray, issame: np.ndarray, target: float) -> float:
    """TAR at the point whose FAR is nearest to the target, the largest TAR of equally near ones.

    As scikit-learn does by default, points that continue the step before them unchanged are no points of the curve.
    """
    counts = []
    for threshold in [float("inf"), *sorted(set(similarity.tolist()), reverse=True)]:
        accepted = similarity >= threshold
        counts.append((int(accepted[~issame].sum()), int(accepted[issame].sum())))
    points = [counts[0], counts[-1]]
    for before, point, after in zip(counts, counts[1:], counts[2:], strict=False):
        step, next_step = (point[0] - before[0], point[1] - before[1]), (after[0] - point[0], after[1] - point[1])
        if step != next_step:
            points.append(point)
    impostors, genuine = counts[-1]
    return -min((abs(accepted / impostors - target), -same / genuine) for accepted, same in points)[1]


def auc(similarity: np.ndarray, issame: np.ndarray) -> float:
    """Probability that a genuine pair scores above an impostor pair, ties counted half."""
    wins = 0.0
    for genuine in similarity[issame]:
        for impostor in similarity[~issame]:
            wins += 1.0 if genuine > impostor else 0.5 if genuine == impostor else 0.0
    return wins / (issame.sum() * (~issame).sum())
