"""Is red blue? Skin is warmer than grey, whoever's it is; where red and blue are swapped it is colder.

Of 4,527 LFW faces and 1,440 drawn ones none had more cold pixels than warm ones (the least warm had 8 in a hundred
more warm ones; of two without any colour there are as many), so that a swapped image tells itself, but for colourless
ones. Blue light can do the same: it is a warning.
"""

from collections.abc import Iterator

import numpy as np

from adaface.audit.finding import Finding
from adaface.audit.images import AuditedData

_ROWS, _COLUMNS = slice(30, 110), slice(20, 92)  # the face, in an aligned image of 112x112
_TINT = 0.01  # share of the brightness by which red and blue must differ to be counted
_COLD = -0.05
_COLOURLESS = 1.0  # mean difference of the highest and lowest channel
_MOST_OF_IDENTITY = 0.5
_MOST_OF_DATA = 0.5


def warmth(image: np.ndarray) -> float:
    """Return the share of a face's pixels that are warmer than grey, less the share that are colder.

    Args:
        image: (112, 112, 3) uint8 BGR.

    Returns:
        -1 to 1.
    """
    face = image[_ROWS, _COLUMNS].reshape(-1, 3).astype(np.int32)
    difference = face[:, 2] - face[:, 0]  # red - blue
    least = _TINT * face.sum(axis=1)
    return float((difference > least).mean() - (difference < -least).mean())


def colour_spread(image: np.ndarray) -> float:
    """Return the mean difference of a pixel's highest and lowest channel, 0 to 255.

    Args:
        image: (H, W, 3) uint8 BGR.
    """
    return float((image.max(axis=2) - image.min(axis=2)).mean())


def colour_findings(data: AuditedData, table: np.ndarray, good: np.ndarray) -> Iterator[Finding]:
    """Find swapped colours, of the whole data, of identities, of images; and images without colour.

    Args:
        data: the images.
        table: (N,) of ``scan.ROW``.
        good: samples that could be decoded, ascending.
    """
    if not len(good):
        return
    cold = table["warmth"][good] < _COLD
    coloured = table["colour"][good] >= _COLOURLESS
    if cold.sum() > _MOST_OF_DATA * max(coloured.sum(), 1):
        share = float(cold.sum() / coloured.sum())
        text = f"skin is blue in {share:.0%} of {int(coloured.sum()):,} images"
        yield Finding("data set swapped", "", text, samples=tuple(good[cold][:8].tolist()), value=share)
        cold = (table["warmth"][good] > -_COLD) & coloured  # then those that are right stand out
    for sample in good[~coloured].tolist():
        yield Finding("colourless image", data.identity(sample), "red, green and blue are the same", samples=(sample,))
    yield from _swapped(data, table, good, cold, coloured)


def _swapped(
    data: AuditedData, table: np.ndarray, good: np.ndarray, cold: np.ndarray, coloured: np.ndarray
) -> Iterator[Finding]:
    """Yield swapped images, those of an identity that has mostly such ones together."""
    labels = data.labels[good]
    count = np.bincount(labels[coloured], minlength=len(data.source.class_names))
    colds = np.bincount(labels[cold], minlength=len(count))
    suspects = np.split(good[cold], np.cumsum(colds[colds > 0])[:-1])  # labels ascend with the samples
    for label, some in zip(np.flatnonzero(colds).tolist(), suspects, strict=False):
        samples = some.tolist()
        name = data.source.class_names[label]
        if colds[label] > 1 and colds[label] > _MOST_OF_IDENTITY * count[label]:
            text = f"in {colds[label]} of {count[label]} images"
            share = float(colds[label] / count[label])
            yield Finding("red and blue swapped", name, text, samples=tuple(samples), value=share)
            continue
        for sample in samples:
            value = float(table["warmth"][sample])
            text = f"colours unlike those of the data: warmth {value:+.2f} (-1 blue to 1 red)"
            yield Finding("red and blue swapped", name, text, samples=(sample,), value=value)
