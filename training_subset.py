"""The fixed part of MS1MV2 that the ablations of the AdaFace paper are trained on.

A list of sample positions in `ImageFolder` order, published with the official code; it works on an image folder and
on a `.rec` alike, because both number their samples in that order. Identities with fewer than five images left are
dropped and the others renumbered in the order of their old labels: 70,722 identities on the real data.

Source: `assets/ms1mv2_train_subset_index.txt` of the official AdaFace repository (not part of this one).
"""

import os
from pathlib import Path

import numpy as np

from training_source import TrainingSource

SUBSET_LIST = "ms1mv2_train_subset_index.txt"
_FEWEST_IMAGES = 5
_ASSETS = Path(__file__).resolve().parent / "assets"


class SelectedSource:
    """Some samples of another source, with labels of their own.

    Args:
        source: all samples.
        indices: (M,) positions in ``source``.
        labels: (M,) class of each, 0..C-1.
        class_names: of the C classes.
        location: what they are, for messages.
    """

    def __init__(
        self, source: TrainingSource, indices: np.ndarray, labels: np.ndarray, class_names: list[str], location: str
    ) -> None:
        self.labels, self.class_names, self.location = labels.astype(np.int32), class_names, location
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        """Return the class of one sample."""
        return int(self.labels[index])

    def read(self, index: int) -> bytes:
        """Return the encoded image of one sample."""
        return self._source.read(int(self._indices[index]))

    def describe(self, index: int) -> str:
        """Return where one sample lies, for messages."""
        return self._source.describe(int(self._indices[index]))


def select_subset(source: TrainingSource, positions: np.ndarray) -> SelectedSource:
    """Select the samples of a subset list; drop identities with fewer than five, renumber the others.

    Args:
        source: all samples.
        positions: (M,) of the list, in the order of ``source``.

    Raises:
        ValueError: a position outside the data, or nothing left.

    Source: the ablations of the AdaFace paper, on MS1MV2.
    """
    if len(positions) and not (positions.min() >= 0 and positions.max() < len(source)):
        raise ValueError(
            f"the subset list names positions {positions.min()} to {positions.max()}, the training data has "
            f"{len(source)} images: --train_data_subset is for the whole of MS1MV2 (faces_emore)"
        )
    labels = source.labels[positions]
    counts = np.bincount(labels, minlength=len(source.class_names))
    kept = counts >= _FEWEST_IMAGES
    if not kept.any():
        raise ValueError(
            f"no identity has {_FEWEST_IMAGES} images or more among the {len(positions)} of the subset list"
        )
    return select_classes(source, kept, f"the subset list of {source.location}", positions)


def select_classes(
    source: TrainingSource, kept: np.ndarray, location: str, positions: np.ndarray | None = None
) -> SelectedSource:
    """Select the samples of some classes, and renumber these in the order of their old labels.

    Args:
        source: all samples.
        kept: (C,) booleans, which classes.
        location: what they are, for messages.
        positions: (M,) of the samples to select from; all when None.
    """
    positions = np.arange(len(source)) if positions is None else positions
    labels = source.labels[positions]
    chosen = kept[labels]
    names = [source.class_names[label] for label in np.flatnonzero(kept).tolist()]
    new_label = np.cumsum(kept) - 1
    return SelectedSource(source, positions[chosen].astype(np.uint32), new_label[labels[chosen]], names, location)


def read_subset_list(data_root: str | os.PathLike[str], train_data_path: str | os.PathLike[str]) -> np.ndarray:
    """Read the paper's subset list, from beside the data or from `assets/` of this repository.

    Args:
        data_root: folder that ``train_data_path`` is relative to.
        train_data_path: of the training data.

    Returns:
        (M,) int64 positions, in the order of the list.

    Raises:
        FileNotFoundError: the list is nowhere.
        ValueError: it is not a list of numbers.
    """
    path = Path(data_root, train_data_path)
    for folder in (path, path.parent, Path(data_root), _ASSETS):
        if (folder / SUBSET_LIST).is_file():
            return _parse_subset_list(folder / SUBSET_LIST)
    raise FileNotFoundError(
        f"--train_data_subset needs {SUBSET_LIST}, which is not part of this repository. Get it from the folder "
        f"assets of the official AdaFace repository (github.com/mk-minchul/AdaFace) and put it into {_ASSETS} or "
        f"{path.absolute()}"
    )


def _parse_subset_list(path: Path) -> np.ndarray:
    try:
        words = path.read_text(encoding="ascii").replace("\n", ",").split(",")
        return np.array([int(word) for word in words if word.strip()], np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: expected whole numbers with commas between them ({error}); get it again") from error
