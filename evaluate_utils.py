"""Metrics of face verification, on numpy arrays: the 10-fold protocol, ROC, TAR at FAR, flip fusion.

Sources: the LFW protocol (Huang et al. 2007) as the official AdaFace and InsightFace codes compute it; scikit-learn's
``roc_curve``, ``KFold`` and ``PCA``. Pure functions; there is one implementation of each metric in the project.

Differs from the official code: the search over 400 thresholds is one cumulative count instead of 400 passes; bad input
is refused (there, a NaN distance counts as "different").
"""

from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import auc as area_under_curve
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold

THRESHOLDS = np.arange(0, 4, 0.01)  # on the squared distance of unit vectors


def fuse_flip(
    embedding: "np.ndarray", norm: "np.ndarray", mirrored: "np.ndarray", mirrored_norm: "np.ndarray"
) -> tuple["np.ndarray", "np.ndarray"]:
    """Fuse the embeddings of images and of their mirrors, each weighted by its norm. Works on tensors too.

    Args:
        embedding: (N, D) unit vectors of the images.
        norm: (N, 1) their norms.
        mirrored: (N, D) unit vectors of the mirrored images.
        mirrored_norm: (N, 1) their norms.

    Returns:
        Unit vectors (N, D) and the norms of the sums (N, 1).
    """
    fused = embedding * norm + mirrored * mirrored_norm
    fused_norm = (fused**2).sum(-1)[..., None] ** 0.5
    return fused / fused_norm, fused_norm


def pair_similarity(embeddings: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of each pair.

    Args:
        embeddings: (2P, D) unit vectors; rows 2k and 2k+1 are pair k.

    Returns:
        (P,) in [-1, 1].
    """
    return np.einsum("pd,pd->p", embeddings[0::2], embeddings[1::2], dtype=np.float64)


def evaluate(
    embeddings: np.ndarray, issame: np.ndarray, nrof_folds: int = 10, pca: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute the 10-fold verification accuracy.

    The pairs are cut into consecutive folds; the threshold of a fold is the first with the highest accuracy on the
    other folds, of 0, 0.01, ..., 3.99 on the squared distance, where "same" means below.

    Args:
        embeddings: (2P, D) unit vectors; rows 2k and 2k+1 are pair k.
        issame: (P,) booleans.
        nrof_folds: folds, at most P.
        pca: dimensions of a PCA fitted, per fold, on the embeddings of the other folds; 0 for none.

    Returns:
        tpr (400,) and fpr (400,) at the thresholds, averaged over the folds; accuracy (folds,); best_thresholds
        (folds,). A rate with nothing to count is 0.

    Raises:
        ValueError: counts that do not fit, embeddings that are not finite, fewer pairs than folds.
    """
    embeddings, issame = _checked(embeddings, issame)
    if not 2 <= nrof_folds <= len(issame):
        raise ValueError(f"{len(issame)} pairs cannot be cut into {nrof_folds} folds: give 2 to {len(issame)} folds")
    left, right = embeddings[0::2], embeddings[1::2]
    distance_sq = np.sum(np.square(left - right), axis=1)
    tpr, fpr, accuracy, best = [], [], [], []
    for train, test in KFold(nrof_folds).split(issame):
        if pca:
            distance_sq = _distance_after_pca(left, right, train, pca)
        train_counts, test_counts = (_counts(distance_sq[part], issame[part]) for part in (train, test))
        chosen = int(np.argmax(_rates(*train_counts)[2]))
        test_tpr, test_fpr, test_accuracy = _rates(*test_counts)
        tpr.append(test_tpr)
        fpr.append(test_fpr)
        accuracy.append(test_accuracy[chosen])
        best.append(THRESHOLDS[chosen])
    return np.mean(tpr, 0), np.mean(fpr, 0), np.array(accuracy), np.array(best)


def roc(similarity: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ROC of similarities: scikit-learn's ``roc_curve`` with its defaults.

    Args:
        similarity: (P,) cosine similarities.
        issame: (P,) booleans, both values present.

    Returns:
        false accept rates, true accept rates and thresholds, each (K,).

    Raises:
        ValueError: only genuine or only impostor pairs, or similarities that are not finite.
    """
    issame = np.asarray(issame, bool)
    if issame.all() or not issame.any():
        kind = "genuine" if issame.any() else "impostor"
        raise ValueError(f"a ROC needs genuine and impostor pairs, got {len(issame)} {kind} pairs only")
    if not np.isfinite(similarity).all():
        raise ValueError(f"{int((~np.isfinite(similarity)).sum())} of {len(similarity)} similarities are not finite")
    far, tar, thresholds = roc_curve(issame, similarity)
    return far, tar, thresholds


def tar_at_far(similarity: np.ndarray, issame: np.ndarray, fars: Iterable[float]) -> dict[float, float]:
    """Return the true accept rate at each false accept rate.

    Of the points of the ROC, that whose FAR is nearest to the target; of equal ones the one with the largest TAR.

    Args:
        similarity: (P,) cosine similarities.
        issame: (P,) booleans, both values present.
        fars: targets, fractions.

    Raises:
        ValueError: as ``roc``.
    """
    far, tar, _ = roc(similarity, issame)
    found = {}
    for target in fars:
        away = np.abs(far - target)
        found[target] = float(tar[away == away.min()].max())
    return found


def auc(similarity: np.ndarray, issame: np.ndarray) -> float:
    """Return the area under the ROC.

    Args:
        similarity: (P,) cosine similarities.
        issame: (P,) booleans, both values present.

    Raises:
        ValueError: as ``roc``.
    """
    far, tar, _ = roc(similarity, issame)
    return float(area_under_curve(far, tar))


def _checked(embeddings: np.ndarray, issame: Sequence[bool] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    embeddings, issame = np.asarray(embeddings), np.asarray(issame, bool)
    if embeddings.ndim != 2 or issame.ndim != 1 or len(embeddings) != 2 * len(issame):
        raise ValueError(
            f"expected embeddings (2P, D) for issame (P,), got {embeddings.shape} and {issame.shape}: "
            "two rows for each pair"
        )
    bad = ~np.isfinite(embeddings).all(axis=1)
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {len(bad)} embeddings are not finite, the first is row {bad.argmax()}")
    return embeddings, issame


def _counts(distance_sq: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Count, for each threshold, the genuine and the impostor pairs below it; and all of each."""
    # a distance is below the thresholds from index `searchsorted(right)` on: THRESHOLDS[i] > distance
    first = np.searchsorted(THRESHOLDS, distance_sq.astype(np.float64), side="right")
    bins = len(THRESHOLDS) + 1
    genuine = np.bincount(first[issame], minlength=bins)[:-1].cumsum()
    impostor = np.bincount(first[~issame], minlength=bins)[:-1].cumsum()
    return genuine, impostor, int(issame.sum()), int((~issame).sum())


def _rates(
    genuine: np.ndarray, impostor: np.ndarray, all_genuine: int, all_impostor: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn counts of pairs called "same" into true positive rate, false positive rate and accuracy."""
    tpr = genuine / all_genuine if all_genuine else np.zeros(len(genuine))
    fpr = impostor / all_impostor if all_impostor else np.zeros(len(impostor))
    return tpr, fpr, (genuine + (all_impostor - impostor)) / (all_genuine + all_impostor)


def _distance_after_pca(left: np.ndarray, right: np.ndarray, train: np.ndarray, dimensions: int) -> np.ndarray:
    """Return squared distances after a PCA fitted on the training folds and a new normalisation of the rows."""
    model = PCA(n_components=dimensions).fit(np.concatenate([left[train], right[train]]))
    projected = [model.transform(side) for side in (left, right)]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in projected]
    return np.sum(np.square(unit[0] - unit[1]), axis=1)
