"""Find wrong labels with a model: mislabeled images, identities to merge or to split, and identities of test sets.

The center of an identity is the mean of the half of its images closest to the mean of all, so that mislabeled images do
not move it. The meaning of a cosine depends on the model and the data, so cosines are compared with the usual cosines
of images to their own center (computed without the image) and to other centers.

Source: the cleaning of sub-center ArcFace (Deng et al., ECCV 2020), which drops images far from the dominant center.
Differences: no model is trained for it; thresholds follow from the model's cosines instead of a fixed angle of 75
degrees; an image that is close to the center of another identity is assigned to it.
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
# Measured on 4,527 LFW faces with a small network trained on them, after 10 and after 24 epochs: of 100 wrong labels,
# 86 and 93 were found, with 8 and 0 false alarms; of 20 identities cut in two, 9 and 20, and of 30 joined pairs of
# identities, 11 and 17, without false alarms. Of 2,400 faces of other people, 2 and 0 were taken for an identity.
_LEAST_SPREADS_APART = 2.0  # least distance of `own` and `other` for which the model is used
_LEAST_GAIN = 0.6  # how much closer another center must be, as a fraction of the distance of `own` and `other`
_OUTLIER_SPREADS = 1.0
_MERGE_DEVIATIONS = 3.0  # above the usual cosine of an identity's center to the most similar other center
_SPLIT_SPREADS = 0.75
_LEAK_SPREADS = 4.0
_NORMAL = 1.4826  # standard deviation of a normal distribution, in median absolute deviations
_FEWEST_FOR_SPLIT = 4
_FEWEST_OF_CLUSTER = 2
_ROUNDS = 10
_NEIGHBORS = 4
_SHOWN = 6


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the images that could be embedded, sorted by class.

    Attributes:
        samples: (M,) indices in the data, ascending.
        labels: (M,) classes, ascending.
        vectors: (M, D) float32 unit vectors.
        classes: number of classes in the data, C.
    """

    samples: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    classes: int

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of images of each class, (C,)."""
        return np.bincount(self.labels, minlength=self.classes)

    @cached_property
    def begins(self) -> np.ndarray:
        """Index of the first image of each class, (C,)."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def core(self) -> np.ndarray:
        """Whether an image belongs to the half of its class closest to the class mean, (M,) bool."""
        means = unit(self._sums(np.ones(len(self.labels), np.float32)))
        own = self._cosines(means)
        order = np.lexsort((own, self.labels))
        middle = self.begins + self.counts // 2  # the upper one of an even number, so that half of them remain
        least = np.full(self.classes, -np.inf)
        there = self.counts > 0
        least[there] = own[order][np.minimum(middle, len(order) - 1)[there]]
        return own >= least[self.labels] - _TIE

    @cached_property
    def center_sums(self) -> np.ndarray:
        """Sum of the core of each class, (C, D) float32; zero for classes without images."""
        return self._sums(self.core.astype(np.float32))

    @cached_property
    def own(self) -> np.ndarray:
        """Cosine of each image to the center of the others of its class, (M,) float32; NaN if there are no others."""
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
    """Typical cosines of this model and data.

    Attributes:
        own: median cosine of an image to its own center.
        other: mean cosine of an image to the center of another identity.
        spread: standard deviation of the latter.
        halves: lower quartile of the cosines between the centers of two halves of an identity.
        centers: median cosine of an identity's center to the most similar other center.
        centers_spread: robust standard deviation of the latter.
    """

    own: float
    other: float
    spread: float
    halves: float
    centers: float
    centers_spread: float

    @property
    def middle(self) -> float:
        """Mean of ``own`` and ``other``."""
        return (self.own + self.other) / 2

    @property
    def one_person(self) -> float:
        """Smallest cosine of two centers that likely belong to one person."""
        return max(self.halves, self.centers + _MERGE_DEVIATIONS * self.centers_spread)

    @property
    def useful(self) -> bool:
        """Whether the model can distinguish these identities."""
        return self.own - self.other >= _LEAST_SPREADS_APART * self.spread


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalize vectors (..., D) to length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def levels_of(faces: Embeddings) -> Levels:
    """Measure the typical cosines, on up to 50,000 images drawn with a fixed seed.

    Args:
        faces: embeddings of at least two classes.
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
    """Return the cosine between the centers of the even and the odd images, for each class of four or more images."""
    number = np.arange(len(faces.labels)) - faces.begins[faces.labels]
    sums = [faces._sums(((number % 2 == half) & faces.core).astype(np.float32)) for half in (0, 1)]
    enough = faces.counts >= _FEWEST_FOR_SPLIT
    cosines = (unit(sums[0]) * unit(sums[1])).sum(axis=1)[enough]
    return cosines if len(cosines) else np.ones(1)


def identity_findings(data: AuditedData, faces: Embeddings, levels: Levels) -> list[Finding]:
    """Find likely mislabeled images, outliers, and identities to merge or to split.

    Args:
        data: training data.
        faces: embeddings of the data.
        levels: typical cosines of ``faces``.
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
    """Yield identities whose center is as close to another center as two halves of one identity."""
    there = np.flatnonzero(faces.counts > 1)
    if len(there) < 2:
        return
    centers = unit(faces.center_sums[there])
    places, cosines = most_similar(centers, centers, min(_NEIGHBORS, len(there)))
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
    """Yield the smaller of two clusters of an identity that are as different as two people."""
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
        text = f"{len(samples)} of {len(places)} images form a second cluster: cosine {apart:.2f} between the two"
        yield Finding("split", data.source.class_names[label], text, samples=samples, value=apart)


def two_clusters(vectors: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Split unit vectors into two clusters by 2-means, starting from the vector least similar to the mean.

    Args:
        vectors: (M, D), M >= 2.

    Returns:
        Whether each vector is in the smaller cluster, (M,) bool; the cosine of the two centers; and the mean cosine of
        members to the center of the other members, of the less compact cluster.
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
    """Return the mean cosine of unit vectors to the center of the others; 1 for a single vector."""
    if len(vectors) < 2:
        return 1.0
    others = unit(vectors.sum(axis=0) - vectors)
    return float((vectors * others).sum(axis=1).mean())


def leaked_identities(
    data: AuditedData, faces: Embeddings, levels: Levels, test_sets: Sequence[tuple[str, np.ndarray, np.ndarray]]
) -> Iterator[Finding]:
    """Find identities that are likely also in a test set.

    Args:
        data: training data.
        faces: embeddings of the data.
        levels: typical cosines of ``faces``.
        test_sets: name, indices of the embedded images, and their (T, D) unit vectors, for each test set.
    """
    centers = unit(faces.center_sums)
    least = max(levels.own, levels.other + _LEAK_SPREADS * levels.spread)
    reported = set()
    for name, numbers, vectors in test_sets:
        if not len(numbers):
            continue
        nearest, cosines = most_similar(np.asarray(vectors, np.float32), centers, 1)
        labels, values = nearest[:, 0], cosines[:, 0]
        for label in np.unique(labels[values >= least]).tolist():
            places = np.flatnonzero((labels == label) & (values >= least))
            best = int(places[np.argmax(values[places])])
            if label in reported or faces.counts[label] < 2:
                continue
            reported.add(label)
            text = f"cosine {values[best]:.2f} to image {numbers[best]} of {name}"
            text += f", and similar to {len(places) - 1} more of its images" if len(places) > 1 else ""
            samples = tuple(faces.samples[faces.of(label)].tolist())
            identity, value = data.source.class_names[label], float(values[best])
            test = (name, int(numbers[best]))
            yield Finding("leaked identity", identity, text, samples=samples, test_image=test, value=value)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE))
