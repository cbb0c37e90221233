"""The images of a set that a scan has found fit to be embedded, as evaluations take lists of images."""

import hashlib
from dataclasses import dataclass

import numpy as np

from audit.audited_images import AuditedData, TestImages


@dataclass(frozen=True)
class GoodImages:
    """Some images of a set.

    Attributes:
        images: the set.
        chosen: (M,) which of them, ascending.
    """

    images: AuditedData | TestImages
    chosen: np.ndarray

    @property
    def name(self) -> str:
        """What the images are, for progress bars and file names."""
        return self.images.name

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> np.ndarray:
        """Return one image, (112, 112, 3) uint8 BGR.

        Raises:
            ValueError: it can no longer be read.
        """
        return self.images.read(int(self.chosen[index]))

    def fingerprint(self) -> str:
        """Return a text that changes where the images do."""
        return f"{self.images.fingerprint()} {hashlib.sha256(self.chosen.astype('<i8').tobytes()).hexdigest()}"
