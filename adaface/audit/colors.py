"""Detect swapped red and blue channels: skin of any tone is warmer than gray; with swapped channels it is colder.

None of 4,527 LFW faces and 1,440 synthetic ones had more cold than warm pixels (the smallest difference was 8
percentage points; two colorless images had none), so swapped images can be detected, except colorless ones. Blue light
has the same effect, so the finding is a warning.
"""

from collections.abc import Iterator

import numpy as np

from adaface.audit.finding import Finding
from adaface.audit.images import AuditedData

_ROWS, _COLUMNS = slice(30, 110), slice(20, 92)  # the face, in an aligned image of 112x112
_TINT = 0.01  # least difference of red and blue that counts, as a fraction of the brightness
_COLD = -0.05
_COLORLESS = 1.0  # mean difference of the highest and lowest channel
_MOST_OF_IDENTITY = 0.5
_MOST_OF_DATA = 0.5


def warmth(image: np.ndarray) -> float:
    """Return the fraction of a face's pixels that are warmer than gray, minus the fraction that are colder.

    Args:
        image: (112, 112, 3) uint8 BGR.

    Returns:
        -1 to 1.
    """
    face = image[_ROWS, _COLUMNS].reshape(-1, 3).astype(np.int32)
    difference = face[:, 2] - face[:, 0]  # red - blue
    least = _TINT * face.sum(axis=1)
    return float((difference > least).mean() - (difference < -least).mean())


def color_spread(image: np.ndarray) -> float:
    """Return the mean difference of a pixel's highest and lowest channel, 0 to 255.

    Args:
        image: (H, W, 3) uint8 BGR.
    """
    return float((image.max(axis=2) - image.min(axis=2)).mean())


def color_findings(data: AuditedData, table: np.ndarray, good: np.ndarray) -> Iterator[Finding]:
    """Find swapped colors in the whole data, in identities and in single images, and images without color.

    Args:
        data: training data.
        table: (N,) array of ``scan.ROW``.
        good: usable samples, ascending.
    """
    if not len(good):
        return
    cold = table["warmth"][good] < _COLD
    colored = table["colour"][good] >= _COLORLESS
    if cold.sum() > _MOST_OF_DATA * max(colored.sum(), 1):
        share = float(cold.sum() / colored.sum())
        text = f"skin is blue in {share:.0%} of {int(colored.sum()):,} images"
        yield Finding("data set swapped", "", text, samples=tuple(good[cold][:8].tolist()), value=share)
        cold = (table["warmth"][good] > -_COLD) & colored  # then the correct images are the exception
    for sample in good[~colored].tolist():
        yield Finding("colourless image", data.identity(sample), "red, green and blue are the same", samples=(sample,))
    yield from _swapped(data, table, good, cold, colored)


def _swapped(
    data: AuditedData, table: np.ndarray, good: np.ndarray, cold: np.ndarray, colored: np.ndarray
) -> Iterator[Finding]:
    """Yield swapped images, in a single finding if most images of an identity are swapped."""
    labels = data.labels[good]
    count = np.bincount(labels[colored], minlength=len(data.source.class_names))
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
            text = f"colors differ from the rest of the data: warmth {value:+.2f} (-1 blue to 1 red)"
            yield Finding("red and blue swapped", name, text, samples=(sample,), value=value)
