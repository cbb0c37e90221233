"""Draw ``augmentations.png``, beside this file: a drawn face of nobody under each augmentation, several times.

python -m docs.draw_augmentations
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adaface.augmentation.more import MORE_AUGMENTATIONS
from adaface.augmentation.paper import Augmenter
from adaface.demo.dataset import Picture, draw_picture
from adaface.reporting.style import DPI, save_figure

PICTURE = Path(__file__).with_name("augmentations.png")
FACE = Picture(seed=42, person=3, number=0, conditions="frontal")
_TIMES = 3
_SEED = 1


def augmentations() -> dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]:
    """Return every augmentation alone, always applied, by the name in its option."""
    return {
        "crop": Augmenter(1.0, 0.0, 0.0, 0.0),
        "low_res": Augmenter(0.0, 1.0, 0.0, 0.0),
        "photometric": Augmenter(0.0, 0.0, 1.0, 0.0),
        **{name: Augmenter(0.0, 0.0, 0.0, 0.0, {name: 1.0}) for name in MORE_AUGMENTATIONS},
    }


def draw(path: Path) -> None:
    """Draw a column for each augmentation, below its name.

    Args:
        path: PNG to write.
    """
    face = draw_picture(FACE)
    columns = {"as it is": lambda image, rng: image, **augmentations()}
    figure = Figure(figsize=(1.05 * len(columns), 1.1 * _TIMES + 0.3), dpi=DPI, layout="constrained")
    grid = figure.subplots(_TIMES, len(columns), squeeze=False)
    for (name, change), column in zip(columns.items(), grid.T, strict=True):
        column[0].set_title(name, fontsize=9)
        for number, axes in enumerate(column):
            generator = np.random.Generator(np.random.Philox(key=np.array([_SEED, number], np.uint64)))
            axes.imshow(change(face, generator)[..., ::-1], interpolation="nearest")  # matplotlib takes RGB
            axes.set_axis_off()
    save_figure(figure, path)


if __name__ == "__main__":
    draw(PICTURE)
