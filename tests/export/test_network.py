"""ONNX files that open and yet are not what they announce."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper

from adaface.export.network import ONNX_METADATA, OnnxNetwork, load_network
from adaface.models.input_format import InputFormat

IMAGES = np.zeros((2, 112, 112, 3), np.uint8)


def write(path):
    """Write a network of one product: images -> means of their planes -> 4 numbers."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
        helper.make_node("ReduceL2", ["embedding"], ["norm"], axes=[1], keepdims=1),
    ]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, (3, 4), np.ones(12))
    sides = {"images": [3, 112, 112], "embedding": [4], "norm": [1]}
    image, *outputs = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", *d]) for n, d in sides.items())
    model = helper.make_model(
        helper.make_graph(nodes, "net", [image], outputs, [weight]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    model.metadata_props.add(key=ONNX_METADATA, value=json.dumps({"color": "BGR"}))
    path.write_bytes(model.SerializeToString())
    return path


def test_a_network_gives_the_shapes_that_it_announces(tmp_path):
    embeddings, norms = load_network(write(tmp_path / "a.onnx"))[0](IMAGES)
    assert (embeddings.shape, norms.shape) == ((2, 4), (2, 1))
    np.testing.assert_allclose(embeddings, -3)  # three planes of -1


class OtherShapes:
    """A session that gives another number of numbers than it announces."""

    def get_inputs(self):
        return [SimpleNamespace(name="images")]

    def get_outputs(self):
        return [SimpleNamespace(shape=["B", 5])]

    def run(self, names, inputs):
        return np.zeros((2, 4), np.float32), np.zeros((2, 1), np.float32)


def test_other_shapes_than_announced_are_damage():
    network = OnnxNetwork(OtherShapes(), InputFormat(), Path("a.onnx"))
    with pytest.raises(ValueError, match=r"a\.onnx is damaged: it gives \(2, 4\) for 2 images"):
        network(IMAGES)


def test_a_graph_that_cannot_be_computed(tmp_path, monkeypatch):
    network = load_network(write(tmp_path / "a.onnx"))[0]
    monkeypatch.setattr(network, "_input", "another")
    with pytest.raises(ValueError, match=r"a\.onnx cannot be computed \(.*another"):
        network(IMAGES)


def test_a_name_that_is_no_text(tmp_path):
    content = write(tmp_path / "a.onnx").read_bytes()
    (tmp_path / "a.onnx").write_bytes(content.replace(b"images", b"\x80mages"))
    with pytest.raises(ValueError, match=r"a\.onnx is damaged: the name of an input or output is no text"):
        load_network(tmp_path / "a.onnx")
