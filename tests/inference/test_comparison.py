import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from adaface.alignment.detector import MTCNN
from adaface.alignment.warp import warp_face
from adaface.inference import comparison
from adaface.inference.comparison import FaceComparison, Threshold, distinct_names, draw_comparison, embed_photograph
from adaface.inference.embedder import Embedder
from tests.inference.test_embedder import write_checkpoint
from tests.support.drawn_figures import assert_is_a_picture, figures_saved_by, texts
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


def test_a_large_jpeg_is_shrunk_while_it_is_decoded(embedder, detector, monkeypatch):
    tall = np.full((2048, 1200, 3), 60, np.uint8)
    tall[300:1324, 50:1074] = cv2.resize(astronaut(), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    encoded = cv2.imencode(".jpg", tall, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    whole = embed_photograph(encoded, embedder, detector)
    monkeypatch.setattr(comparison, "ENOUGH_PIXELS", 2048 * 1200 // 4)
    seen = []
    monkeypatch.setattr(MTCNN, "detect", lambda self, image, real=MTCNN.detect: seen.append(image) or real(self, image))
    small = embed_photograph(encoded, embedder, detector)
    assert [image.shape for image in seen] == [(1024, 600, 3)]
    assert small.size_px == whole.size_px == (1200, 2048)
    np.testing.assert_allclose(small.box, whole.box, atol=12)
    assert np.abs(small.crop.astype(int) - whole.crop).mean() < 6
    assert small.overview.shape == whole.overview.shape
    embed_photograph(png(tall), embedder, detector)
    assert seen[1].shape == tall.shape, "of other formats, all pixels are decoded"
    monkeypatch.setattr(MTCNN, "detect", lambda self, image: [])
    with pytest.raises(ValueError, match="1200x2048 px: faces smaller than 40 px"):
        embed_photograph(encoded, embedder, detector)


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
    with pytest.raises(ValueError, match=r"the file is not a readable image .* the data is damaged"):
        embed_photograph(png(astronaut())[:5000], embedder, detector)
    with pytest.raises(ValueError, match="512x512 px, more than the maximum of 262,143 pixels"):
        embed_photograph(png(astronaut()), embedder, detector, most_pixels=512 * 512 - 1)


def test_a_plot_shows_folders_the_whole_caption_and_readable_numbers(tmp_path, monkeypatch):
    drawn = figures_saved_by(comparison, monkeypatch)
    names = ["people/ann/IMG_0000.png", "people/a person with a long name/IMG_0000.png"]
    origin = "stored in the model: FAR 0.001 on agedb_30, cfp_fp, lfw, cplfw, calfw"
    compared = FaceComparison(names, np.array([[1, 0.2], [0.2, 1]]), np.array([20.0, 21.0]), Threshold(0.5, origin))
    draw_comparison(compared, np.zeros((2, 112, 112, 3), np.uint8), tmp_path / "plot.png")
    assert_is_a_picture(tmp_path / "plot.png")
    (figure,) = drawn
    shown = texts(figure)
    assert "ann/\nIMG_0000.png" in shown
    assert "a person with a long\nname/\nIMG_0000.png" in shown
    caption = " ".join(figure.texts[0].get_text().split())
    assert caption == f"no two faces have a cosine of at least 0.50 ({origin})"
    for text in (*figure.texts, *figure.axes[0].texts, *figure.axes[0].get_yticklabels()):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text


def luminance(color) -> float:
    """Relative luminance (WCAG 2) of red, green and blue in [0, 1]."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def test_every_similarity_can_be_read(tmp_path, monkeypatch):
    drawn = figures_saved_by(comparison, monkeypatch)
    compared = FaceComparison(["a", "b"], np.array([[1, -1], [-1, 1]]), np.array([20.0, 21.0]), None)
    draw_comparison(compared, np.zeros((2, 112, 112, 3), np.uint8), tmp_path / "plot.png")
    axes = drawn[0].axes[0]
    cells = axes.images[0]
    (text,) = {text.get_color() for text in axes.texts if text.get_text() in ("1.000", "-1.000")}
    for similarity in np.linspace(-1, 1, 2001):
        back = luminance(cells.cmap(cells.norm(similarity))[:3]) + 0.05
        front = luminance(to_rgb(text)) + 0.05
        assert max(back, front) / min(back, front) >= 4.5, similarity


def test_the_caption_tells_what_the_frames_are(tmp_path, monkeypatch):
    drawn = figures_saved_by(comparison, monkeypatch)
    for similarity, caption in ((0.5, "framed: cosine at least 0.50 (x)"), (0.4, "no two faces have a cosine of")):
        compared = FaceComparison(
            ["a", "b"], np.array([[1, similarity], [similarity, 1]]), np.array([20.0, 21.0]), Threshold(0.5, "x")
        )
        draw_comparison(compared, np.zeros((2, 112, 112, 3), np.uint8), tmp_path / "plot.png")
        assert drawn[-1].texts[0].get_text().startswith(caption)


def test_a_name_in_other_letters_fits_and_nothing_is_warned_of(tmp_path, monkeypatch, recwarn):
    drawn = figures_saved_by(comparison, monkeypatch)
    name = "\u5f35" * 30 + ".png"
    compared = FaceComparison([name, "b.png"], np.eye(2), np.array([20.0, 21.0]), None)
    draw_comparison(compared, np.zeros((2, 112, 112, 3), np.uint8), tmp_path / "plot.png")
    assert not recwarn.list
    for label in drawn[0].axes[0].get_yticklabels():
        assert label.get_window_extent().x0 >= 0


def test_names_are_as_long_as_necessary_to_differ():
    assert distinct_names(["x/a.png", "y/b.png"]) == ["a.png", "b.png"]
    assert distinct_names(["x/a.png", "./y/a.png", "y/b.png"]) == ["x/a.png", "y/a.png", "b.png"]
    assert distinct_names(["p/x/a.png", "q/x/a.png"]) == ["p/x/a.png", "q/x/a.png"]
    assert distinct_names(["x/a.png", "x/a.png"]) == ["a.png", "a.png"]
    assert distinct_names(["x/A.JPG", "y/a.jpg"]) == ["x/A.JPG", "y/a.jpg"]


@pytest.mark.parametrize(
    ("cosine", "text"), [(0.5, "0.50"), (0.25, "0.25"), (0.125, "0.125"), (0.31239, "0.3124"), (-1, "-1.00")]
)
def test_a_threshold_has_two_to_four_decimals(cosine, text):
    assert comparison.threshold_text(Threshold(cosine, "x")) == f"{text} (x)"
