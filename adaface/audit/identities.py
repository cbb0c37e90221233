"""What a model says of labels: images of another identity, identities that are one person, or two; people who leak.

Each identity has a center, the mean of the half of its images that are closest to the mean of all, so that wrong images
do not move it. What a cosine means depends on the model and the data: it is compared with that of an image to its own
center, left out itself, and to those of others.

Source: the cleaning of sub-center ArcFace (Deng et al., ECCV 2020), which drops images far from the dominant center.
Differences: no training of its own; thresholds follow from the model's cosines instead of a fixed angle of 75 degrees;
an image that is close to another's center is told to be that one's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adaface.audit.finding import Finding
from adaface.audit.images import AuditedData
from adaface.inference.search import most_similar

_SEED = 0
_SAMPLED = 50_000
_AT_ONCE = 1 << 14
_TIE = 1e-6
# Tried on 4,527 LFW faces with a small network that was trained on them, after 10 epochs and after 24: of 100 labels
# made wrong 86 and 93 were found, with 8 false alarms and none; of 20 identities cut in two 9 and 20, of 30 pairs made
# one 11 and 17, with none. Of 2,400 faces of strangers two and none were taken for someone in the data.
_LEAST_SPREADS_APART = 2.0  # of the own center and others, below which a model says nothing
_LEAST_GAIN = 0.6  # of the distance of own and other: how much closer another center has to be
_OUTLIER_SPREADS = 1.0
_MERGE_DEVIATIONS = 3.0  # above the usual cosine of an identity's center to the most similar other one
_SPLIT_SPREADS = 0.75
_LEAK_SPREADS = 4.0
_NORMAL = 1.4826  # standard deviation of a normal distribution, in median absolute deviations
_FEWEST_FOR_SPLIT = 4
_FEWEST_OF_CLUSTER = 2
_ROUNDS = 10
_NEIGHBOURS = 4
_SHOWN = 6


@dataclass(frozen=True)
class Embeddings:
    """The images that a model could embed, in the order of their classes.

    Attributes:
        samples: (M,) of the data, ascending.
        labels: (M,) their classes, ascending.
        vectors: (M, D) float32 unit vectors.
        classes: C, how many there are in the data.
    """

    samples: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    classes: int

    @cached_property
    def counts(self) -> np.ndarray:
        """Images of each class, (C,)."""
        return np.bincount(self.labels, minlength=self.classes)

    @cached_property
    def begins(self) -> np.ndarray:
        """Place of the first image of each class, (C,)."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def core(self) -> np.ndarray:
        """Whether an image is among the half of its class that is closest to the mean of all, (M,) bool."""
        means = unit(self._sums(np.ones(len(self.labels), np.float32)))
        own = self._cosines(means)
        order = np.lexsort((own, self.labels))
        middle = self.begins + self.counts // 2  # of an even number the upper one of the two: half of them stay
        least = np.full(self.classes, -np.inf)
        there = self.counts > 0
        least[there] = own[order][np.minimum(middle, len(order) - 1)[there]]
        return own >= least[self.labels] - _TIE

    @cached_property
    def center_sums(self) -> np.ndarray:
        """Sum of the core of each class, (C, D) float32; zeros without images."""
        return self._sums(self.core.astype(np.float32))

    @cached_property
    def own(self) -> np.ndarray:
        """Cosine of each image to the center of its class without it, (M,) float32; NaN where nothing else is there."""
        own = np.empty(len(self.labels), np.float32)
        for part in _parts(len(own)):
            vectors = np.asarray(self.vectors[part], np.float32)
            others = self.center_sums[self.labels[part]] - vectors * self.core[part, None]
            lengths = np.linalg.norm(others, axis=1)
            lengths[lengths < _TIE] = np.nan
            own[part] = np.einsum("md,md->m", vectors, others) / lengths
        return own

    def _sums(self, weights: np.ndarray) -> np.ndarray:
        sums = np.zeros((self.classes, self.vectors.shape[1]), np.float32)
        for part in _parts(len(self.labels)):
            labels = self.labels[part]
            begins = np.append(0, np.flatnonzero(labels[1:] != labels[:-1]) + 1)
            weighted = np.asarray(self.vectors[part], np.float32) * weights[part, None]
            sums[labels[begins]] += np.add.reduceat(weighted, begins, axis=0)
        return sums

    def _cosines(self, centers: np.ndarray) -> np.ndarray:
        found = np.empty(len(self.labels), np.float32)
        for part in _parts(len(found)):
            found[part] = np.einsum("md,md->m", self.vectors[part], centers[self.labels[part]])
        return found

    def of(self, label: int) -> slice:
        """Return the places of a class."""
        return slice(int(self.begins[label]), int(self.begins[label] + self.counts[label]))


@dataclass(frozen=True)
class Levels:
    """What cosines mean, with this model in this data.

    Attributes:
        own: median of an image's to its own center.
        other: mean of an image's to the center of another identity.
        spread: standard deviation of that.
        halves: of the centers of two halves of an identity; a quarter is below that.
        centers: median of an identity's center to the most similar other one.
        centers_spread: robust standard deviation of that.
    """

    own: float
    other: float
    spread: float
    halves: float
    centers: float
    centers_spread: float

    @property
    def middle(self) -> float:
        """Between own and other."""
        return (self.own + self.other) / 2

    @property
    def one_person(self) -> float:
        """From where on two centers are taken for those of one person."""
        return max(self.halves, self.centers + _MERGE_DEVIATIONS * self.centers_spread)

    @property
    def useful(self) -> bool:
        """Whether the model tells these identities apart."""
        return self.own - self.other >= _LEAST_SPREADS_APART * self.spread


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length 1, (..., D); those of length 0 stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def levels_of(faces: Embeddings) -> Levels:
    """Measure what cosines mean, on up to 50,000 images drawn by a fixed seed.

    Args:
        faces: the data, of at least two classes.
    """
    rng = np.random.default_rng(_SEED)
    there = np.flatnonzero(faces.counts > 0)
    centers = unit(faces.center_sums)
    drawn = np.sort(rng.permutation(len(faces.labels))[:_SAMPLED])
    others = there[rng.integers(len(there), size=len(drawn))]
    drawn, others = drawn[others != faces.labels[drawn]], others[others != faces.labels[drawn]]
    cosines = np.einsum("md,md->m", faces.vectors[drawn], centers[others])
    own = faces.own[np.isfinite(faces.own)]
    _, between = most_similar(centers[there], centers[there], 2)
    middle = np.median(between[:, 1])
    return Levels(
        own=float(np.median(own)) if len(own) else float("nan"),
        other=float(cosines.mean()),
        spread=float(cosines.std()),
        halves=float(np.quantile(_halves(faces), 0.25)),
        centers=float(middle),
        centers_spread=float(_NORMAL * np.median(np.abs(between[:, 1] - middle))),
    )


def _halves(faces: Embeddings) -> np.ndarray:
    """Return the cosine of the centers of every second image and of the others, of each class of four or more."""
    number = np.arange(len(faces.labels)) - faces.begins[faces.labels]
    sums = [faces._sums(((number % 2 == half) & faces.core).astype(np.float32)) for half in (0, 1)]
    enough = faces.counts >= _FEWEST_FOR_SPLIT
    cosines = (unit(sums[0]) * unit(sums[1])).sum(axis=1)[enough]
    return cosines if len(cosines) else np.ones(1)


def identity_findings(data: AuditedData, faces: Embeddings, levels: Levels) -> list[Finding]:
    """Find likely mislabelled images, outliers, and identities to merge or to split.

    Args:
        data: the images.
        faces: their embeddings.
        levels: of them.
    """
    alone = list(_moved(data, faces, levels))
    moved = {sample for finding in alone if finding.kind == "mislabelled" for sample in finding.samples}
    split = list(_split(data, faces, levels, moved))
    together = {sample for finding in split for sample in finding.samples}
    alone = [finding for finding in alone if finding.samples[0] not in together]
    return [*alone, *_merged(data, faces, levels), *split]


def _moved(data: AuditedData, faces: Embeddings, levels: Levels) -> Iterator[Finding]:
    suspects = np.flatnonzero(faces.own < levels.middle)
    if not len(suspects):
        return
    centers, names = unit(faces.center_sums), data.source.class_names
    targets, cosines = most_similar(np.asarray(faces.vectors[suspects], np.float32), centers, 2)
    for place, some, values in zip(suspects.tolist(), targets.tolist(), cosines.tolist(), strict=True):
        label, own, sample = int(faces.labels[place]), float(faces.own[place]), int(faces.samples[place])
        target, value = next((t, v) for t, v in zip(some, values, strict=True) if t != label)
        if value >= levels.middle and value - own >= _LEAST_GAIN * (levels.own - levels.other):
            text = f"cosine {own:.2f} to its own identity, {value:.2f} to {names[target]}"
            yield Finding("mislabelled", names[label], text, samples=(sample,), target=target, value=own)
        elif own < levels.other + _OUTLIER_SPREADS * levels.spread:
            text = f"cosine {own:.2f} to its own identity, at most {value:.2f} to another"
            yield Finding("outlier", names[label], text, samples=(sample,), value=own)


def _merged(data: AuditedData, faces: Embeddings, levels: Levels) -> Iterator[Finding]:
    """Yield identities whose center is as close to another's as that of its own other half."""
    there = np.flatnonzero(faces.counts > 1)
    if len(there) < 2:
        return
    centers = unit(faces.center_sums[there])
    places, cosines = most_similar(centers, centers, min(_NEIGHBOURS, len(there)))
    for place, row in enumerate(places.tolist()):
        for neighbor, value in zip(row, cosines[place].tolist(), strict=True):
            label, target = int(there[place]), int(there[neighbor])
            smaller = (faces.counts[label], -label) < (faces.counts[target], -target)
            if value < levels.one_person or not smaller:
                continue
            samples = tuple(faces.samples[faces.of(label)][:_SHOWN].tolist())
            text = f"{faces.counts[label]} images; its center has cosine {value:.2f} to that of "
            text += f"{data.source.class_names[target]} ({faces.counts[target]} images)"
            name = data.source.class_names[label]
            yield Finding("merge", name, text, samples=samples, target=target, value=value)
            break


def _split(data: AuditedData, faces: Embeddings, levels: Levels, moved: set[int]) -> Iterator[Finding]:
    """Yield the smaller of two clusters of an identity that are as far from each other as two people."""
    suspects = np.bincount(faces.labels[faces.own < levels.middle], minlength=faces.classes)
    for label in np.flatnonzero((suspects >= _FEWEST_OF_CLUSTER) & (faces.counts >= _FEWEST_FOR_SPLIT)).tolist():
        places = np.arange(faces.begins[label], faces.begins[label] + faces.counts[label])
        places = places[[int(sample) not in moved for sample in faces.samples[places]]]
        if len(places) < _FEWEST_FOR_SPLIT:
            continue
        vectors = np.asarray(faces.vectors[places], np.float64)
        second, apart, tight = two_clusters(vectors)
        far = levels.other + _SPLIT_SPREADS * levels.spread
        if min(second.sum(), (~second).sum()) < _FEWEST_OF_CLUSTER or apart >= far or tight < levels.middle:
            continue
        samples = tuple(faces.samples[places[second]].tolist())
        text = f"{len(samples)} of {len(places)} images are another cluster: cosine {apart:.2f} between the two"
        yield Finding("split", data.source.class_names[label], text, samples=samples, value=apart)


def two_clusters(vectors: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Cut unit vectors into two clusters by 2-means, begun with the most unlike of the first and its farthest.

    Args:
        vectors: (M, D), at least two.

    Returns:
        Which are in the smaller cluster, (M,) bool; the cosine of the two centers; the smaller cluster's mean cosine
        of its members to its center without them, the lower of both clusters'.
    """
    far = int(np.argmin(vectors @ vectors.mean(axis=0)))
    ends = np.stack([vectors[int(np.argmin(vectors @ vectors[far]))], vectors[far]])
    second = np.zeros(len(vectors), bool)
    for _ in range(_ROUNDS):
        cosines = vectors @ ends.T
        second = cosines[:, 1] > cosines[:, 0]
        if second.all() or not second.any():
            break
        ends = unit(np.stack([vectors[~second].sum(axis=0), vectors[second].sum(axis=0)]))
    if second.sum() * 2 > len(second):
        second = ~second
    if not second.any():
        return second, 1.0, 1.0
    tight = min(_tightness(vectors[second]), _tightness(vectors[~second]))
    return second, float(ends[0] @ ends[1]), tight


def _tightness(vectors: np.ndarray) -> float:
    """Return the mean cosine of unit vectors to the center of the others; 1 for a single one."""
    if len(vectors) < 2:
        return 1.0
    others = unit(vectors.sum(axis=0) - vectors)
    return float((vectors * others).sum(axis=1).mean())


def leaked_identities(
    data: AuditedData, faces: Embeddings, levels: Levels, test_sets: Sequence[tuple[str, np.ndarray, np.ndarray]]
) -> Iterator[Finding]:
    """Find identities that are likely people of a test set.

    Args:
        data: the images.
        faces: their embeddings.
        levels: of them.
        test_sets: of each the name, the numbers of the images that could be embedded, and their (T, D) unit vectors.
    """
    centers = unit(faces.center_sums)
    least = max(levels.own, levels.other + _LEAK_SPREADS * levels.spread)
    told = set()
    for name, numbers, vectors in test_sets:
        if not len(numbers):
            continue
        nearest, cosines = most_similar(np.asarray(vectors, np.float32), centers, 1)
        labels, values = nearest[:, 0], cosines[:, 0]
        for label in np.unique(labels[values >= least]).tolist():
            places = np.flatnonzero((labels == label) & (values >= least))
            best = int(places[np.argmax(values[places])])
            if label in told or faces.counts[label] < 2:
                continue
            told.add(label)
            text = f"cosine {values[best]:.2f} to image {numbers[best]} of {name}"
            text += f", and as much to {len(places) - 1} more of its images" if len(places) > 1 else ""
            samples = tuple(faces.samples[faces.of(label)].tolist())
            identity, value = data.source.class_names[label], float(values[best])
            test = (name, int(numbers[best]))
            yield Finding("leaked identity", identity, text, samples=samples, test_image=test, value=value)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE))
