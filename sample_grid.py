"""A picture of what a network is trained on: the first samples of a run, augmented, in a grid."""

import math

import numpy as np

from face_datasets import TrainingDataset
from pairs import IMAGE_SHAPE
from sampler import RandomStreams

_GAP_PX = 2


def draw_sample_grid(dataset: TrainingDataset, seed: int, n: int = 64) -> np.ndarray:
    """Return the first training samples of a run, augmented, in a grid.

    Args:
        dataset: the training data.
        seed: of the run.
        n: number of samples, at most.

    Returns:
        (rows * 114, columns * 114, 3) uint8 BGR, to be written by ``cv2.imwrite``.
    """
    order = RandomStreams(seed).shuffled(len(dataset), 0)[:n].tolist()
    columns = math.ceil(math.sqrt(len(order)))
    cell = IMAGE_SHAPE[0] + _GAP_PX
    grid = np.full((math.ceil(len(order) / columns) * cell, columns * cell, 3), 255, np.uint8)
    for place, sample in enumerate(order):
        top, left = cell * (place // columns), cell * (place % columns)
        grid[top : top + IMAGE_SHAPE[0], left : left + IMAGE_SHAPE[1]] = dataset[0, sample][0].numpy()
    return grid
