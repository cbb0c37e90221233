"""Template pooling of IJB: from image features to template features, with four kinds of image features.

A template is a set of images of one person, grouped by medium (a photograph, or the frames of one video). The feature
of a medium is the mean of its image features x, that of a template is the sum over its media, normalized to length 1:

    t = sum over media ( mean over images of the medium ( x ) ),    t / |t|

The choice of x is called fusion method in the official code. With the unit embedding e1 and norm n1 of an image, and
e2, n2 of its mirror image:

    pre_norm_vector_add   x = e1 n1 + e2 n2: images of high quality have large norms and weigh more; used in the paper
    norm_weighted_avg     x = (e1 n1 + e2 n2) / |e1 n1 + e2 n2|: norms only weight image against mirror image
    average               x = (e1 + e2) / |e1 + e2|
    concat                x = (e1, e2), of dimension 2D

Sources: the IJB evaluation of InsightFace; AdaFace's official ``validate_IJB_BC.py``. Differs from them: no loop over
templates; the sum is over all images of a template at once, each weighted by one over the images of its medium.
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from adaface.config.choices import POOLINGS

# those that need separate embeddings of image and mirror image
UNFUSED_POOLINGS = ("average", "concat")
_BLOCK_BYTES = 32_000_000

# (R,) indices of images -> their features (R, D)
FeaturesOf = Callable[[np.ndarray], np.ndarray]


def fused_features(pooling: str, embeddings: np.ndarray, norms: np.ndarray) -> FeaturesOf:
    """Return a function that gives image features from fused embeddings of image and mirror image.

    Args:
        pooling: ``pre_norm_vector_add`` (x = embedding * norm) or ``norm_weighted_avg`` (x = embedding).
        embeddings: (N, D) unit vectors in the direction of e1 n1 + e2 n2.
        norms: (N, 1) lengths of e1 n1 + e2 n2.

    Raises:
        ValueError: the pooling is not applicable, or counts do not match.
    """
    if pooling not in POOLINGS or pooling in UNFUSED_POOLINGS:
        raise ValueError(f"{pooling} needs unfused embeddings, expected pre_norm_vector_add or norm_weighted_avg")
    _check_norms(embeddings, norms)
    if pooling == "norm_weighted_avg":
        return lambda rows: embeddings[rows]
    return lambda rows: embeddings[rows] * norms[rows]


def unfused_features(pooling: str, embeddings: np.ndarray, mirrored: np.ndarray) -> FeaturesOf:
    """Return a function that gives image features from separate embeddings of images and mirror images.

    Args:
        pooling: ``average`` (x = (e1 + e2) / |e1 + e2|) or ``concat`` (x = (e1, e2)).
        embeddings: (N, D) unit vectors of the images, e1.
        mirrored: (N, D) unit vectors of the mirror images, e2.

    Raises:
        ValueError: the pooling is not applicable, or counts do not match.
    """
    if pooling not in UNFUSED_POOLINGS:
        raise ValueError(f"{pooling} needs fused embeddings, expected {' or '.join(UNFUSED_POOLINGS)}")
    if embeddings.shape != mirrored.shape or embeddings.ndim != 2:
        raise ValueError(
            f"got embeddings of shape {embeddings.shape} and of shape {mirrored.shape} of the mirrored images, "
            "expected (N, D) twice"
        )
    if pooling == "concat":
        return lambda rows: np.concatenate((embeddings[rows], mirrored[rows]), axis=1)
    return lambda rows: _unit(embeddings[rows] + mirrored[rows])


def pool_templates(
    features_of: FeaturesOf,
    template_ids: np.ndarray,
    media_ids: np.ndarray,
    *,
    block_bytes: int = _BLOCK_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
    """Pool image features into template features.

    Args:
        features_of: returns the features of some of the N images; called once for each image.
        template_ids: (N,) integers, template of each image, in any order.
        media_ids: (N,) integers; images of one medium count as one image of their template.
        block_bytes: approximate limit on temporary memory.

    Returns:
        The ids of the T templates, ascending, and their features (T, D), float32 unit vectors; zeros where features
        cancel out.

    Raises:
        ValueError: counts that do not match, no images, or features that are not finite (the message names a template).
    """
    template_ids, media_ids = np.asarray(template_ids), np.asarray(media_ids)
    if template_ids.shape != media_ids.shape or template_ids.ndim != 1 or not len(template_ids):
        raise ValueError(
            f"got template ids of shape {template_ids.shape} and media ids of shape {media_ids.shape}, expected one of "
            "each for every image, and at least one image"
        )
    order = np.lexsort((media_ids, template_ids))
    ids, template = np.unique(template_ids[order], return_inverse=True)  # (T,), and (N,) ascending indices into it
    weights = _media_weights(template, media_ids[order])

    sums = np.zeros((len(ids), features_of(order[:1]).shape[1]))
    block = max(1, block_bytes // (2 * sums.itemsize * sums.shape[1]))  # features in 32 bits, twice, and in 64
    for start in range(0, len(order), block):
        part = slice(start, start + block)
        first, last = template[part][[0, -1]]  # of the block; both may extend into other blocks
        place = (template[part] - first, np.arange(len(template[part])))
        pooling = csr_array((weights[part], place), shape=(last - first + 1, len(place[1])))  # float64
        sums[first : last + 1] += pooling @ features_of(order[part])
    bad = ~np.isfinite(sums).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the features of {bad.sum()} of {len(ids)} templates are not finite (NaN or infinite), the first is "
            f"{ids[bad][0]}: the network is broken, for example because its training diverged"
        )
    return ids, _unit(sums).astype(np.float32)


def _media_weights(template: np.ndarray, media: np.ndarray) -> np.ndarray:
    """Return the weight of each image, one over the number of images of its medium in its template: (N,), sorted."""
    new = np.empty(len(template), dtype=bool)
    new[0] = True
    new[1:] = (template[1:] != template[:-1]) | (media[1:] != media[:-1])
    firsts = np.flatnonzero(new)
    sizes = np.diff(firsts, append=len(template))
    return np.repeat(1 / sizes, sizes)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length == 0, 1, length)


def _check_norms(embeddings: np.ndarray, norms: np.ndarray) -> None:
    if embeddings.ndim != 2 or norms.shape != (len(embeddings), 1):
        raise ValueError(
            f"got embeddings of shape {embeddings.shape} and norms of shape {norms.shape}, expected (N, D) and (N, 1)"
        )
