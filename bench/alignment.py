"""Photographs to aligned faces, from JPEG to the 112x112 crop: MTCNN in ONNX Runtime, against OpenCV's networks.

    python -m bench.alignment

Both sides are our cascade with the same weights; only what runs the three networks differs. Two rows: one thread, and
as many threads as cores (OpenCV's networks are not to be shared, so each of its threads has its own).
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from skimage import data

from adaface.alignment.detector import MTCNN, FaceDetector
from adaface.alignment.networks import Network
from adaface.alignment.photograph import decode_photograph
from adaface.alignment.warp import warp_face
from adaface.system.threads import usable_cores
from bench.timing import Side, compare, options, report

_LARGEST_DIFFERENCE = 2  # of 255; the networks round differently


def open_in_opencv(path: Path) -> Network:
    """Open a network in OpenCV."""
    network = cv2.dnn.readNetFromONNX(str(path))
    names = network.getUnconnectedOutLayersNames()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        network.setInput(images)
        return dict(zip(names, network.forward(names), strict=True))

    return run


def photographs(count: int, side_px: int) -> list[bytes]:
    """Return JPEG files of scikit-image's photograph of one person, shifted so that no two are the same."""
    image = cv2.resize(np.ascontiguousarray(data.astronaut()[..., ::-1]), (side_px, side_px))
    return [cv2.imencode(".jpg", np.roll(image, -shift, axis=1))[1].tobytes() for shift in range(count)]


def aligned(detector: FaceDetector, encoded: bytes) -> np.ndarray:
    """Return the surest face of a photograph, (112, 112, 3)."""
    image = decode_photograph(encoded, "a photograph")
    return warp_face(image, detector.detect(image)[0].landmarks)


def same_crops(baseline: list[np.ndarray], candidate: list[np.ndarray]) -> dict[str, Any]:
    """Raise unless the crops agree."""
    difference = int(np.abs(np.stack(baseline).astype(int) - np.stack(candidate)).max())
    if difference > _LARGEST_DIFFERENCE:
        raise AssertionError(f"the crops differ by {difference} of 255")
    return {"largest difference": f"{difference} of 255"}


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    count, side_px = (2, 256) if chosen.quick else (32, 512)
    files = photographs(count, side_px)
    cv2.setNumThreads(1)
    shared, own = MTCNN(), threading.local()

    def in_opencv(encoded: bytes) -> np.ndarray:
        if not hasattr(own, "detector"):
            own.detector = MTCNN(open_with=open_in_opencv)
        return aligned(own.detector, encoded)

    for threads in sorted({1, usable_cores()}):
        with ThreadPoolExecutor(threads) as pool:

            def run(work: Callable[[bytes], np.ndarray], pool: ThreadPoolExecutor = pool) -> list[np.ndarray]:
                return list(pool.map(work, files))

            result = compare(
                f"photographs of {side_px}x{side_px} to aligned faces, {threads} thread{'s' * (threads > 1)}",
                Side("MTCNN in OpenCV", lambda run=run: run(in_opencv)),
                Side("MTCNN in ONNX Runtime", lambda run=run: run(lambda encoded: aligned(shared, encoded))),
                count=count,
                unit="photographs",
                target=1,
                check=same_crops,
                repeats=chosen.repeats,
            )
        report(result, __file__, chosen.output)


if __name__ == "__main__":
    main()
