"""The targets of `bench/fuzz.py`: a small valid file of each format, the reader of it, and what counts as wrong.

Each reader is called as the commands call it. A result is wrong if a part of the file that was not damaged comes out
different, where the format tells parts apart, and if anything at all comes out different, where the format has a
checksum. Each function says what that is.
"""

from collections.abc import Callable
from pathlib import Path

from bench._fuzz_data import bcolz_variants, bin_variants, image_variants, npy_variants, npz_variants, record_variants
from bench._fuzz_models import ckpt_variants, mat_variants, onnx_variants, safetensors_variants, sharded_variants
from bench._fuzz_text import csv_variants, json_variants, yaml_variants
from bench._fuzz_variants import Variant

TARGETS: dict[str, Callable[[Path], list[Variant]]] = {
    "rec": lambda folder: record_variants(folder, "rec"),
    "idx": lambda folder: record_variants(folder, "idx"),
    "bin": bin_variants,
    "bcolz": bcolz_variants,
    "npy": npy_variants,
    "npz": npz_variants,
    "csv": csv_variants,
    "json": json_variants,
    "yaml": yaml_variants,
    "mat": mat_variants,
    "ckpt": ckpt_variants,
    "sharded": sharded_variants,
    "safetensors": safetensors_variants,
    "onnx": onnx_variants,
    "image": image_variants,
}
