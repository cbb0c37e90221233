import cv2
import numpy as np
import pytest

from adaface.alignment.detector import MTCNN
from adaface.alignment.warp import warp_face
from adaface.inference.comparison import embed_photograph
from adaface.inference.embedder import Embedder
from tests.inference.test_embedder import write_checkpoint
from tests.support.photographs import astronaut, two_heads


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Embedder:
    return Embedder.load(write_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt"))


@pytest.fixture(scope="module")
def detector() -> MTCNN:
    return MTCNN()


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def test_the_face_of_a_photograph(embedder, detector):
    found = embed_photograph(png(astronaut()), embedder, detector)
    (face,) = detector.detect(astronaut())
    np.testing.assert_array_equal(found.crop, warp_face(astronaut(), face.landmarks))
    embeddings, norms = embedder.embed(found.crop[None])
    np.testing.assert_array_equal(found.embedding, embeddings[0])
    assert found.norm == norms[0, 0]
    assert (found.faces, found.box, found.size_px) == (1, face.box, (512, 512))
    assert found.overview.shape == (320, 320, 3)


def test_of_several_faces_the_largest_is_taken_and_all_are_framed(embedder, detector):
    found = embed_photograph(png(two_heads()), embedder, detector)
    assert found.faces == 2
    assert found.box[0] > 390
    assert found.size_px == (600, 300)
    assert found.overview.shape == (160, 320, 3)
    for colour, columns in (((115, 158, 0), slice(200, 320)), ((0, 159, 230), slice(130, 190))):
        there = (found.overview == colour).all(2)
        assert there[:, columns].sum() == there.sum() > 20


@pytest.mark.parametrize(
    ("shape", "smallest"), [((300, 400), 20), ((5, 7), 20), ((1, 1), 20), ((4000, 5500), 28), ((30, 400_000), 21)]
)
def test_no_face_and_how_small_one_may_be(embedder, detector, shape, smallest, monkeypatch):
    monkeypatch.setattr(MTCNN, "detect", lambda self, image: [])  # quick: the sentence is what is tested
    with pytest.raises(ValueError, match=rf"{shape[1]}x{shape[0]} px: faces smaller than {smallest} px"):
        embed_photograph(png(np.zeros((*shape, 3), np.uint8)), embedder, detector)


def test_what_is_no_photograph(embedder, detector):
    with pytest.raises(ValueError, match="the file is not a readable image"):
        embed_photograph(b"text", embedder, detector)
    with pytest.raises(ValueError, match="the file is damaged"):
        embed_photograph(png(astronaut())[:5000], embedder, detector)
    with pytest.raises(ValueError, match="512x512 px, more than the maximum of 262,143 pixels"):
        embed_photograph(png(astronaut()), embedder, detector, most_pixels=512 * 512 - 1)
