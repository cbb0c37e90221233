"""Embedding 112x112 faces by ir_50 in ONNX Runtime, FP32 and INT8, against the eager module in PyTorch's own layout.

    python -m bench.onnx

The files are what ``adaface export`` writes; both runtimes have the same number of threads. Beside each row stands what
a product of two matrices reaches here at the same time: FP32 convolutions come from the same instructions, so 100 % of
it is as fast as they can be, short of other algorithms.
"""

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaface.config.choices import FEWEST_IMAGES
from adaface.export.graph import set_metadata, to_onnx
from adaface.export.int8 import quantize
from adaface.export.network import OnnxNetwork, load_network
from adaface.inference.sample_images import drawn_faces
from adaface.models.input_format import normalize_images
from adaface.models.registry import build_model, count_macs
from bench._textbook_net import textbook
from bench.timing import Side, compare, options, report

_MATRIX = 2048
_MATRIX_PRODUCTS = 5


def matrix_product_gflops() -> float:
    """Return the fastest of some products of two square matrices, in GFLOP/s, on all threads."""
    matrix = torch.rand(_MATRIX, _MATRIX)
    seconds = []
    for _ in range(_MATRIX_PRODUCTS):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    return 2 * _MATRIX**3 / min(seconds) / 1e9


def no_smaller_cosine_than(least: float, gflop_per_image: float) -> Callable[[np.ndarray, np.ndarray], dict[str, Any]]:
    """Return a check that unit embeddings (B, D) of both sides have at least this cosine, image by image.

    Args:
        least: the smallest cosine.
        gflop_per_image: what a network computes for one image.
    """

    def check(baseline: np.ndarray, candidate: np.ndarray) -> dict[str, Any]:
        cosine = float((baseline * candidate).sum(axis=1).min())
        if not cosine >= least:
            raise AssertionError(f"the embeddings have a cosine of {cosine:.6f}, expected at least {least}")
        fastest = matrix_product_gflops()
        return {
            "smallest cosine": f"{cosine:.6f}",
            "onnxruntime": importlib.metadata.version("onnxruntime"),
            "a matrix product": f"{fastest:.0f} GFLOP/s, or {fastest / gflop_per_image:.1f} images/s",
        }

    return check


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    arch, count = ("ir_mini", 2) if chosen.quick else ("ir_50", 32)
    torch.manual_seed(0)
    images = drawn_faces(count)
    model = build_model(arch)
    with torch.no_grad():
        model.train()(normalize_images(torch.from_numpy(images)))  # batch norms that are not the identity
    plain = textbook(model.eval())
    as_tensor = torch.from_numpy(images)

    @torch.inference_mode()
    def embed_eagerly() -> np.ndarray:
        return plain(normalize_images(as_tensor, channels_last=False))[0].numpy()

    with tempfile.TemporaryDirectory() as folder:

        def written(graph: Any, name: str) -> OnnxNetwork:
            set_metadata(graph, {"arch": arch})
            Path(folder, name).write_bytes(graph.SerializeToString())
            return load_network(Path(folder, name))[0]

        graph = to_onnx(model)
        single = written(graph, "fp32.onnx")
        integers = written(quantize(graph, drawn_faces(FEWEST_IMAGES), single), "int8.onnx")
        for name, network, target, least in (("FP32", single, 1.8, 0.99999), ("INT8", integers, 2.5, 0.9)):
            result = compare(
                f"ONNX Runtime {name}, {arch}, B={count}",
                Side("eager module, NCHW", embed_eagerly),
                Side(f"ONNX Runtime, {name}", lambda network=network: network(images)[0]),
                count=count,
                unit="images",
                target=target,
                check=no_smaller_cosine_than(least, 2 * count_macs(model) / 1e9),
                repeats=chosen.repeats,
            )
            report(result, __file__, chosen.output)


if __name__ == "__main__":
    main()
