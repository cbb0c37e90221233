"""A verification set of identities held out of the training data.

The held-out pairs follow LFW: as many genuine as impostor pairs, each pair once, alternating, so that each fold of the
cross-validation has both. The identities are stored with the images, because pairs of few identities are dependent, and
confidence intervals must account for that.

The choice depends on the seed and the labels only: a `.rec` and the folder converted from it give the same identities
and the same pairs.

Source: the balance of the two kinds is that of LFW (Huang et al., 2007); the rest is not from a paper.
"""

import numpy as np

from adaface.data.chosen_sets import HELD_OUT
from adaface.data.datasets import decode_sample
from adaface.data.images import LazyImages
from adaface.data.pair_sets import PairSet
from adaface.data.sampler import RandomStreams
from adaface.data.sources.base import TrainingSource
from adaface.data.sources.selection import SelectedSource, select_classes
from adaface.system.command_line import invocation

FEWEST_PEOPLE = 4
MOST_PAIRS = 3000  # per kind, as in LFW
_MOST_OF_ONE_PERSON = 45  # genuine pairs: all pairs of ten images
_MOST_IMAGES_OF_ONE_PERSON = 200  # from which these pairs are drawn
_SPLIT, _GENUINE, _IMPOSTOR = range(3)  # keys of the random streams
_EPOCH = 2**32 - 1  # of those streams: never reached by training


def hold_out(
    source: TrainingSource, share: float, seed: int, *, swap_color_channel: bool = False, skip_bad_images: bool = False
) -> tuple[SelectedSource, PairSet]:
    """Hold identities out of training data.

    Args:
        source: all training images.
        share: fraction of identities to hold out, in (0, 1); at least ``FEWEST_PEOPLE`` with two images or more.
        seed: seed of the choice of identities and pairs, in [0, 2**32).
        swap_color_channel: the stored images have red and blue swapped.
        skip_bad_images: skip images that cannot be decoded.

    Returns:
        The training data without these identities, and pairs of their images.

    Raises:
        ValueError: too few identities with two images.
    """
    held = choose_people(np.bincount(source.labels, minlength=len(source.class_names)), share, seed)
    rest = select_classes(source, ~held, f"{source.location}, without {int(held.sum()):,} identities held out")
    excluded = select_classes(source, held, f"{int(held.sum()):,} identities held out of {source.location}")
    images = HeldOutImages(excluded, np.arange(len(excluded)), swap_color_channel=swap_color_channel)
    usable = np.array([not skip_bad_images or _is_readable(images, sample) for sample in range(len(excluded))])
    samples = np.flatnonzero(usable)
    places, issame = draw_pairs(excluded.labels[samples], seed)
    if not issame.any():
        raise ValueError(f"{excluded.location}: no identity has two readable images, so there are no genuine pairs")
    chosen = samples[places]  # (P, 2)
    images = HeldOutImages(excluded, chosen.ravel(), swap_color_channel=swap_color_channel)
    return rest, PairSet(HELD_OUT, images, issame, excluded.labels[chosen])


def choose_people(counts: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose identities to hold out: the same fraction of those with one image and of those with more.

    Args:
        counts: (C,) images of each identity.
        share: in (0, 1).
        seed: in [0, 2**32).

    Returns:
        (C,) booleans.

    Raises:
        ValueError: too few identities with two images or more: at least as many must remain as are held out.
    """
    several, single = np.flatnonzero(counts > 1), np.flatnonzero(counts == 1)
    if len(several) < 2 * FEWEST_PEOPLE:
        raise ValueError(
            f"{len(counts):,} identities, of which {len(several):,} have two images or more: holding some out for "
            f"validation needs {2 * FEWEST_PEOPLE} of these. Set --val_data_path to verification sets instead "
            f"({invocation('convert')} --pairs makes one), or add images"
        )
    rng = RandomStreams(seed).at(_EPOCH, _SPLIT)
    held = np.zeros(len(counts), dtype=bool)
    number = min(max(FEWEST_PEOPLE, round(share * len(several))), len(several) - FEWEST_PEOPLE)
    held[rng.permutation(several)[:number]] = True
    held[rng.permutation(single)[: round(share * len(single))]] = True
    return held


def draw_pairs(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw as many genuine as impostor pairs, alternating.

    Args:
        labels: (N,) identities of the images.
        seed: in [0, 2**32).

    Returns:
        Indices of the images (P, 2), and whether they show the same identity (P,); P is even, at most twice
        ``MOST_PAIRS``, and 0 if no identity has two images, or all images are of one identity.
    """
    genuine = _genuine_pairs(labels, RandomStreams(seed).at(_EPOCH, _GENUINE))
    pairs_of_one = sum(int(count) * (int(count) - 1) // 2 for count in np.bincount(labels))
    possible = len(labels) * (len(labels) - 1) // 2 - pairs_of_one
    number = min(len(genuine), possible)
    impostors = _impostor_pairs(labels, number, RandomStreams(seed).at(_EPOCH, _IMPOSTOR))
    places = np.stack([genuine[:number], impostors], axis=1).reshape(-1, 2)  # (P, 2), alternating
    return places, np.arange(2 * number) % 2 == 0


class HeldOutImages(LazyImages):
    """Images of training samples, each (112, 112, 3) uint8 BGR, decoded on access.

    Args:
        source: encoded images.
        samples: (N,) indices of the samples, in order.
        swap_color_channel: the stored images have red and blue swapped.
    """

    def __init__(self, source: TrainingSource, samples: np.ndarray, *, swap_color_channel: bool) -> None:
        super().__init__(source.location)
        self.source, self.samples, self.swap_color_channel = source, samples, swap_color_channel

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> np.ndarray:
        """Return one image, (112, 112, 3) uint8 BGR."""
        return decode_sample(self.source, int(self.samples[index]), swap_color_channel=self.swap_color_channel)


def _is_readable(images: HeldOutImages, sample: int) -> bool:
    try:
        images[sample]
    except ValueError:
        return False
    return True


def _genuine_pairs(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return at most ``MOST_PAIRS`` genuine pairs (P, 2) in random order, evenly over the identities."""
    by_person = []
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        images = rng.permutation(images)[:_MOST_IMAGES_OF_ONE_PERSON]
        first, second = np.triu_indices(len(images), 1)
        by_person.append(rng.permutation(np.stack([images[first], images[second]], axis=1))[:_MOST_OF_ONE_PERSON])
    # the first pair of each, then the second of each, ...
    rounds = np.concatenate([np.arange(len(pairs)) for pairs in by_person])
    shuffled = rng.permutation(len(rounds))
    chosen = shuffled[np.argsort(rounds[shuffled], kind="stable")][:MOST_PAIRS]
    return np.concatenate(by_person)[rng.permutation(chosen)]


def _impostor_pairs(labels: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return distinct impostor pairs (number, 2): two random identities, then a random image of each."""
    people, counts = np.unique(labels, return_counts=True)
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < number:
        first, second = rng.integers(len(people)), rng.integers(len(people))
        if first == second:
            continue
        pair = sorted(int(order[starts[one] + rng.integers(counts[one])]) for one in (first, second))
        pairs[pair[0], pair[1]] = None
    return np.array(list(pairs), np.int64).reshape(-1, 2)
