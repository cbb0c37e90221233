"""Augmentations: golden values of the official code, exact arithmetic, distribution of the parameters."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaface.augmentation import paper
from adaface.augmentation.paper import Augmenter


@pytest.fixture
def values(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "augment.npz") as file:
        return {name: file[name] for name in file.files}


def bgr(rgb: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rgb[..., ::-1])


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@pytest.fixture
def image() -> np.ndarray:
    return generator(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)


def test_crop_matches_the_official_code(values: dict[str, np.ndarray]) -> None:
    for image, parameters, expected in zip(values["images"], values["crop.params"], values["crop.images"], strict=True):
        assert np.array_equal(paper.crop(bgr(image), *parameters.tolist()), bgr(expected))


def test_low_resolution_matches_the_official_code(values: dict[str, np.ndarray]) -> None:
    results = np.stack(
        [
            paper.low_resolution(bgr(values["images"][i]), side, down, up)
            for i, side, down, up in values["lowres.params"].tolist()
        ]
    )
    difference = np.abs(results.astype(int) - values["lowres.images"][..., ::-1])
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_photometric_matches_the_official_code(values: dict[str, np.ndarray], name: str) -> None:
    operation = getattr(paper, name)
    for image, expected in zip(values["images"], values[f"{name}.images"], strict=True):
        for factor, result in zip(values[f"{name}.factors"].tolist(), expected, strict=True):
            difference = np.abs(operation(bgr(image), factor).astype(int) - bgr(result))
            assert difference.max() <= 1
            assert (difference > 0).mean() <= 0.001


def test_grey_is_pillows_integer_formula_but_for_rounding() -> None:
    image = generator(4).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    blue, green, red = image.astype(np.int64).transpose(2, 0, 1)
    difference = np.abs(paper.gray(image) - ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


@settings(max_examples=100, deadline=None)
@given(st.floats(0.5, 1.5), st.integers(0, 255))
def test_blends_are_pillows_float32_but_for_rounding(factor: float, mean: int) -> None:
    levels = np.arange(256, dtype=np.uint8)
    image = np.repeat(levels[None, :, None], 3, axis=2)  # grey: it is its own grey image
    exact = np.clip(np.float32(factor) * levels.astype(np.float32), 0, 255).astype(np.uint8)
    assert np.abs(paper.brightness(image, factor)[0].astype(int) - exact[:, None]).max() <= 1
    assert np.array_equal(paper.saturation(image, factor), image)
    even = np.concatenate([image, np.full_like(image, mean)] * 1 + [np.full_like(image, mean)] * 40)
    center = np.float32(int(even[..., 0].mean() + 0.5))
    exact = np.clip(center + np.float32(factor) * (levels - center), 0, 255).astype(np.uint8)
    assert np.abs(paper.contrast(even, factor)[0].astype(int) - exact[:, None]).max() <= 1


def test_blends_cut_fractions_off_by_hand() -> None:
    pixel = np.array([[[200, 100, 50]]], np.uint8)  # B, G, R: grey 96.4 -> 96
    assert paper.gray(pixel)[0, 0] == 96
    assert paper.brightness(pixel, 0.83)[0, 0].tolist() == [166, 83, 41]
    assert paper.contrast(pixel, 1.5)[0, 0].tolist() == [252, 102, 27]
    assert paper.saturation(pixel, 0.75)[0, 0].tolist() == [174, 99, 61]
    assert paper.saturation(pixel, 1.5)[0, 0].tolist() == [252, 102, 27]
    assert paper.brightness(pixel, 1.5)[0, 0].tolist() == [255, 150, 75]


def test_factor_one_changes_nothing(image: np.ndarray) -> None:
    for operation in (paper.brightness, paper.contrast, paper.saturation):
        assert np.array_equal(operation(image, 1.0), image)


def test_photometric_applies_the_operations_in_order(image: np.ndarray) -> None:
    expected = paper.brightness(paper.contrast(paper.saturation(image, 1.4), 0.6), 1.3)
    assert np.array_equal(paper.photometric(image, [2, 1, 0], [1.3, 0.6, 1.4]), expected)
    assert not np.array_equal(paper.photometric(image, [0, 1, 2], [1.3, 0.6, 1.4]), expected)


def test_drawn_crops_fit_and_cover_the_whole_range() -> None:
    rng = generator(1)
    crops = np.array([paper.draw_crop(112, 112, rng) for _ in range(4000)])
    top, left, height, width = crops.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 112).all() and (left + width <= 112).all()
    area, aspect = height * width / 112**2, width / height
    assert 0.19 < area.min() < 0.22 and area.max() > 0.95
    assert 0.73 < aspect.min() < 0.76 and 1.31 < aspect.max() < 1.37
    assert abs(np.log(aspect).mean()) < 0.02  # log-uniform: as often wide as high
    assert abs((top / np.maximum(112 - height, 1)).mean() - 0.5) < 0.03


def test_crop_falls_back_to_the_center() -> None:
    class Largest(np.random.Generator):
        def random(self, size: int) -> np.ndarray:  # type: ignore[override]
            return np.ones(size)

    largest = Largest(np.random.Philox(key=0))
    assert paper.draw_crop(112, 112, largest) == (0, 0, 112, 112)
    assert paper.draw_crop(100, 200, largest) == (0, 33, 100, 133)
    assert paper.draw_crop(100, 400, largest) == (0, 133, 100, 133)


def test_drawn_low_resolutions_and_factors_cover_their_ranges() -> None:
    rng = generator(2)
    sides, down, up = np.array([paper.draw_low_resolution(112, rng) for _ in range(3000)]).T
    assert sides.min() == 22 and sides.max() == 111
    assert set(down) == set(up) == set(paper.INTERPOLATIONS)
    assert len(set(zip(down, up, strict=True))) == 25
    orders, factors = zip(*[paper.draw_photometric(rng) for _ in range(500)], strict=True)
    assert len({tuple(order) for order in orders}) == math.factorial(3)
    assert 0.5 <= np.min(factors) < 0.52 and 1.48 < np.max(factors) < 1.5


def test_each_augmentation_has_its_own_probability(image: np.ndarray) -> None:
    only = {"crop_prob": 0.0, "low_res_prob": 0.0, "photometric_prob": 0.0, "flip_prob": 0.0}
    assert Augmenter(**only)(image, generator(0)) is image
    flipped = Augmenter(**{**only, "flip_prob": 1.0})(image, generator(0))
    assert np.array_equal(flipped, image[:, ::-1]) and flipped.flags["C_CONTIGUOUS"]
    cropped = Augmenter(**{**only, "crop_prob": 1.0})(image, generator(3))
    kept = cropped.any(axis=2)
    assert 0 < kept.sum() < kept.size and np.array_equal(cropped[kept], image[kept])
    half = Augmenter(**{**only, "photometric_prob": 0.3})
    changed = sum(half(image, generator(seed)) is not image for seed in range(400))
    assert 90 < changed < 150


def test_the_result_lies_where_it_is_asked_for(image: np.ndarray) -> None:
    augment, batch = Augmenter(0.5, 0.5, 0.5), np.zeros((40, *image.shape), np.uint8)
    for seed, out in enumerate(batch):
        result = augment(image, generator(seed), out)
        assert np.shares_memory(result, batch) and np.array_equal(out, augment(image, generator(seed)))


def test_same_generator_same_result_and_the_argument_stays(image: np.ndarray) -> None:
    before = image.copy()
    augment = Augmenter(1.0, 1.0, 1.0)
    first, second, other = (augment(image, generator(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert np.array_equal(image, before)
    assert first.shape == image.shape and first.dtype == np.uint8


def test_one_probability_does_not_shift_the_flip(image: np.ndarray) -> None:
    black = np.zeros_like(image)
    black[:, :56] = 255  # white on the left; a factor keeps that
    for seed in range(20):
        plain = Augmenter(0.0, 0.0, 0.0)(black, generator(seed))
        brighter = Augmenter(0.0, 0.0, 1.0)(black, generator(seed))
        assert (plain[0, 0, 0] > plain[0, -1, 0]) == (brighter[0, 0, 0] > brighter[0, -1, 0])


def test_red_stays_the_strongest_channel() -> None:
    red = np.zeros((112, 112, 3), np.uint8)
    red[..., 2] = 180
    augment = Augmenter(0.5, 0.5, 1.0)
    for seed in range(20):
        mean = augment(red, generator(seed)).mean(axis=(0, 1))
        assert mean[2] > mean[0] and mean[2] > mean[1]


def test_a_bad_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low_res_prob is a probability: expected a number in \[0, 1\], got 1.5"):
        Augmenter(0.2, 1.5, 0.2)


def test_interpolations_are_the_five_of_the_paper() -> None:
    assert set(paper.INTERPOLATIONS) == {
        cv2.INTER_NEAREST,
        cv2.INTER_LINEAR,
        cv2.INTER_AREA,
        cv2.INTER_CUBIC,
        cv2.INTER_LANCZOS4,
    }
