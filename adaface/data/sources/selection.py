"""A selection of the training images: the paper's subset list, or some classes.

The subset list holds sample positions in `ImageFolder` order, published with the official code for MS1MV2; the
ablations of the AdaFace paper are trained on them. The list works on an image folder and on a `.rec`, because both
number their samples in that order. Identities with fewer than five remaining images are dropped, and the others are
renumbered in the order of their old labels: 70,722 identities on the real data.

Source: `assets/ms1mv2_train_subset_index.txt` of the official AdaFace repository (not part of this one).
"""

import os
import zlib
from pathlib import Path

import numpy as np

from adaface.data.sources.base import TrainingSource
from adaface.system.text_file import read_text

SUBSET_LIST = "ms1mv2_train_subset_index.txt"
_FEWEST_IMAGES = 5
_ASSETS = Path(__file__).resolve().parents[3] / "assets"  # of a clone, where the official code has it


class SelectedSource:
    """Some samples of another source, with labels of their own.

    Args:
        source: all samples.
        indices: (M,) positions in ``source``.
        labels: (M,) class of each, 0..C-1.
        class_names: of the C classes.
        location: description of the samples, for messages.
        checksums: int64 (M,), expected CRC-32 of each encoded image; -1 where it is not known.
    """

    def __init__(
        self,
        source: TrainingSource,
        indices: np.ndarray,
        labels: np.ndarray,
        class_names: list[str],
        location: str,
        checksums: np.ndarray | None = None,
    ) -> None:
        self.labels, self.class_names, self.location = labels.astype(np.int32), class_names, location
        self._source, self._indices, self._checksums = source, indices, checksums

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        """Return the class of one sample."""
        return int(self.labels[index])

    def read(self, index: int) -> bytes:
        """Return the encoded image of one sample.

        Raises:
            ValueError: it is not the image that the selection was made for.
        """
        image = self._source.read(int(self._indices[index]))
        if self._checksums is not None and self._checksums[index] not in (-1, zlib.crc32(image)):
            raise ValueError(
                f"{self.describe(index)} is not the image that was audited (checksum {zlib.crc32(image):08x}, expected "
                f"{int(self._checksums[index]):08x}); {self.location}: audit the data again"
            )
        return image

    def describe(self, index: int) -> str:
        """Return the location of one sample, for messages."""
        return self._source.describe(int(self._indices[index]))


def select_subset(source: TrainingSource, positions: np.ndarray) -> SelectedSource:
    """Select the samples of a subset list; drop identities with fewer than five images, and renumber the others.

    Args:
        source: all samples.
        positions: (M,) positions in ``source``.

    Raises:
        ValueError: a position outside the data, or no identities left.

    Source: the ablations of the AdaFace paper, on MS1MV2.
    """
    if len(positions) and not (positions.min() >= 0 and positions.max() < len(source)):
        raise ValueError(
            f"the subset list names positions {positions.min()} to {positions.max()}, the training data has "
            f"{len(source)} images: --train_data_subset works on the complete MS1MV2 only (faces_emore)"
        )
    labels = source.labels[positions]
    counts = np.bincount(labels, minlength=len(source.class_names))
    kept = counts >= _FEWEST_IMAGES
    if not kept.any():
        raise ValueError(
            f"no identity has {_FEWEST_IMAGES} images or more among the {len(positions)} images of the subset list"
        )
    return select_classes(source, kept, f"the subset list of {source.location}", positions)


def select_classes(
    source: TrainingSource, kept: np.ndarray, location: str, positions: np.ndarray | None = None
) -> SelectedSource:
    """Select the samples of some classes, renumbered in the order of their old labels.

    Args:
        source: all samples.
        kept: (C,) booleans, which classes.
        location: description of the samples, for messages.
        positions: (M,) samples to select from; None: all.
    """
    positions = np.arange(len(source)) if positions is None else positions
    labels = source.labels[positions]
    chosen = kept[labels]
    names = [source.class_names[label] for label in np.flatnonzero(kept).tolist()]
    new_label = np.cumsum(kept) - 1
    return SelectedSource(source, positions[chosen].astype(np.uint32), new_label[labels[chosen]], names, location)


def read_subset_list(data_root: str | os.PathLike[str], train_data_path: str | os.PathLike[str]) -> np.ndarray:
    """Read the paper's subset list, from the folders of the data or from `assets/` of a clone.

    Args:
        data_root: folder that ``train_data_path`` is relative to.
        train_data_path: of the training data.

    Returns:
        (M,) int64 positions, in the order of the list.

    Raises:
        FileNotFoundError: the list was not found.
        ValueError: it is not a list of numbers.
    """
    path = Path(data_root, train_data_path)
    beside_the_data = list(dict.fromkeys(folder.absolute() for folder in (path, path.parent, Path(data_root))))
    for folder in (*beside_the_data, _ASSETS):
        if (folder / SUBSET_LIST).is_file():
            return _parse_subset_list(folder / SUBSET_LIST)
    raise FileNotFoundError(
        f"--train_data_subset needs {SUBSET_LIST}, expected in {' or '.join(map(str, beside_the_data))}. Copy it from "
        "the folder assets of the official AdaFace repository (github.com/mk-minchul/AdaFace) to one of them"
    )


def _parse_subset_list(path: Path) -> np.ndarray:
    try:
        words = ",".join(read_text(path).split()).split(",")
        return np.array([int(word) for word in words if word.strip()], np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: expected integers separated by commas ({error}); download it again") from error
