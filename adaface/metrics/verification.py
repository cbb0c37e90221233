"""Verification metrics: pure functions on arrays.

Sources: the 10-fold protocol of LFW as InsightFace and the official AdaFace code compute it; TAR at FAR as the IJB
evaluation of InsightFace computes it (scikit-learn's ``roc_curve``, nearest point).
Differs from them: pairs are counted into threshold bins once instead of once per threshold and fold, which gives
the same numbers; input that would give a meaningless number raises an error.

``distance_sq`` is the squared Euclidean distance of two unit embeddings, in [0, 4]; ``similarity`` is their cosine,
``1 - distance_sq / 2``; ``far`` and ``tar`` are fractions.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve

# NumPy array or torch tensor: fusing uses only arithmetic that both support
Vectors = TypeVar("Vectors")

_THRESHOLDS = np.arange(0, 4, 0.01)
_PCA_SEED = 0


def fuse_flip(
    embeddings: Vectors, norms: Vectors, mirrored_embeddings: Vectors, mirrored_norms: Vectors
) -> tuple[Vectors, Vectors]:
    """Fuse the embeddings of images and of their mirror images: e1 * n1 + e2 * n2, split into direction and length.

    Args:
        embeddings: (B, D) unit embeddings of the images, as an array or a tensor.
        norms: (B, 1) lengths of these embeddings before normalization.
        mirrored_embeddings: (B, D) of the mirrored images.
        mirrored_norms: (B, 1) of the mirrored images.

    Returns:
        Unit embeddings (B, D) and their norms (B, 1), of the type of the input. Where two vectors cancel out, the norm
        is 0 and the embedding is 0, not NaN.

    Source: the official code's ``l2_norm`` fusion of flip-test features.
    """
    fused = embeddings * norms + mirrored_embeddings * mirrored_norms  # type: ignore[operator]
    length = ((fused * fused).sum(-1) ** 0.5)[..., None]  # (B, 1)
    return fused / (length + (length == 0)), length


def evaluate(
    embeddings: np.ndarray, issame: np.ndarray, nrof_folds: int = 10, pca: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Verify pairs by k-fold cross-validation of a distance threshold.

    The folds are consecutive pairs in file order. A pair is "same" when its squared distance is below the threshold;
    on the other folds the first of the thresholds 0, 0.01, ..., 3.99 with the highest accuracy is chosen.

    Args:
        embeddings: (2P, D) unit vectors; rows 2k and 2k + 1 are pair k.
        issame: (P,) booleans.
        nrof_folds: number of folds, 2 to P.
        pca: number of principal components to project to, fitted for each fold on the other folds; 0 for none.

    Returns:
        ``tpr`` (400,) and ``fpr`` (400,) at each threshold, averaged over folds (a rate without pairs to count is
        0); ``accuracy`` (nrof_folds,) in [0, 1]; ``best_thresholds`` (nrof_folds,) as squared distances.

    Raises:
        ValueError: counts that do not match, fewer pairs than folds, or embeddings that are not finite.

    Source: LFW protocol; thresholds and folds of the official code (scikit-learn ``KFold`` without shuffling).
    """
    embeddings, issame = _checked_pairs(embeddings, issame)
    pairs = len(issame)
    if not 2 <= nrof_folds <= pairs:
        raise ValueError(
            f"cannot split {pairs} pairs into {nrof_folds} folds: at least two folds with at least one pair each are "
            f"required; use more pairs, or nrof_folds from 2 to {pairs}"
        )
    fold = _folds(pairs, nrof_folds)
    if pca == 0:
        tested = _accepted(_pair_distances_sq(embeddings), issame, fold, nrof_folds)  # (2, folds, 400)
        chosen_on = tested.sum(axis=1, keepdims=True) - tested
    else:
        tested, chosen_on = _accepted_after_pca(embeddings, issame, fold, nrof_folds, pca)
    sizes = np.stack([np.bincount(fold[issame == same], minlength=nrof_folds) for same in (False, True)])  # (2, folds)

    best = _correct(chosen_on, sizes.sum(axis=1, keepdims=True) - sizes).argmax(axis=1)  # (folds,), the first of equals
    accuracy = _correct(tested, sizes)[np.arange(nrof_folds), best] / sizes.sum(axis=0)
    fpr, tpr = (tested / np.maximum(sizes, 1)[..., None]).mean(axis=1)
    return tpr, fpr, accuracy, _THRESHOLDS[best]


def fold_decisions(embeddings: np.ndarray, issame: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return which pairs are decided correctly, each by the threshold of its fold.

    Args:
        embeddings: (2P, D) unit vectors; rows 2k and 2k + 1 are pair k.
        issame: (P,) booleans.
        thresholds: (folds,) squared distances, the ``best_thresholds`` of ``evaluate`` without pca.

    Returns:
        (P,) booleans; their mean in each fold is the fold's accuracy.

    Raises:
        ValueError: counts that do not match, or embeddings that are not finite.
    """
    embeddings, issame = _checked_pairs(embeddings, issame)
    return (_pair_distances_sq(embeddings) < np.asarray(thresholds)[_folds(len(issame), len(thresholds))]) == issame


def best_accuracy(embeddings: np.ndarray, issame: np.ndarray) -> float:
    """Return the accuracy at the threshold that is best on the same pairs.

    It exceeds the accuracy of the best threshold on new pairs by about as much as that of ``evaluate`` falls below it.

    Args:
        embeddings: (2P, D) unit vectors; rows 2k and 2k + 1 are pair k.
        issame: (P,) booleans.

    Raises:
        ValueError: counts that do not match, or embeddings that are not finite.
    """
    embeddings, issame = _checked_pairs(embeddings, issame)
    accepted = _accepted(_pair_distances_sq(embeddings), issame, np.zeros(len(issame), dtype=int), 1)
    sizes = np.array([[len(issame) - issame.sum()], [issame.sum()]])
    return float(_correct(accepted, sizes).max() / len(issame))


def pair_similarities(embeddings: np.ndarray, issame: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of each pair.

    Args:
        embeddings: (2P, D) unit vectors; rows 2k and 2k + 1 are pair k.
        issame: (P,) booleans; only their number is checked.

    Returns:
        (P,) float64 in [-1, 1].

    Raises:
        ValueError: counts that do not match, or embeddings that are not finite.
    """
    embeddings, _ = _checked_pairs(embeddings, issame)
    return np.einsum("pd,pd->p", embeddings[0::2], embeddings[1::2], dtype=np.float64)


def roc(similarity: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the ROC curve with scikit-learn's defaults.

    Args:
        similarity: (P,) scores, higher means more similar.
        issame: (P,) booleans, with genuine and impostor pairs.

    Returns:
        ``far`` and ``tar``, ascending from 0 to 1, and their descending thresholds (the first is infinite); a score
        equal to the threshold is accepted.

    Raises:
        ValueError: counts that do not match, scores that are not finite, or pairs of one kind only.
    """
    similarity, issame = np.asarray(similarity), _as_booleans(issame)
    if similarity.shape != issame.shape or similarity.ndim != 1:
        raise ValueError(
            f"got scores of shape {similarity.shape} and issame of shape {issame.shape}, expected (P,) and (P,)"
        )
    _check_finite(similarity, "similarity scores")
    genuine = int(issame.sum())
    if not 0 < genuine < len(issame):
        raise ValueError(
            f"got {genuine} genuine and {len(issame) - genuine} impostor pairs: error rates need both kinds"
        )
    return roc_curve(issame, similarity)


def tar_at_far(similarity: np.ndarray, issame: np.ndarray, fars: Sequence[float]) -> dict[float, float]:
    """Return the true accept rate at given false accept rates.

    Args:
        similarity: (P,) scores, higher means more similar.
        issame: (P,) booleans, with genuine and impostor pairs.
        fars: false accept rates, in [0, 1].

    Returns:
        For each rate, the TAR at the point of the curve whose FAR is nearest; the largest TAR if several are equally
        near. The FAR of that point may exceed the rate: with few impostor pairs, the points are far apart.

    Raises:
        ValueError: a rate outside [0, 1], or scores that ``roc`` rejects.

    Source: IJB 1:1 evaluation of InsightFace.
    """
    outside = [far for far in fars if not 0 <= far <= 1]
    if outside:
        raise ValueError(f"false accept rates are fractions in [0, 1], got {outside}")
    far, tar, _ = roc(similarity, issame)
    # both ascend, so the last of equally near points has the largest TAR
    return {target: float(tar[len(far) - 1 - np.abs(far - target)[::-1].argmin()]) for target in fars}


def auc(similarity: np.ndarray, issame: np.ndarray) -> float:
    """Return the area under the ROC curve, in [0, 1].

    Args:
        similarity: (P,) scores, higher means more similar.
        issame: (P,) booleans, with genuine and impostor pairs.

    Raises:
        ValueError: scores that ``roc`` rejects.
    """
    far, tar, _ = roc(similarity, issame)
    return float(np.trapezoid(tar, far))


def eer(similarity: np.ndarray, issame: np.ndarray) -> float:
    """Return the equal error rate: the FAR that equals the false reject rate, in [0, 1].

    Args:
        similarity: (P,) scores, higher means more similar.
        issame: (P,) booleans, with genuine and impostor pairs.

    Raises:
        ValueError: scores that ``roc`` rejects.
    """
    far, tar, _ = roc(similarity, issame)
    excess = far - (1 - tar)  # ascends from -1 to 1
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(far[after - 1] + share * (far[after] - far[after - 1]))


def _as_booleans(issame: np.ndarray) -> np.ndarray:
    """Return ``issame`` as booleans; raise ValueError for values other than 0 and 1."""
    issame = np.asarray(issame)
    if issame.dtype != bool and not np.isin(issame, (0, 1)).all():
        raise ValueError(f"issame must hold booleans, or 0 and 1; got values such as {issame.ravel()[:5].tolist()}")
    return issame.astype(bool)


def _check_finite(values: np.ndarray, what: str) -> None:
    bad = int((~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))).sum())  # rows
    if bad:
        raise ValueError(
            f"{bad} of {len(values)} {what} are not finite (NaN or infinite): the network that made them is broken, "
            "for example because its training diverged"
        )


def _checked_pairs(embeddings: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (2P, D), floating point of at least 32 bits, and booleans (P,), or raise ValueError."""
    embeddings, issame = np.asarray(embeddings), _as_booleans(issame)
    if embeddings.ndim != 2 or issame.ndim != 1:
        raise ValueError(
            f"got embeddings of shape {embeddings.shape} and issame of shape {issame.shape}, expected (2P, D) and (P,)"
        )
    if len(embeddings) % 2:
        raise ValueError(f"got {len(embeddings)} embeddings: an even number is expected, rows 2k and 2k + 1 are pair k")
    if len(embeddings) != 2 * len(issame):
        raise ValueError(
            f"got {len(embeddings)} embeddings and {len(issame)} issame flags: expected two embeddings for each flag"
        )
    _check_finite(embeddings, "embeddings")
    return embeddings.astype(np.result_type(embeddings.dtype, np.float32), copy=False), issame


def _folds(pairs: int, folds: int) -> np.ndarray:
    """Return the fold of each pair (P,): consecutive pairs, as scikit-learn's ``KFold`` cuts them."""
    return np.repeat(np.arange(folds), [len(part) for part in np.array_split(np.arange(pairs), folds)])


def _pair_distances_sq(embeddings: np.ndarray) -> np.ndarray:
    """Return the squared distances (P,), in the precision of the embeddings, as the official code does."""
    difference = embeddings[0::2] - embeddings[1::2]
    return np.square(difference, out=difference).sum(axis=1)


def _accepted(distance_sq: np.ndarray, issame: np.ndarray, fold: np.ndarray, folds: int) -> np.ndarray:
    """Count, for each kind (impostor, genuine), fold and threshold, the pairs below the threshold: (2, folds, 400)."""
    # first threshold above the distance; all later ones accept the pair too
    first = np.searchsorted(_THRESHOLDS, distance_sq, side="right")
    bins = len(_THRESHOLDS) + 1  # the last one: below no threshold
    place = (issame * folds + fold) * bins + first
    counts = np.bincount(place, minlength=2 * folds * bins).reshape(2, folds, bins)
    return counts.cumsum(axis=2)[..., :-1]


def _accepted_after_pca(
    embeddings: np.ndarray, issame: np.ndarray, fold: np.ndarray, folds: int, components: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count accepted pairs with a projection for each fold: in the fold, and in the others, each (2, folds, 400)."""
    most = min(embeddings.shape[1], 2 * (len(issame) - int((fold == 0).sum())))
    if not 0 < components <= most:
        raise ValueError(
            f"pca must be 0 (none) or from 1 to {most} components for embeddings of this size and number, "
            f"got {components}"
        )
    of_fold = []
    for number in range(folds):
        others = np.repeat(fold != number, 2)  # (2P,)
        # the seed matters only where scikit-learn chooses its randomized solver
        projected = PCA(components, random_state=_PCA_SEED).fit(embeddings[others]).transform(embeddings)
        length = np.linalg.norm(projected, axis=1, keepdims=True)
        distance_sq = _pair_distances_sq(projected / np.where(length == 0, 1, length))
        of_fold.append(_accepted(distance_sq, issame, (fold != number).astype(int), 2))  # (2, 2, 400)
    tested, chosen_on = np.moveaxis(np.stack(of_fold), 2, 0)  # each (folds, 2, 400)
    return tested.swapaxes(0, 1), chosen_on.swapaxes(0, 1)


def _correct(accepted: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Count correct decisions (folds, 400) from accepted (2, folds, 400) and the number of pairs (2, folds)."""
    return accepted[1] + sizes[0][:, None] - accepted[0]
