"""Files as people have them: every row must be read, with the right values."""

import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from adaface.alignment.landmark_file import read_landmarks
from adaface.alignment.photograph import read_photograph
from adaface.checkpoints.files import load_checkpoint
from adaface.config.parsing import read_recipe
from adaface.conversion.pack import read_pairs
from adaface.data.images import decode_image
from adaface.data.pair_sets import open_pair_set
from adaface.data.sources.folder import FolderSource
from adaface.data.sources.records import RecordSource
from adaface.data.sources.selection import SUBSET_LIST, read_subset_list
from adaface.evaluation.ijb_metadata import metadata_files, read_metadata
from adaface.evaluation.matlab_file import read_texts
from adaface.records.reader import ImageHeader, RecordWriter, pack
from adaface.system.numpy_file import read_array

RED = np.zeros((112, 112, 3), np.uint8)
RED[...] = (20, 30, 200)  # BGR
LIFE: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {}


def rows(check: Callable[..., None], **variants: Any) -> None:
    """Add rows of the table: a name, and what is given to the check."""
    for name, given in variants.items():
        LIFE[name] = (check, given if isinstance(given, tuple) else (given,))


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """Return the red picture in a format."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(RED[..., ::-1]))
    (picture.quantize() if mode == "P" else picture.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


# --- lists of pairs -------------------------------------------------------------------------------------------

LFW = "1\t2\nAda\t1\t2\nZoë\t1\t2\nAda\t1\tZoë\t2\nAda\t2\tZoë\t1\n"
LFW_SAME = [("Ada_0001", "Ada_0002", True), ("Zoë_0001", "Zoë_0002", True), ("Ada_0001", "Zoë_0002", False)]
LFW_SAME += [("Ada_0002", "Zoë_0001", False)]
TABLE = "path1,path2,same\n" + "".join(f"{a[:3]}/{a}.jpg,{b[:3]}/{b}.jpg,{int(same)}\n" for a, b, same in LFW_SAME)


def check_pairs(folder: Path, content: bytes, suffix: str = ".jpg") -> None:
    for name in ("Ada", "Zoë"):
        (folder / name).mkdir()
        for number in (1, 2):
            (folder / name / f"{name}_{number:04d}{suffix}").write_bytes(b"")
    (folder / "pairs.txt").write_bytes(content)
    got = read_pairs(folder / "pairs.txt", folder)
    assert [(a.stem, b.stem, same) for a, b, same in got] == LFW_SAME


rows(
    check_pairs,
    lfw_pairs_with_folds=LFW.encode(),
    lfw_pairs_for_development=LFW.replace("1\t2\n", "2\n", 1).encode(),
    lfw_pairs_with_blanks=LFW.replace("\t", "  ").encode(),
    lfw_pairs_with_odd_blanks=LFW.replace("Ada\t1\t2", "Ada\t\x1f1\t2\x1f").encode(),
    lfw_pairs_with_crlf=LFW.replace("\n", "\r\n").encode(),
    lfw_pairs_without_a_last_line_end=LFW.strip().encode(),
    lfw_pairs_in_latin_1=LFW.encode("latin-1"),
    lfw_pairs_of_pictures_in_upper_case=(LFW.encode(), ".JPG"),
    pairs_of_a_spreadsheet_with_a_byte_order_mark=TABLE.encode("utf-8-sig"),
    pairs_with_cr=TABLE.replace("\n", "\r").encode(),
    pairs_without_a_header=TABLE.partition("\n")[2].encode(),
    pairs_in_utf_16=TABLE.encode("utf-16"),
    pairs_in_windows_1252_with_crlf=TABLE.replace("\n", "\r\n").encode("cp1252"),
    pairs_with_semicolons=TABLE.replace(",", ";").encode(),
    pairs_with_tabs=TABLE.replace(",", "\t").encode(),
    pairs_in_quotes=TABLE.replace(",", '","').replace("\n", '"\n"').join(('"', "")).removesuffix('"').encode(),
    pairs_with_decimals=TABLE.replace(",1\n", ",1.0\n").replace(",0\n", ",0.0\n").encode(),
    pairs_with_minus_one=TABLE.replace(",0\n", ",-1\n").encode(),
    pairs_with_words=TABLE.replace(",1\n", ", True\n").replace(",0\n", ", False\n").encode(),
)


def check_pairs_in_another_order(folder: Path, header: str, order: tuple[int, int, int]) -> None:
    lines = [line.split(",") for line in TABLE.splitlines()[1:]]
    text = "\n".join([header, *(",".join(line[place] for place in order) for line in lines)])
    check_pairs(folder, text.encode())


rows(check_pairs_in_another_order, pairs_with_the_answer_first=("issame,path1,path2", (2, 0, 1)))


# --- other lists ----------------------------------------------------------------------------------------------


def check_subset(folder: Path, content: bytes) -> None:
    (folder / SUBSET_LIST).write_bytes(content)
    assert read_subset_list(folder, ".").tolist() == [5, 0, 12]


rows(
    check_subset,
    subset_list_in_one_line=b"5,0,12",
    subset_list_in_lines_with_crlf=b"5\r\n0\r\n12\r\n",
    subset_list_with_a_byte_order_mark=b"\xef\xbb\xbf5, 0, 12,\n",
)


def check_landmarks(folder: Path, content: bytes) -> None:
    (folder / "landmarks.txt").write_bytes(content)
    found = read_landmarks(folder / "landmarks.txt")
    assert {name: faces[0].landmarks.ravel().tolist() for name, faces in found.items()} == {
        "a.jpg": [float(n) for n in range(10)],
        "b.jpg": [n + 0.5 for n in range(10)],
    }


POINTS = f"a.jpg {' '.join(map(str, range(10)))} 0.9\nb.jpg {' '.join(f'{n}.5' for n in range(10))} 0.8\n"
rows(
    check_landmarks,
    landmarks_with_crlf=POINTS.replace("\n", "\r\n").encode(),
    landmarks_with_tabs_and_no_scores=POINTS.replace(" 0.9", "").replace(" 0.8", "").replace(" ", "\t").encode(),
    landmarks_with_blanks_at_the_ends=POINTS.replace("\n", "  \n\n").encode(),
    landmarks_with_a_byte_order_mark=POINTS.encode("utf-8-sig"),
)


def check_ijb(folder: Path, change: Callable[[str], bytes]) -> None:
    points = " ".join(map(str, range(10)))
    tables = {
        "landmarks": "".join(f"{n}.jpg {points} 0.9\n" for n in range(1, 5)),
        "templates": "1.jpg 1 1\n2.jpg 2 2\n3.jpg 3 3\n4.jpg 4 4\n",
        "pairs": "1 3 1\n2 4 1\n1 4 0\n",
        "gallery S1": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,7,a\n",
        "gallery S2": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n2,8,b\n",
        "probes": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n3,7,c\n4,8,d\n",
    }
    (folder / "IJBB" / "meta").mkdir(parents=True)
    (folder / "IJBB" / "loose_crop").mkdir()
    for name, path in metadata_files(folder, "IJBB").items():
        path.write_bytes(change(tables[name]))
    got = read_metadata(folder, "IJBB")
    assert got.pairs.tolist() == [[0, 1, 0], [2, 3, 3]]
    assert got.issame.tolist() == [True, True, False]
    assert got.probes.subject_ids.tolist() == [7, 8]


rows(
    check_ijb,
    ijb_as_published=str.encode,
    ijb_with_crlf=lambda text: text.replace("\n", "\r\n").encode(),
    ijb_without_last_line_ends=lambda text: text.rstrip("\n").encode(),
    ijb_with_a_byte_order_mark=lambda text: text.encode("utf-8-sig"),
)


# --- recipes --------------------------------------------------------------------------------------------------

RECIPE = "---\n# a recipe\t(with a tab)\nhead: adaface\nlr: 5e-4\nlr_milestones: [12, 20]\nprefix: 'Zoë'\n"


def check_recipe(folder: Path, content: bytes) -> None:
    (folder / "recipe.yaml").write_bytes(content)
    assert read_recipe(folder / "recipe.yaml") == {
        "head": "adaface", "lr": 5e-4, "lr_milestones": (12, 20), "prefix": "Zoë",
    }  # fmt: skip


rows(
    check_recipe,
    recipe=RECIPE.encode(),
    recipe_with_crlf=RECIPE.replace("\n", "\r\n").encode(),
    recipe_with_a_byte_order_mark=RECIPE.encode("utf-8-sig"),
    recipe_of_powershell_in_utf_16=RECIPE.replace("\n", "\r\n").encode("utf-16"),
    recipe_without_a_last_line_end=RECIPE.rstrip("\n").encode(),
    recipe_with_tabs_before_comments=RECIPE.replace("5e-4", "5e-4\t# as in the paper").encode(),
    recipe_with_a_list_over_lines=RECIPE.replace("[12, 20]", "\n  - 12\n  - 20").encode(),
)


# --- .rec and .idx --------------------------------------------------------------------------------------------

HEADER = {0: pack(ImageHeader(np.float32([5, 7])), b"")}
IDENTITIES = {n: pack(ImageHeader(np.float32([2 * n - 9, 2 * n - 7]), n), b"") for n in (5, 6)}


def check_records(
    folder: Path,
    labels: list[Any] = [0.0, 0.0, 1.0, 1.0],  # noqa: B006 - never changed
    kind: str = "JPEG",
    layout: str = "insightface",
    idx: Callable[[list[str]], str] | None = None,
    first: int = 1,
) -> None:
    images = [saved(kind) + bytes([n]) for n in range(4)]
    whole = layout == "insightface"
    with RecordWriter(folder / "train.rec") as writer:
        for key, record in (HEADER if whole else {}).items():
            writer.write(key, record)
        for key, (label, content) in enumerate(zip(labels, images, strict=True), first):
            writer.write(key, pack(ImageHeader(label, key), content))
        for key, record in (IDENTITIES if whole else {}).items():
            writer.write(key, record)
    path = folder / "train.idx"
    if idx is not None:
        path.write_bytes(idx(path.read_text().splitlines()).encode())
    source = RecordSource(folder / "train.rec")
    assert [(source.label(n), source.read(n)) for n in range(len(source))] == list(
        zip([0, 0, 1, 1], images, strict=True)
    )
    assert abs(decode_image(source.read(0), "record").astype(int) - RED).max() < 4


def in_lines(lines: list[str], end: str = "\n") -> str:
    return end.join(lines) + end


rows(
    check_records,
    rec_of_insightface=(),
    rec_of_im2rec_without_header_record=([0.0, 0.0, 1.0, 1.0], "JPEG", "im2rec", None, 0),
    rec_of_png=([0.0, 0.0, 1.0, 1.0], "PNG"),
    rec_of_several_labels=([np.float32([c, 9, 0.5]) for c in (0, 0, 1, 1)],),
    rec_of_one_label_in_a_list=([np.float32([c]) for c in (0, 0, 1, 1)], "JPEG", "im2rec", None, 0),
    idx_with_crlf=([0.0, 0.0, 1.0, 1.0], "JPEG", "insightface", lambda lines: in_lines(lines, "\r\n")),
    idx_with_a_byte_order_mark=(
        [0.0, 0.0, 1.0, 1.0], "JPEG", "insightface", lambda lines: "\ufeff" + in_lines(lines),
    ),
    idx_with_blanks=(
        [0.0, 0.0, 1.0, 1.0], "JPEG", "insightface", lambda lines: in_lines(lines).replace("\t", " "),
    ),
    idx_in_another_order=([0.0, 0.0, 1.0, 1.0], "JPEG", "insightface", lambda lines: in_lines(lines[::-1])),
    idx_without_a_last_line_end=([0.0, 0.0, 1.0, 1.0], "JPEG", "insightface", "\n".join),
    idx_with_empty_lines_at_the_end=(
        [0.0, 0.0, 1.0, 1.0], "JPEG", "insightface", lambda lines: in_lines(lines) + "\n\n",
    ),
    idx_with_blanks_at_the_ends=(
        [0.0, 0.0, 1.0, 1.0], "JPEG", "insightface", lambda lines: in_lines(lines, " \n"),
    ),
)  # fmt: skip


def check_records_without_idx(folder: Path) -> None:
    check_records(folder)
    (folder / "train.idx").unlink()
    assert RecordSource(folder / "train.rec").labels.tolist() == [0, 0, 1, 1]


def check_property(folder: Path, content: bytes) -> None:
    (folder / "property").write_bytes(content)
    check_records(folder, layout="im2rec", first=0)


rows(check_records_without_idx, rec_without_idx_is_said=())
rows(
    check_property,
    property_with_crlf=b"2,112,112\r\n",
    property_with_blanks=b" 2, 112, 112",
    property_with_a_byte_order_mark=b"\xef\xbb\xbf2,112,112\n",
)


# --- verification sets ----------------------------------------------------------------------------------------


def check_bin(folder: Path, images: Any, issame: Any, protocol: int) -> None:
    (folder / "lfw.bin").write_bytes(pickle.dumps((images, issame), protocol=protocol))
    pairs = open_pair_set(folder, "lfw")
    assert pairs.issame.tolist() == [True, False]
    assert all(abs(image.astype(int) - RED).max() < 4 for image in pairs.images)


BYTES = [saved("JPEG", quality=95)] * 4
for number in range(6):
    rows(check_bin, **{f"bin_of_bytes_protocol_{number}": (BYTES, [True, False], number)})
rows(
    check_bin,
    bin_of_arrays=([np.frombuffer(one, np.uint8) for one in BYTES], np.array([True, False]), 4),
    bin_of_columns=([np.frombuffer(one, np.uint8)[:, None] for one in BYTES], [True, False], 2),
    bin_of_pixels=([np.ascontiguousarray(RED[..., ::-1])] * 4, [True, False], 4),
    bin_of_one_array_of_pixels=(np.stack([RED[..., ::-1]] * 4), [1, 0], 4),
    bin_of_bytearrays=([bytearray(one) for one in BYTES], (1, 0), 5),
    bin_of_numbers_as_answers=(BYTES, np.array([1, 0]), 3),
    bin_of_numpy_booleans=(BYTES, [np.bool_(True), np.bool_(False)], 3),
    bin_of_png=([saved("PNG")] * 4, [1.0, 0.0], 2),
)


def check_memfile(folder: Path, images: np.ndarray, answers: np.ndarray) -> None:
    np.save(folder / "lfw_images.npy", images)
    np.save(folder / "lfw_list.npy", answers)
    pairs = open_pair_set(folder, "lfw")
    assert pairs.issame.tolist() == [True, False]
    assert all(np.array_equal(image, RED) for image in pairs.images)


FOUR = np.stack([RED] * 4)
rows(
    check_memfile,
    memfile_in_fortran_order=(np.asfortranarray(FOUR), np.array([True, False])),
    memfile_with_numbers_as_answers=(FOUR, np.array([1, 0])),
    memfile_with_big_endian_answers=(FOUR, np.array([1, 0], ">i4")),
    memfile_with_fractions_as_answers=(FOUR, np.array([1, 0], np.float16)),
)


def check_array(folder: Path, array: np.ndarray, version: tuple[int, int] | None = None) -> None:
    with (folder / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    got = read_array(folder / "a.npy")
    assert (got.shape, got.tolist()) == (array.shape, array.tolist())


rows(
    check_array,
    npy_in_fortran_order=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    npy_big_endian=np.arange(6, dtype=">f4").reshape(2, 3),
    npy_of_half_precision=np.arange(6, dtype=np.float16),
    npy_version_2=(np.arange(6), (2, 0)),
    npy_version_3=(np.arange(6), (3, 0)),
    npy_without_rows=np.zeros((0, 512), np.float32),
    npy_of_one_number=np.array(3.5),
)


def check_mat(folder: Path, cells: np.ndarray, options: dict[str, Any]) -> None:
    savemat(folder / "probe.mat", {"probe_set": cells, "other": np.eye(3)}, **options)
    assert read_texts(folder / "probe.mat", "probe_set") == ["1_a.jpg", "2_b.jpg"]


CELLS = np.array([["1_a.jpg"], ["2_b.jpg"]], dtype=object)
rows(
    check_mat,
    mat_in_a_column=(CELLS, {}),
    mat_in_a_row_compressed=(CELLS.T, {"do_compression": True}),
)


# --- pictures -------------------------------------------------------------------------------------------------


def check_photograph(folder: Path, content: bytes, color: tuple[int, int, int] = (20, 30, 200)) -> None:
    (folder / "photograph").write_bytes(content)
    got = read_photograph(folder / "photograph")
    assert got.shape == (112, 112, 3)
    assert abs(got.astype(int) - color).max() < 12


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("JPEG", exif=exif, quality=95)


def deep() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((112, 112), 100 * 257, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def several_pictures(kind: str) -> bytes:
    other = Image.new("RGB", (112, 112), (0, 255, 0))
    return saved(kind, save_all=True, append_images=[other], **({"lossless": True} if kind == "WEBP" else {}))


GRAY = 20 * 0.114 + 30 * 0.587 + 200 * 0.299
rows(
    check_photograph,
    photograph_gray=(saved("JPEG", "L"), (GRAY,) * 3),
    photograph_with_transparency=saved("PNG", "RGBA"),
    photograph_with_a_palette=saved("PNG", "P"),
    photograph_in_cmyk=saved("JPEG", "CMYK", quality=95),
    photograph_of_16_bits=(deep(), (100,) * 3),
    photograph_gif=saved("GIF", "P"),
    photograph_rotated_by_exif=rotated(),
    photograph_progressive=saved("JPEG", progressive=True, quality=95),
    photograph_of_a_phone_with_a_second_picture=several_pictures("MPO"),
    photograph_animated=several_pictures("WEBP"),
    photograph_followed_by_a_video=saved("JPEG", quality=95) + b"\0\0\0\x18ftypmp42" + bytes(500),
    photograph_png_followed_by_text=saved("PNG") + b"\n\n",
    photograph_tiff_of_a_mac=saved("TIFF", big_tiff=False, compression="tiff_lzw"),
    photograph_tiff_big=saved("TIFF", big_tiff=True),
    photograph_avif=saved("AVIF"),
    photograph_jpeg_2000=saved("JPEG2000"),
)


def check_folder(folder: Path, extension: str, content: bytes) -> None:
    for person in ("Ada", "Zoë"):
        (folder / "imgs" / person).mkdir(parents=True)
        (folder / "imgs" / person / f"1{extension}").write_bytes(content)
    source = FolderSource(folder / "imgs")
    assert (source.class_names, len(source), source.listing.skipped) == (["Ada", "Zoë"], 2, [])
    assert abs(decode_image(source.read(1), "image").astype(int) - RED).max() < 12


JPEG = saved("JPEG", quality=95)
rows(
    check_folder,
    image_JPG=(".JPG", JPEG),
    image_jpeg=(".jpeg", JPEG),
    image_jfif=(".jfif", JPEG),
    image_jpe=(".jpe", JPEG),
    image_of_twitter=(".jpg_large", JPEG),
    image_without_extension=("", JPEG),
    image_with_a_wrong_extension=(".png", JPEG),
    image_with_two_dots=("..jpg", JPEG),
    image_webp=(".webp", saved("WEBP", quality=95)),
    image_progressive=(".jpg", saved("JPEG", progressive=True, quality=95)),
    image_with_a_palette=(".png", saved("PNG", "P")),
    image_with_transparency=(".png", saved("PNG", "RGBA")),
)


# --- weights --------------------------------------------------------------------------------------------------

KEYS = [f"layer{n}.weight" for n in range(10)]
WEIGHTS = {key: torch.full((2, 3), n + 0.5) for n, key in enumerate(KEYS)}


def check_weights(folder: Path, content: Any, suffix: str = ".ckpt", options: dict[str, Any] = {}) -> None:  # noqa: B006
    torch.save(content, folder / f"weights{suffix}", **options)
    state = load_checkpoint(folder / f"weights{suffix}")["state_dict"]
    got = {key[key.index("layer") :]: value for key, value in state.items()}
    assert list(got) == KEYS
    assert all(torch.equal(got[key].float(), WEIGHTS[key]) for key in KEYS)


def under(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in WEIGHTS.items()}


rows(
    check_weights,
    weights_official=({"state_dict": under("model."), "epoch": 3},),
    weights_bare=(WEIGHTS, ".pth"),
    weights_of_data_parallel=({"state_dict": under("module.")}, ".pth.tar"),
    weights_of_a_compiled_network=(under("_orig_mod."), ".pt"),
    weights_before_torch_1_6=({"state_dict": under("model.")}, ".ckpt", {"_use_new_zipfile_serialization": False}),
    weights_bare_before_torch_1_6=(WEIGHTS, ".pth", {"_use_new_zipfile_serialization": False}),
    weights_of_half_precision=({key: value.half() for key, value in WEIGHTS.items()}, ".pth"),
    weights_as_parameters=({key: torch.nn.Parameter(value) for key, value in WEIGHTS.items()}, ".pth"),
    weights_beside_numpy_numbers=({"state_dict": under("model."), "best": np.float64(99.5)},),
    weights_beside_numpy_booleans=({"state_dict": under("model."), "done": np.bool_(True), "n": np.int64(3)}, ".pth"),
)


@pytest.mark.parametrize("name", LIFE)
def test_it_is_read(name, tmp_path):
    check, given = LIFE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if "is_said" in name else "error")
        check(tmp_path, *given)


def test_they_are_many():
    assert len(LIFE) > 90
