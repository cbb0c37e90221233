"""A hash of how a picture looks: signs of its low frequencies, that survive another encoding, size or brightness.

255 coefficients of the discrete cosine transform of the grey picture at 32x32 px, contrast taken out. A bit says
whether a coefficient is above what it usually is in this data: aligned faces are much alike, and without that nearly
all bits would be the same in all of them. Coefficients of odd horizontal frequency change their sign in a mirror, so
their usual value is taken as 0, and the hash of the mirrored picture follows from that of the picture.

Source: the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010).
Differences: four times the bits, thresholds from the data.
"""

import cv2
import numpy as np

_SIDE_PX = 32
_FREQUENCIES = 16
_LEAST_CONTRAST = 1.0
_LIKENESS_SIDE_PX = 16

MOST_BITS_APART = 32
LEAST_LIKENESS = 0.95
# The lowest frequencies first; they come through best.
_ORDER = np.argsort(np.add.outer(np.arange(_FREQUENCIES), np.arange(_FREQUENCIES)).ravel(), kind="stable")
_ODD = np.tile(np.arange(_FREQUENCIES) % 2 == 1, _FREQUENCIES)[_ORDER]


def _pack(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, axis=-1).view(np.uint64)


_MIRROR = _pack(_ODD)


def frequencies(image: np.ndarray) -> np.ndarray:
    """Return the low frequencies of a picture.

    Args:
        image: (H, W, 3) uint8 BGR.

    Returns:
        (256,) float32, lowest first; the very first one, the mean, is always 0.
    """
    small = cv2.resize(image, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
    grey -= grey.mean()
    grey /= max(float(grey.std()), _LEAST_CONTRAST)
    found = cv2.dct(grey)[:_FREQUENCIES, :_FREQUENCIES].ravel()[_ORDER]
    found[0] = 0
    return found


def usual_frequencies(sample: np.ndarray) -> np.ndarray:
    """Return what to compare frequencies with.

    Args:
        sample: (M, 256) of some pictures of the data.

    Returns:
        (256,) float32, the median of each, 0 of those that change their sign in a mirror.
    """
    usual = np.median(sample, axis=0).astype(np.float32) if len(sample) else np.zeros(_ODD.shape, np.float32)
    usual[_ODD] = 0
    return usual


def picture_hash(found: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return the hash of a picture.

    Args:
        found: (256,) of ``frequencies``.
        usual: (256,) of ``usual_frequencies``.

    Returns:
        (4,) uint64.
    """
    return _pack(found > usual)


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """Return the hashes of the mirrored pictures, (..., 4) uint64, but for coefficients that are exactly usual."""
    return hashes ^ _MIRROR


def bits_apart(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Count the bits that differ, (...,) uint8-sized integers of (..., 4) uint64 hashes."""
    return np.bitwise_count(left ^ right).sum(axis=-1, dtype=np.int32)


def likeness(left: np.ndarray, right: np.ndarray) -> float:
    """Compare two pictures at 16x16 px: correlation over pixels and channels, of the right one or its mirror.

    Args:
        left: (H, W, 3) uint8.
        right: the same.

    Returns:
        -1 to 1; 1 for the same picture, also brighter or of more contrast.
    """
    small = _small(left)
    return float(max(small @ _small(right), small @ _small(right[:, ::-1])))


def _small(image: np.ndarray) -> np.ndarray:
    """Return a unit vector of a picture, each channel's mean taken out."""
    size = (_LIKENESS_SIDE_PX, _LIKENESS_SIDE_PX)
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA).astype(np.float64)
    small -= small.mean(axis=(0, 1))
    return (small / max(float(np.linalg.norm(small)), _LEAST_CONTRAST)).ravel()
