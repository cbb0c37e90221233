"""An exported network in 8-bit integers: a quarter of the size, and several times as fast on a CPU.

Source: ONNX Runtime's static quantization. Unsigned activations and signed weights, one scale a channel: the pair that
its CPU kernels are written for. Weights keep 7 bits (``reduce_range``), since the products of 8 with 8 bits overflow
without an error on processors with AVX2 but without VNNI, and nobody knows where the file will run.
Convolutions and the linear layer are quantized; the sums, the batch norms before convolutions, and the activations
stay in float32: they take little time, and errors there would add up from block to block.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from adaface.export.graph import INPUT
from adaface.export.network import OnnxNetwork
from adaface.system.onnx_runtime import quantization

FEWEST_IMAGES = 32  # to calibrate on
MOST_IMAGES = 256
LEAST_MEAN_COSINE = 0.95  # to the same network in FP32; below it something is broken
QUANTIZED = ("Conv", "Gemm", "MatMul")
_BATCH = 8


def check_enough(count: int) -> None:
    """Raise ValueError where images are too few to calibrate on.

    Args:
        count: of the images.
    """
    if count < FEWEST_IMAGES:
        raise ValueError(
            f"{count} images to calibrate on, expected at least {FEWEST_IMAGES}: faces of many people and cameras; up "
            f"to {MOST_IMAGES} are used"
        )


def quantize(graph: onnx.ModelProto, images: np.ndarray, network: OnnxNetwork) -> onnx.ModelProto:
    """Return a network in 8-bit integers.

    Args:
        graph: of ``export.graph.to_onnx``; not changed.
        images: (N, 112, 112, 3) uint8, in the network's color order: faces like those it will see. The ranges of all
            activations are taken from them.
        network: the same graph, for its normalization.

    Raises:
        ValueError: too few images.
    """
    check_enough(len(images))
    with tempfile.TemporaryDirectory(prefix="adaface_int8_") as folder, _quiet_quantizer():
        output = Path(folder, "int8.onnx")
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)  # the quantizer works in place
        quantization.quantize_static(
            copy,
            output,
            _Batches(images, network),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        return onnx.load(output)


class _Batches(quantization.CalibrationDataReader):
    """Hands out the images, normalized, some at a time."""

    def __init__(self, images: np.ndarray, network: OnnxNetwork) -> None:
        self._parts = iter(range(0, len(images), _BATCH))
        self._images, self._network = images, network

    def get_next(self) -> dict[str, Any] | None:
        start = next(self._parts, None)
        if start is None:
            return None
        return {INPUT: self._network.normalized(self._images[start : start + _BATCH])}


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Keep the advice of the quantizer, which speaks through the root logger, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
