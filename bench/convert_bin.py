"""A verification set of 2,000 images to its memory-mapped form, against rows of a compressed float array.

    python -m bench.convert_bin

The baseline is the official converter: image by image, decoded by OpenCV, as a tensor, normalised, assigned to a row
of a bcolz array of float32 on the disk.
"""

import contextlib
import io
import pickle
import shutil
from functools import partial
from pathlib import Path

import bcolz
import cv2
import numpy as np
import torch

from adaface.conversion.unpack_bin import convert_set
from adaface.data.pair_pickle import write_bin
from adaface.data.pair_sets import open_pair_set
from bench._drawn_faces import encoded_faces
from bench._fresh_folders import scratch
from bench.timing import Side, compare, options, report

_SHAPE = (3, 112, 112)
_ROUNDING = 1e-4  # of a grey level, from the float32 arithmetic of the normalisation


def float_rows(path: Path) -> Path:
    """Convert as the official code does; return the folder of the array."""
    with path.open("rb") as file:
        images, issame = pickle.load(file, encoding="bytes")
    folder = path.with_name("rows")
    data = bcolz.fill([len(images), *_SHAPE], dtype=np.float32, rootdir=str(folder), mode="w")
    for i, encoded in enumerate(images):
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)
        data[i, ...] = tensor.sub_(0.5).div_(0.5).numpy()
    data.flush()
    np.save(f"{folder}_list", np.array(issame))
    return folder


def memory_mapped(path: Path, form: str = "memfile") -> Path:
    """Convert with this package; return the `.bin`, beside which the set lies."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        convert_set(path, form)
    return path


def remove_sets(path: Path) -> None:
    """Delete all that is beside the `.bin`."""
    for entry in path.parent.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry != path:
            entry.unlink()


def same_pixels(saved: list[np.ndarray], path: Path) -> dict[str, float]:
    """Raise unless both sets hold the same pixels."""
    images = open_pair_set(path.parent, path.stem).images
    if len(images) != len(saved):
        raise AssertionError(f"{len(images)} images, expected {len(saved)}")
    difference = 0.0
    for planes, image in zip(saved, images, strict=True):
        grey_levels = (planes.transpose(1, 2, 0) + 1) * 127.5
        difference = max(difference, float(np.abs(grey_levels - image).max()))
    if difference > _ROUNDING:
        raise AssertionError(f"pixels differ by {difference} grey levels, expected at most {_ROUNDING}")
    return {"largest difference, grey levels": difference}


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    count = 300 if chosen.quick else 2_000
    with scratch() as root:
        path = root / "lfw.bin"
        write_bin(path, encoded_faces(count), [pair % 2 == 0 for pair in range(count // 2)])
        result = compare(
            f".bin to a verification set, {count:,} images",
            Side("decode, normalise, a bcolz row each", lambda: float_rows(path), partial(remove_sets, path)),
            Side("unpack_bin.convert_set", lambda: memory_mapped(path), partial(remove_sets, path)),
            count=count,
            unit="images",
            target=15,
            check=lambda rows, _: {"images": count},
            repeats=chosen.repeats,
        )
    report(result, __file__, chosen.output)


if __name__ == "__main__":
    main()
