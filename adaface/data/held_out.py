"""The verification sets of a run: those of ``--val_data_path``, and one of people held out of the training data.

The pairs of people held out are those of LFW in small: as many of one person as of two people, each pair once, both
kinds in turn, so that each fold of the cross-validation has both. Whom the images show is kept with them, because pairs
of few people depend on each other, and intervals have to know it.

Their choice depends on the seed and on the labels alone: a `.rec` and the folder made of it give the same people and
the same pairs.

Source: none, it is ours; the balance of the two kinds is LFW's (Huang et al., 2007).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaface.data.datasets import decode_sample
from adaface.data.images import LazyImages
from adaface.data.pair_sets import PAPER_SETS, PairSet, find_pair_sets, open_pair_set
from adaface.data.sampler import RandomStreams
from adaface.data.sources.base import TrainingSource
from adaface.data.sources.selection import SelectedSource, select_classes
from adaface.system.command_line import nearest

HELD_OUT = "held_out"  # the name of the verification set of people held out
FEWEST_PEOPLE = 4
MOST_PAIRS = 3000  # of each kind, as in LFW
_MOST_OF_ONE_PERSON = 45  # genuine pairs: all of ten images
_MOST_IMAGES_OF_ONE_PERSON = 200  # to take these pairs from
_SPLIT, _GENUINE, _IMPOSTOR = range(3)  # places in the random streams
_EPOCH = 2**32 - 1  # of those streams: no training comes so far


@dataclass(frozen=True)
class ChosenSets:
    """Verification sets of a run.

    Attributes:
        opened: name -> set, of those on the disk, the paper's first.
        missing: those of the paper that are not there, where nobody has chosen.
        held_out: people are to be held out of the training data for one more.
        note: what the user should know; empty where there is nothing.
    """

    opened: dict[str, PairSet]
    missing: list[str]
    held_out: bool
    note: str = ""


def open_sets(folder: Path, wanted: str, *, held_out_otherwise: bool, compulsory: bool) -> ChosenSets:
    """Choose and open verification sets.

    Args:
        folder: of the sets; may be absent.
        wanted: names with commas between them, ``held_out`` among them or not; all in the folder when empty.
        held_out_otherwise: hold people out where nothing is wanted and nothing found.
        compulsory: there is nothing to do without a set on the disk.

    Raises:
        FileNotFoundError: a set that is wanted, or compulsory, is not there.
        ValueError: a damaged set, or ``held_out`` where a set on the disk is compulsory.
    """
    found = list(find_pair_sets(folder)) if folder.is_dir() else []
    names = [name for word in wanted.split(",") if (name := word.strip())]
    for name in names:
        if name not in (*found, HELD_OUT):
            known = nearest(name, [*found, HELD_OUT])
            raise FileNotFoundError(f"--val_sets {wanted}: there is no set {name} in {folder.absolute()}; {known}")
    opened = {name: open_pair_set(folder, name) for name in found if not names or name in names}
    missing = [name for name in PAPER_SETS if name not in found] if found and not names else []
    held_out = HELD_OUT in names and HELD_OUT not in found if names else held_out_otherwise and not found
    if compulsory and held_out:
        raise ValueError(f"--val_sets {HELD_OUT} is cut from the training data, of which --evaluate reads none")
    why = "none there" if folder.is_dir() else "no such folder"
    none = f"no validation sets in {folder.absolute()} ({why}; looked for .bin files and converted sets)"
    if compulsory and not opened:
        raise FileNotFoundError(f"{none}. Check --data_root and --val_data_path")
    if opened or names:
        return ChosenSets(opened, missing, held_out)
    instead = "people of the training data are held out" if held_out else "training goes on without validation"
    return ChosenSets(opened, missing, held_out, f"{none}: {instead}")


def hold_out(
    source: TrainingSource, share: float, seed: int, *, swap_color_channel: bool = False, skip_bad_images: bool = False
) -> tuple[SelectedSource, PairSet]:
    """Hold people out of training data.

    Args:
        source: all training images.
        share: of the people to hold out, in (0, 1); at least ``FEWEST_PEOPLE`` with two images or more are.
        seed: of the choice of people and pairs, in [0, 2**32).
        swap_color_channel: the stored images have red and blue swapped.
        skip_bad_images: leave out images that cannot be decoded.

    Returns:
        The training data without these people, and pairs of their images.

    Raises:
        ValueError: too few people with two images.
    """
    held = choose_people(np.bincount(source.labels, minlength=len(source.class_names)), share, seed)
    rest = select_classes(source, ~held, f"{source.location}, without {int(held.sum()):,} identities held out")
    theirs = select_classes(source, held, f"{int(held.sum()):,} identities held out of {source.location}")
    images = HeldOutImages(theirs, np.arange(len(theirs)), swap_color_channel=swap_color_channel)
    usable = np.array([not skip_bad_images or _is_readable(images, sample) for sample in range(len(theirs))])
    samples = np.flatnonzero(usable)
    places, issame = draw_pairs(theirs.labels[samples], seed)
    if not issame.any():
        raise ValueError(f"{theirs.location}: no person is left with two images that can be read, so there is no pair")
    chosen = samples[places]  # (P, 2)
    images = HeldOutImages(theirs, chosen.ravel(), swap_color_channel=swap_color_channel)
    return rest, PairSet(HELD_OUT, images, issame, theirs.labels[chosen])


def choose_people(counts: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose whom to hold out: the same share of those with one image and of those with more.

    Args:
        counts: (C,) images of each identity.
        share: in (0, 1).
        seed: in [0, 2**32).

    Returns:
        (C,) booleans.

    Raises:
        ValueError: too few people with two images or more: as many as are held out have to stay.
    """
    several, single = np.flatnonzero(counts > 1), np.flatnonzero(counts == 1)
    if len(several) < 2 * FEWEST_PEOPLE:
        raise ValueError(
            f"{len(counts):,} identities, of which {len(several):,} have two images or more: to hold some out for "
            f"validation takes {2 * FEWEST_PEOPLE} of them. Give verification sets in their place, in --val_data_path "
            "(python convert.py --pairs makes one), or more images"
        )
    rng = RandomStreams(seed).at(_EPOCH, _SPLIT)
    held = np.zeros(len(counts), dtype=bool)
    number = min(max(FEWEST_PEOPLE, round(share * len(several))), len(several) - FEWEST_PEOPLE)
    held[rng.permutation(several)[:number]] = True
    held[rng.permutation(single)[: round(share * len(single))]] = True
    return held


def draw_pairs(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw as many pairs of one person as of two people, in turn.

    Args:
        labels: (N,) whom the images show.
        seed: in [0, 2**32).

    Returns:
        Places of the images (P, 2), and whether they show one person (P,); P is even, at most twice ``MOST_PAIRS``, and
        0 where nobody has two images, or all images are of one person.
    """
    genuine = _genuine_pairs(labels, RandomStreams(seed).at(_EPOCH, _GENUINE))
    pairs_of_one = sum(int(count) * (int(count) - 1) // 2 for count in np.bincount(labels))
    possible = len(labels) * (len(labels) - 1) // 2 - pairs_of_one
    number = min(len(genuine), possible)
    impostors = _impostor_pairs(labels, number, RandomStreams(seed).at(_EPOCH, _IMPOSTOR))
    places = np.stack([genuine[:number], impostors], axis=1).reshape(-1, 2)  # (P, 2), both kinds in turn
    return places, np.arange(2 * number) % 2 == 0


class HeldOutImages(LazyImages):
    """Images of training samples, each (112, 112, 3) uint8 BGR, decoded when asked for.

    Args:
        source: encoded images.
        samples: (N,) which of them, in which order.
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
    """Return at most ``MOST_PAIRS`` pairs of one person (P, 2) in random order, evenly over the people."""
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
    """Return different pairs of two people (number, 2): two people at random, then an image of each."""
    people, counts = np.unique(labels, return_counts=True)
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    found: dict[tuple[int, int], None] = {}
    while len(found) < number:
        first, second = rng.integers(len(people)), rng.integers(len(people))
        if first == second:
            continue
        pair = sorted(int(order[starts[one] + rng.integers(counts[one])]) for one in (first, second))
        found[pair[0], pair[1]] = None
    return np.array(list(found), np.int64).reshape(-1, 2)
