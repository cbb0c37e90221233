"""The interface of training image sources: samples in a fixed order, numbered from 0, with labels.

Sources are a folder of class folders (`data/sources/folder.py`), `.rec` files (`data/sources/records.py`), several of
these together (`data/sources/combined.py`) and a selection of one (`data/sources/selection.py`). A folder and the
`.rec` that it was converted from give the same samples with the same labels in the same order. No source decodes
images.

Source: torchvision's `ImageFolder`.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

_FINGERPRINT_IMAGES = 256
_NAMES_AT_ONCE = 1 << 14


class Flaw(NamedTuple):
    """A defect of the data that prevents training and was skipped on request.

    Attributes:
        kind: ``empty identity``, ``skipped image``, ``missing image``, ``label gap`` or ``damaged label``.
        identity: name of the class; empty if there is none.
        text: description for the user.
    """

    kind: str
    identity: str
    text: str


class TrainingSource(Protocol):
    """Encoded training images with labels.

    Attributes:
        location: folder or files, for messages.
    """

    location: str

    @property
    def labels(self) -> np.ndarray:
        """Class of each sample, (N,) integers 0..C-1; may be computed at each access."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """Folder name, or label in the `.rec`, of each class."""
        ...

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """Return the class of one sample."""
        ...

    def read(self, index: int) -> bytes:
        """Return the encoded image of one sample."""
        ...

    def describe(self, index: int) -> str:
        """Return the location of one sample, for messages."""
        ...


def fingerprint_of(source: TrainingSource) -> str:
    """Return a digest of training data: number of images, class names, labels, and bytes of 256 images spread over it.

    Args:
        source: all samples.

    Returns:
        SHA-256, 64 hexadecimal digits, the same for a `.rec` and the folder converted from it.
    """
    digest = hashlib.sha256(f"{len(source)}\n".encode())
    names = source.class_names
    for start in range(0, len(names), _NAMES_AT_ONCE):
        text = "\n".join(names[start : start + _NAMES_AT_ONCE])
        digest.update(("\n" + text if start else text).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(source.labels, "<i4").data)
    for index in np.unique(np.linspace(0, len(source) - 1, _FINGERPRINT_IMAGES).astype(int)).tolist():
        digest.update(hashlib.sha256(read_if_possible(source, index)).digest())
    return digest.hexdigest()


def read_if_possible(source: TrainingSource, index: int) -> bytes:
    """Return the encoded image of one sample; empty if it is damaged, which training reports or skips.

    Args:
        source: all samples.
        index: of the sample.
    """
    try:
        return source.read(index)
    except (OSError, ValueError):
        return b""
