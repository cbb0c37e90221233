"""A trained backbone as an ONNX graph: ``images`` in, ``embedding`` and ``norm`` out, any number of images.

The input is what the network takes, (B, 3, 112, 112) float32 already normalized, and not the camera's bytes: the
programs that people feed ArcFace-like models with (InsightFace, FaceX-Zoo, OpenCV's ``blobFromImages``) hand over
normalized planes, and a graph that normalized once more would be wrong in all of them without an error. What the
normalization is stands in the metadata, which the embedder obeys.

The exporter is ``torch.export``'s; PyTorch calls the other one deprecated, and both give the same graph (on
ir_50, with the same speed). Opset 18 and file format 8 are read by ONNX Runtime from 1.14 (2023) on.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
import torch

from adaface.export.network import ONNX_METADATA
from adaface.models.backbone import IMAGE_SIZE, Backbone
from adaface.models.layers import fold_batch_norms

OPSET = 18
INPUT = "images"
OUTPUTS = ("embedding", "norm")
_FILE_FORMAT = 8  # ONNX calls it the IR version; the first that knows opset 18
_EXAMPLES = 2  # a batch of 1 would be taken for a constant


def to_onnx(model: Backbone) -> onnx.ModelProto:
    """Return a network as an ONNX graph, batch norms folded into the convolutions before them.

    Args:
        model: not changed.

    Returns:
        The graph: ``images`` (B, 3, 112, 112) to ``embedding`` (B, 512), of length 1, and ``norm`` (B, 1), float32.
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
        raise RuntimeError("torch.onnx.export gave no graph; is another version of PyTorch installed than the pinned?")
    graph = program.model_proto
    graph.ir_version = _FILE_FORMAT
    _forget_where_it_was_made(graph)
    onnx.checker.check_model(graph)
    return graph


def set_metadata(graph: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Write into a graph what ``inference.py`` reads there.

    Args:
        graph: changed in place; what its metadata said before is forgotten.
        metadata: plain values.
    """
    del graph.metadata_props[:]
    graph.metadata_props.add(key=ONNX_METADATA, value=json.dumps(metadata, ensure_ascii=False))


def _forget_where_it_was_made(graph: onnx.ModelProto) -> None:
    """Drop the exporter's notes: each node would carry the lines of source code, with paths, that it comes from."""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.graph.value_info[:]
    for part in (*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _exporter_quiet() -> Iterator[None]:
    """Keep the exporter's warnings about its own inside, and the optimizer's log, off the screen."""
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
