"""INT8 quantization of an exported network: a quarter of the size and several times as fast on a CPU.

Source: ONNX Runtime's static quantization, with unsigned activations and signed weights, and one scale per channel: the
combination that its CPU kernels are optimized for. Weights use 7 bits (``reduce_range``), because products of two 8-bit
numbers overflow silently on processors with AVX2 but without VNNI. Convolutions and the linear layer are quantized.
Additions, the batch norms before convolutions, and the activation functions stay in float32: they take little time, and
their errors would add up from block to block.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from adaface.config.choices import FEWEST_IMAGES, MOST_IMAGES
from adaface.export.graph import INPUT
from adaface.export.network import OnnxNetwork
from adaface.system.onnx_runtime import quantization

LEAST_MEAN_COSINE = 0.95  # to the FP32 network; a lower value means that something is broken
QUANTIZED = ("Conv", "Gemm", "MatMul")
_BATCH = 8


def check_enough(count: int) -> None:
    """Raise ValueError if there are too few images for calibration.

    Args:
        count: number of images.
    """
    if count < FEWEST_IMAGES:
        raise ValueError(
            f"{count} calibration images, expected at least {FEWEST_IMAGES}: faces of many people and cameras; up "
            f"to {MOST_IMAGES} are used"
        )


def quantize(graph: onnx.ModelProto, images: np.ndarray, network: OnnxNetwork) -> onnx.ModelProto:
    """Quantize a network to 8-bit integers.

    Args:
        graph: of ``export.graph.to_onnx``; not changed.
        images: (N, 112, 112, 3) uint8, in the network's color order: faces like those the network will be used on. They
            determine the ranges of all activations.
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
    """Yield the normalized images in batches."""

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
    """Silence the quantizer's advice, which it logs through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
