"""Training data, verification sets, galleries and images: targets of `bench/fuzz.py`."""

import io
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from adaface.alignment.photograph import read_photograph
from adaface.data.image_header import image_format, read_header
from adaface.data.image_list import read_color_image
from adaface.data.images import decode_image
from adaface.data.pair_sets import open_pair_set
from adaface.data.pair_writers import write_bcolz
from adaface.data.sources.records import RecordSource
from adaface.inference.gallery import NamedEmbeddings, read_embeddings, write_embeddings
from adaface.records.format import MAGIC_BYTES
from adaface.records.reader import ImageHeader, RecordWriter, pack
from bench._fuzz_mutations import TEXT, any_bytes, change_pickle, change_png, change_zip_field, inside_zip, set_token
from bench._fuzz_variants import Variant, encoded, face, in_first, require, said

# --- .rec and .idx --------------------------------------------------------------------------------------------


def write_records(folder: Path) -> Path:

    rec = folder / "train.rec"
    payloads = [bytes([65 + n]) * (40 + 9 * n) for n in range(6)]
    payloads[3] = payloads[3][:32] + MAGIC_BYTES + payloads[3][36:]  # the writer splits this record
    with RecordWriter(rec) as writer:
        writer.write(0, pack(ImageHeader(np.array([7, 10], np.float32)), b""))
        for key, payload in enumerate(payloads, 1):
            label = float((key - 1) // 2)
            labels = np.array([label, 5, 6], np.float32) if key == 6 else label
            writer.write(key, pack(ImageHeader(labels, key), payload))
        for key, (first, past) in enumerate(((1, 3), (3, 5), (5, 7)), 7):
            writer.write(key, pack(ImageHeader(np.array([first, past], np.float32), key), b""))
    return rec


def record_variants(folder: Path, damaged: str) -> list[Variant]:
    """`.rec`, `.idx`: the images that come out are those of the file, each with its label, unless a warning says more.

    A record has no checksum: what is damaged inside of a label or an image cannot be told. A record whose bytes are
    whole must come out with its own label, or the file must be refused, or a warning must be given (an index that was
    rebuilt, records that are left out).
    """
    rec = write_records(folder)
    whole, idx = rec.read_bytes(), rec.with_suffix(".idx").read_bytes()
    offsets = [int(line.split(b"\t")[1]) for line in idx.splitlines()] + [len(whole)]

    def samples() -> list[tuple[int, bytes]]:
        source = RecordSource(rec)
        return [(source.label(index), source.read(index)) for index in range(len(source))]

    right = samples()

    def untouched(data: bytes) -> list[tuple[int, bytes]]:
        """Return the images whose records, with the header record and where they start, are as they were."""
        spans = [(offsets[key], offsets[key + 1]) for key in range(1, 7)]
        same_length = len(data) == len(whole)
        return [right[n] for n, (a, b) in enumerate(spans) if same_length and data[a:b] == whole[a:b]]

    def read(data: bytes) -> None:
        rec.write_bytes(data if damaged == "rec" else whole)
        rec.with_suffix(".idx").write_bytes(data if damaged == "idx" else idx)
        with said() as warned:
            got = samples()
        expected = right if damaged == "idx" else untouched(data)
        missing = [one for one in expected if one not in got]
        require(not missing or warned, f"{len(missing)} whole records are missing in silence")
        require(damaged == "rec" or warned or sorted(got) == sorted(right), "other images than those of the .rec")
        payloads = {payload: label for label, payload in expected}
        require(all(payloads.get(payload, label) == label for label, payload in got), "a whole record's label changed")

    return [Variant(whole if damaged == "rec" else idx, read, TEXT if damaged == "idx" else ())]


# --- .bin -----------------------------------------------------------------------------------------------------


def bin_variants(folder: Path) -> list[Variant]:
    """`.bin`: a pickle has no checksum and can say the same in many ways, so that only the form can be told.

    2P images of 112x112x3 bytes and P booleans come out, and nothing else.
    """
    faces = [encoded(".jpg", face(60 * n), cv2.IMWRITE_JPEG_QUALITY, 20) for n in range(2)]
    path = folder / "lfw.bin"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        pairs = open_pair_set(folder, "lfw")
        require(pairs.issame.dtype == bool and len(pairs.images) == 2 * len(pairs.issame), "counts do not match")
        for image in pairs.images[:2]:
            require(image.shape == (112, 112, 3) and image.dtype == np.uint8, "an image of another form")

    arrays = [np.frombuffer(face, np.uint8) for face in faces]
    contents = [pickle.dumps((faces, [True]), protocol=protocol) for protocol in (0, 2, 4)]
    contents += [pickle.dumps((arrays, np.array([True])), protocol=protocol) for protocol in (2, 5)]
    return [Variant(content, read, (change_pickle, change_pickle, set_token)) for content in contents]


# --- .npy and .npz --------------------------------------------------------------------------------------------


def npy_variants(folder: Path) -> list[Variant]:
    """`.npy`: with the header as it was, pixels that were not damaged are as they were, and the counts match.

    A `.npy` has no checksum, so that damaged pixels and a header that is valid and of the same size cannot be told.
    """
    images = np.stack([face(60 * n) for n in range(2)])
    packed: dict[str, bytes] = {}
    for name, array in (("images", images), ("list", np.array([True]))):
        buffer = io.BytesIO()
        np.save(buffer, array)
        packed[name] = buffer.getvalue()
    header = len(packed["images"]) - images.nbytes

    def read(name: str) -> Callable[[bytes], None]:
        def read_one(data: bytes) -> None:
            for part, content in packed.items():
                (folder / f"lfw_{part}.npy").write_bytes(data if part == name else content)
            pairs = open_pair_set(folder, "lfw")
            got = np.stack([pairs.images[0], pairs.images[1]])
            require(got.shape == images.shape and got.dtype == np.uint8, "images of another form")
            require(pairs.issame.dtype == bool and len(pairs.images) == 2 * len(pairs.issame), "counts do not match")
            if data[:header] == packed[name][:header] and name == "images":
                stored = np.frombuffer(data, np.uint8, images.size, header).reshape(images.shape)
                require(np.array_equal(got, stored), "pixels that are not in the file")

        return read_one

    header_text = (in_first(160, set_token), in_first(160, any_bytes))
    return [
        Variant(packed["list"], read("list"), header_text, 2),
        Variant(packed["images"], read("images"), header_text),
    ]


def bcolz_variants(folder: Path) -> list[Variant]:
    """Official bcolz folders: what is read has pixels; nothing has a checksum, so that damaged chunks cannot be told.

    Where a description was damaged, the images are those of the chunks.
    """
    right = [face(60 * n) for n in range(2)]
    write_bcolz(folder, "lfw", right, [True])
    files = sorted(path for path in (folder / "lfw").rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}

    def read(damaged: Path) -> Callable[[bytes], None]:
        def read_one(data: bytes) -> None:
            for path, content in whole.items():
                path.write_bytes(data if path == damaged else content)
            pairs = open_pair_set(folder, "lfw")
            got = np.stack([pairs.images[0], pairs.images[1]])
            require(got.shape == (2, 112, 112, 3) and got.dtype == np.uint8, "images of another form")
            require(damaged.suffix == ".blp" or np.array_equal(got, right), "other images than those of the chunks")

        return read_one

    headers = (in_first(32, any_bytes), in_first(80, any_bytes))
    return [
        Variant(whole[path], read(path), headers if path.suffix == ".blp" else (set_token,), 3 if path.suffix else 1)
        for path in files
    ]


def npz_variants(folder: Path) -> list[Variant]:
    """`.npz`: each member has a checksum: all that comes out is as it was.

    Where the checksum was made to fit, only the form can be told.
    """
    path = folder / "faces.npz"
    unit = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0].astype(np.float32)[:3]
    faces = NamedEmbeddings(["a.jpg", "b.jpg", "c.jpg"], unit, np.float32([1, 2, 3]), "model", "ir_50")
    write_embeddings(path, faces)
    content = path.read_bytes()

    def read(consistent: bool) -> Callable[[bytes], None]:
        def read_one(data: bytes) -> None:
            path.write_bytes(data)
            got = read_embeddings(path)
            shape = (len(got.names), got.embeddings.shape[1])
            require(got.embeddings.shape == shape and got.norms.shape == shape[:1], "other shapes than names")
            require(
                np.isfinite(got.embeddings).all() and np.isfinite(got.norms).all(), "embeddings that are not finite"
            )
            same = got.names == faces.names and np.array_equal(got.embeddings, unit)
            same = same and (got.norms.tolist(), got.model, got.arch) == ([1, 2, 3], "model", "ir_50")
            require(consistent or same, "a damaged gallery is read")

        return read_one

    return [
        Variant(content, read(consistent=False), (change_zip_field,)),
        Variant(content, read(consistent=True), (inside_zip(in_first(128, set_token)), inside_zip(any_bytes)) * 4),
    ]


# --- images ---------------------------------------------------------------------------------------------------


def image_variants(folder: Path) -> list[Variant]:
    """Images: what is decoded has the announced size. A PNG with a damaged checksum is refused, or comes out as it was.

    The other formats have no checksum, so that other pixels cannot be told.
    """
    picture = face(30)
    rgb = Image.fromarray(np.ascontiguousarray(picture[..., ::-1]))

    def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
        buffer = io.BytesIO()
        rgb.convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    path = folder / "picture"

    def read(has_checksum: bool, is_face: bool = True) -> Callable[[bytes], None]:
        def read_one(data: bytes) -> None:
            path.write_bytes(data)
            turned = zlib.crc32(data) % 3
            image = _ways[turned](data)
            header = read_header(data, str(path))
            sides = {header.width, header.height}
            require(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, "another form")
            require(set(image.shape[:2]) == sides, "another size than announced")
            require(image_format(data[:64]), "an unknown format is read")
            require(not has_checksum or np.array_equal(image, picture), "a damaged PNG is read as another image")

        _ways = [
            lambda data: decode_image(data, str(path)) if is_face else read_color_image(path),
            lambda _: read_color_image(path),
            lambda _: read_photograph(path),
        ]
        return read_one

    lossy = read(has_checksum=False)
    other = read(has_checksum=False, is_face=False)
    return [
        Variant(saved("PNG"), read(has_checksum=True)),
        Variant(saved("PNG"), lossy, (change_png,) * 4),
        Variant(saved("PNG", "P"), other, (change_png,)),
        Variant(saved("JPEG", quality=30), lossy, (), 3),
        Variant(saved("JPEG", quality=30, progressive=True), lossy),
        Variant(saved("JPEG", "CMYK", quality=30), other),
        *(Variant(saved(kind), lossy) for kind in ("WEBP", "BMP", "PPM")),
        Variant(saved("TIFF", compression="tiff_lzw"), lossy),
        Variant(saved("TIFF", compression="jpeg"), lossy),
        Variant(saved("GIF"), other),
        Variant(saved("JPEG2000"), lossy),
        Variant(saved("AVIF", speed=10), lossy),
    ]
