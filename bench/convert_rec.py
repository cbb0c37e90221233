"""Training records to image files, 20,000 of them, against decoding and encoding every image again.

    python -m bench.convert_rec

The baseline is the official converter: record by record, decoded by OpenCV, saved by PIL as JPEG of quality 95. How
fast the file system makes such files at all is in the details, as "bare file creation".
"""

import contextlib
import io
import os
import struct
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from adaface.conversion.unpack_rec import convert_images
from adaface.records.reader import ImageHeader, RecordFile, RecordWriter, pack
from bench._drawn_faces import encoded_faces
from bench._fresh_folders import FreshFolders, scratch
from bench.timing import Side, compare, options, report

_IMAGES_PER_IDENTITY = 57  # 5.8 million images of 85 thousand people, as in MS1MV2
_HEAD = struct.Struct("<IIIfQQ")  # magic number, length; flag, label, id, id2


def write_records(rec: Path, count: int) -> None:
    """Write a training set in InsightFace's layout."""
    identities = -(-count // _IMAGES_PER_IDENTITY)
    with RecordWriter(rec) as writer:
        writer.write(0, pack(ImageHeader(np.array([count + 1, count + 1 + identities], np.float32)), b""))
        for key, image in enumerate(encoded_faces(count), 1):
            writer.write(key, pack(ImageHeader(float((key - 1) // _IMAGES_PER_IDENTITY), key), image))
        for key in range(count + 1, count + 1 + identities):
            writer.write(key, pack(ImageHeader(np.array([1, 2], np.float32), key), b""))


def decode_and_encode(rec: Path, folder: Path) -> Path:
    """Convert as the official code does; return the folder of the images."""
    lines = rec.with_suffix(".idx").read_text().splitlines()
    offsets = {int(key): int(offset) for key, offset in (line.split("\t") for line in lines)}
    with rec.open("rb") as file:
        file.seek(offsets[0])
        head = file.read(_HEAD.size + 8)
        count = int(np.frombuffer(head, "<f4", 1, _HEAD.size)[0])
        for key in range(1, count):
            file.seek(offsets[key])
            _, length, _, label, _, _ = _HEAD.unpack(file.read(_HEAD.size))
            encoded = file.read(length + 8 - _HEAD.size)
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
            target = folder / str(int(label))
            if not target.exists():
                target.mkdir()
            Image.fromarray(image[:, :, ::-1]).save(target / f"{key}.jpg", quality=95)
    return folder


def copy_bytes(rec: Path, folder: Path) -> Path:
    """Convert with this package; return the folder of the images."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        convert_images([rec], folder)
    return folder


def same_files(rec: Path, baseline: Path, candidate: Path) -> dict[str, object]:
    """Raise unless both made the files of all records, the candidate with the bytes of the records."""
    records = RecordFile(rec)
    positions = np.arange(*records.image_range())
    for position in positions:
        name = f"{int(records.labels[position])}/{records.keys[position]}.jpg"
        data = records.read_image(position)
        if (candidate / name).read_bytes() != data:
            raise AssertionError(f"{candidate / name} has other bytes than its record")
    for folder in (candidate, baseline):
        found = sum(1 for _ in folder.glob("*/*.jpg"))
        if found != len(positions):
            raise AssertionError(f"{folder} holds {found} images, {len(positions)} records do")
    return {"files of both": len(positions), "bytes equal to the records": True}


def bare_creation(rec: Path, folder: Path) -> float:
    """Open, write and close the same files and do nothing else; return files per second."""
    records = RecordFile(rec)
    positions = np.arange(*records.image_range())
    files = [(int(records.labels[p]), int(records.keys[p]), records.read_image(p)) for p in positions]
    handle = os.open(folder, os.O_RDONLY)
    started = time.perf_counter()
    for label in sorted({label for label, _, _ in files}):
        os.mkdir(str(label), dir_fd=handle)
    for label, key, data in files:
        file = os.open(f"{label}/{key}.jpg", os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=handle)
        os.write(file, data)
        os.close(file)
    seconds = time.perf_counter() - started
    os.close(handle)
    return len(files) / seconds


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    count = 300 if chosen.quick else 20_000
    with scratch() as root:
        rec = root / "train.rec"
        write_records(rec, count)
        folders = FreshFolders(root)
        result = compare(
            f".rec to image files, {count:,} images",
            Side("decode, encode at quality 95", lambda: decode_and_encode(rec, folders.current), folders.renew),
            Side("unpack_rec.convert_images", lambda: copy_bytes(rec, folders.current), folders.renew),
            count=count,
            unit="images",
            target=10,
            check=partial(same_files, rec),
            repeats=chosen.repeats,
        )
        folders.renew()
        result["details"]["bare file creation, images/s"] = round(bare_creation(rec, folders.current))
    report(result, __file__, chosen.output)


if __name__ == "__main__":
    main()
