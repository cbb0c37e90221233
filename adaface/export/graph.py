"""Export of a trained backbone to ONNX: ``images`` in, ``embedding`` and ``norm`` out, any batch size.

The input is the network's own, (B, 3, 112, 112) float32, already normalized. Programs that run ArcFace-like models
(InsightFace, FaceX-Zoo, OpenCV's ``blobFromImages``) pass normalized images; a graph that normalized them again would
give wrong results in all of them without an error. The metadata stores the normalization, and the embedder follows it.

The exporter is the one based on ``torch.export``. PyTorch has deprecated the older one; both give the same graph, with
the same speed on ir_50. ONNX Runtime reads opset 18 and file format 8 since version 1.14 (2023).
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
import torch

from adaface.export.network import BLANK, CHECKSUM, ONNX_METADATA, checksum_of_export
from adaface.models.backbone import IMAGE_SIZE, Backbone
from adaface.models.layers import fold_batch_norms

OPSET = 18
INPUT = "images"
OUTPUTS = ("embedding", "norm")
_FILE_FORMAT = 8  # the IR version in ONNX's terms; the first with opset 18
_EXAMPLES = 2  # a batch of 1 would be exported as a constant


def to_onnx(model: Backbone) -> onnx.ModelProto:
    """Convert a network to an ONNX graph, with batch norms folded into the preceding convolutions.

    Args:
        model: the network; not changed.

    Returns:
        The graph: ``images`` (B, 3, 112, 112) to ``embedding`` (B, 512), unit vectors, and ``norm`` (B, 1), float32.
    """
    folded = fold_batch_norms(model).float().cpu()
    examples = torch.zeros(_EXAMPLES, 3, IMAGE_SIZE, IMAGE_SIZE)
    with _exporter_quiet():
        program = torch.onnx.export(
            folded,
            (examples,),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no graph: install the pinned version of PyTorch")
    graph = program.model_proto
    graph.ir_version = _FILE_FORMAT
    _remove_debug_information(graph)
    onnx.checker.check_model(graph)
    return graph


def set_metadata(graph: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Store the metadata that the embedder reads in a graph.

    Args:
        graph: changed in place; existing metadata is removed.
        metadata: plain values.
    """
    del graph.metadata_props[:]
    graph.metadata_props.add(key=ONNX_METADATA, value=json.dumps(metadata, ensure_ascii=False))


def to_file(graph: onnx.ModelProto, metadata: Mapping[str, Any]) -> bytes:
    """Return the file of a graph, with the metadata that the embedder reads and a checksum among them.

    Args:
        graph: changed in place; existing metadata is removed.
        metadata: plain values.
    """
    set_metadata(graph, {**metadata, CHECKSUM: BLANK})
    content = graph.SerializeToString()
    before, _, after = content.rpartition(BLANK.encode())
    return before + checksum_of_export(content, BLANK).encode() + after


def _remove_debug_information(graph: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which give source lines and file paths for each node."""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.graph.value_info[:]
    for part in (*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _exporter_quiet() -> Iterator[None]:
    """Silence the exporter's internal warnings and the log of its graph optimizer."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
