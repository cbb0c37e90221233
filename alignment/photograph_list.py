"""Photographs as a list of aligned faces: each is read, its largest face found and warped, when it is asked for."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignment.detector import MTCNN, choose_faces
from alignment.photograph import read_photograph
from alignment.warp import warp_face
from evaluation.image_list import ImageFiles

_HOW = "the largest face that MTCNN finds, version 1"  # another number where crops become different


@dataclass(frozen=True)
class Photographs:
    """The largest face of each photograph; an ``evaluation.image_list.ImageList``.

    Attributes:
        name: what they are.
        paths: (N,) files.
    """

    name: str
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """Return one face, (112, 112, 3) uint8 BGR.

        Raises:
            ValueError: no photograph, or no face in it.
        """
        image = read_photograph(self.paths[index])
        faces = choose_faces(_detector().detect(image), "largest", image.shape)
        if not faces:
            raise ValueError(f"no face was found in {self.paths[index]}")
        return warp_face(image, faces[0].landmarks)

    def fingerprint(self) -> str:
        """Return a digest of names, sizes and times of change."""
        return ImageFiles(self.name, self.paths, prepared_as=_HOW).fingerprint()


@functools.cache
def _detector() -> MTCNN:
    """One for each process: it takes a moment to load, and serves all threads."""
    return MTCNN()
