import math
import pickle
from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from adaface.evaluation import degradation
from adaface.evaluation.degradation import DegradedImages, degrade, draw_samples, image_generator

STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Faces:
    """A list of drawn images with edges, curves and noise; a picture of one colour where one is asked for."""

    count: int = 8
    colour: tuple[int, int, int] | None = None
    name: str = "faces"

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> np.ndarray:
        generator = np.random.default_rng(index)
        image = np.full((112, 112, 3), self.colour or (90, 120, 170), dtype=np.uint8)
        if self.colour is None:
            for _ in range(30):
                centre, axes = generator.integers(0, 112, 2).tolist(), generator.integers(2, 25, 2).tolist()
                shade = generator.integers(0, 256, 3).tolist()
                cv2.ellipse(image, centre, axes, float(generator.integers(180)), 0, 360, shade, -1)
            image = np.clip(image + generator.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        return image

    def fingerprint(self) -> str:
        return f"faces {self.count} {self.colour}"


def blurred(index: int, strength: float = 1.0, seed: int = 0) -> np.ndarray:
    return DegradedImages(Faces(), seed, strength).read(index)


def test_the_same_seed_and_place_give_the_same_pixels_in_any_order():
    images = DegradedImages(Faces(), seed=3)
    forwards = [images.read(index) for index in range(8)]
    backwards = [pickle.loads(pickle.dumps(images)).read(index) for index in reversed(range(8))]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_place_or_seed_gives_another_degradation():
    image = Faces().read(0)
    results = [degrade(image, image_generator(seed, index)) for seed in (0, 1) for index in (0, 1)]
    for first in range(4):
        for second in range(first):
            assert (results[first] != results[second]).any()


def test_strength_0_changes_nothing():
    image = Faces().read(1)
    result = degrade(image, image_generator(0, 1), 0.0)
    np.testing.assert_array_equal(result, image)
    assert not np.shares_memory(result, image)


@pytest.mark.parametrize("index", range(8))
def test_every_image_loses_more_with_strength(index):
    clear = Faces().read(index)
    ratios = [cv2.PSNR(clear, blurred(index, strength)) for strength in STRENGTHS]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > ratios[-1] + 1


def test_input_is_kept_and_output_is_an_image_of_its_size():
    image = Faces().read(2)
    before = image.copy()
    result = degrade(image, image_generator(0, 2))
    np.testing.assert_array_equal(image, before)
    assert (result.shape, result.dtype) == ((112, 112, 3), np.uint8)
    assert degrade(image[:80], image_generator(0, 2)).shape == (80, 112, 3)


@pytest.mark.parametrize("colour", [(0, 0, 255), (255, 0, 0), (30, 200, 90), (0, 0, 0), (255, 255, 255)])
def test_a_colour_stays_what_it_is(colour):
    images = DegradedImages(Faces(colour=colour), seed=0)
    for index in range(8):
        assert np.abs(images.read(index).astype(int) - colour).max() <= 6  # JPEG's rounding


@pytest.mark.parametrize("strength", STRENGTHS)
def test_as_many_numbers_are_drawn_at_each_strength(strength):
    generator, without = np.random.default_rng(0), np.random.default_rng(0)
    degrade(Faces().read(0), generator, strength)
    degrade(Faces().read(0), without, 0.0)
    assert generator.random() == without.random()


def test_each_of_the_four_kinds_alone_degrades():
    """Draws of 0 leave a kind out; its maximum alone must be seen."""

    @dataclass
    class Given:
        numbers: list[float]

        def random(self, count: int) -> np.ndarray:
            return np.array(self.numbers[:count])

    def lightness_ratio(*numbers: float) -> float:
        images = clear, degrade(clear, Given([*numbers]))
        return cv2.PSNR(*(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images))

    clear = Faces().read(3)
    untouched = lightness_ratio(0, 0, 0.25, 0, 0)
    assert untouched > 45  # JPEG of the best quality is left
    for numbers in ((1, 0, 0.25, 0, 0), (0, 1, 0.25, 0, 0), (0, 0, 0.25, 1, 0), (0, 0, 0.25, 0, 1)):
        assert lightness_ratio(*numbers) < untouched - 3


def test_the_largest_down_sampling_and_defocus_leave_a_face_of_20_px():
    assert round(112 / degradation.DOWN_SAMPLING, 9) == 20
    sigma, finest = degradation.DEFOCUS_SIGMA_PX, 10 / 112  # cycles per pixel
    assert math.exp(-2 * (math.pi * sigma * finest) ** 2) == pytest.approx(0.5, abs=0.01)
    eyes_px = 73.5318 - 38.2946
    assert 1.4e3 / 60 * eyes_px / 63 == pytest.approx(degradation.MOTION_PX, abs=0.1)


def test_fingerprint_and_name_tell_the_degradation(monkeypatch):
    prints = {
        DegradedImages(Faces(count), seed, strength).fingerprint()
        for count in (1, 2)
        for seed in (0, 1)
        for strength in (0.5, 1.0)
    }
    assert len(prints) == 8
    before = DegradedImages(Faces(), 0).fingerprint()
    monkeypatch.setattr(degradation, "VERSION", degradation.VERSION + 1)
    assert DegradedImages(Faces(), 0).fingerprint() != before
    assert (DegradedImages(Faces(), 0).name, len(DegradedImages(Faces(5), 0))) == ("faces blurred", 5)


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_a_strength_outside_0_to_1_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength of a degradation must be in \[0, 1\]"):
        DegradedImages(Faces(), 0, strength)
    with pytest.raises(ValueError, match=r"strength of a degradation must be in \[0, 1\]"):
        degrade(Faces().read(0), image_generator(0, 0), strength)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="must be an integer from 0, got -1"):
        DegradedImages(Faces(), -1)


def test_samples_are_a_picture(tmp_path):
    draw_samples(Faces(), tmp_path / "samples.png", seed=0, count=3)
    image = cv2.imread(str(tmp_path / "samples.png"))
    assert min(image.shape[:2]) > 400
    assert (image < 128).any(axis=2).mean() > 0.05


def test_samples_keep_their_colours(tmp_path):
    draw_samples(Faces(colour=(0, 0, 255)), tmp_path / "samples.png", seed=0, count=1)
    image = cv2.imread(str(tmp_path / "samples.png")).astype(int)
    assert ((image[..., 2] > 240) & (image[..., 0] < 20)).mean() > 0.3  # red, as OpenCV reads it


def test_samples_of_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="faces contains no images to show"):
        draw_samples(Faces(0), tmp_path / "samples.png", seed=0)
