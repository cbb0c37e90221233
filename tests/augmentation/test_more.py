"""Augmentations beyond the paper's: what each does to the pixels, and how they are switched on."""

import cv2
import numpy as np
import pytest

from adaface.augmentation import more
from adaface.augmentation.more import MORE_AUGMENTATIONS
from adaface.augmentation.paper import Augmenter
from adaface.config.parsing import parse

NAMES = list(MORE_AUGMENTATIONS)
OFF = {"crop_prob": 0.0, "low_res_prob": 0.0, "photometric_prob": 0.0, "flip_prob": 0.0}


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@pytest.fixture
def face() -> np.ndarray:
    """A smooth picture with an edge, a gradient and colors."""
    noise = generator(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 4) // 2 + np.linspace(0, 120, 112).astype(np.uint8)[:, None, None]


@pytest.mark.parametrize("name", NAMES)
def test_each_changes_the_image_and_leaves_its_argument(name: str, face: np.ndarray) -> None:
    before = face.copy()
    first, again, other = (MORE_AUGMENTATIONS[name](face, generator(seed)) for seed in (3, 3, 4))
    assert np.array_equal(face, before) and not np.shares_memory(first, face)
    assert (first.shape, first.dtype) == (face.shape, np.uint8) and first.flags["C_CONTIGUOUS"]
    assert not np.array_equal(first, face) and np.array_equal(first, again)
    assert name == "grey" or not np.array_equal(first, other)


def test_grey_is_grey_and_nothing_else_is(face: np.ndarray) -> None:
    for name in NAMES:
        result = MORE_AUGMENTATIONS[name](face, generator(1))
        assert (result == result[..., :1]).all() == (name == "grey")


def test_a_cutout_is_a_grey_square_of_the_asked_size_anywhere(face: np.ndarray) -> None:
    sides, places = [], []
    for seed in range(300):
        changed = (more.cutout(face, generator(seed)) != face).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        sides.append(max(len(rows), len(columns)))
        places.append((rows.mean(), columns.mean()))
    low, high = more.CUTOUT_SHARE
    assert max(sides) <= round(112 * high) + 1 and np.quantile(sides, 0.9) > 112 * (low + high) / 2
    assert (np.ptp(places, axis=0) > 90).all()  # to the borders, where it is cut off
    result = more.cutout(face, generator(0))
    assert set(result[(result != face).any(axis=2)].ravel()) == {127}


def test_a_mask_covers_mouth_and_nose_and_leaves_the_eyes(face: np.ndarray) -> None:
    for seed in range(50):
        changed = (more.mask(face, generator(seed)) != face).any(axis=2)
        assert changed[72:108, 45:68].mean() > 0.97  # from the tip of the nose to below the mouth
        assert not changed[:53].any()  # eyes lie at 51.6
    doubled = cv2.resize(face, (224, 224))
    masked = more.mask(doubled, generator(0))
    assert (masked != doubled)[150:205, 92:134].any(axis=2).all() and not (masked != doubled)[:106].any()


@pytest.mark.parametrize("name", ["blur", "motion_blur"])
def test_blurs_keep_the_mean_and_lose_detail(name: str) -> None:
    noise = generator(5).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    for seed in range(20):
        result = MORE_AUGMENTATIONS[name](noise, generator(seed))
        assert abs(result.mean() - noise.mean()) < 2 and result.std() < noise.std()


def test_noise_has_a_mean_of_0_and_a_drawn_strength() -> None:
    even = np.full((112, 112, 3), 120, np.uint8)
    strengths = []
    for seed in range(200):
        result = more.noise(even, generator(seed)).astype(float)
        assert abs(result.mean() - 120) < 1
        strengths.append(result.std())
    low, high = more.NOISE_LEVELS
    assert low - 0.2 < min(strengths) < low + 2 and high - 2 < max(strengths) < high + 0.5
    black, white = (more.noise(np.full_like(even, level), generator(0)) for level in (0, 255))
    assert black.max() < 120 < white.min()  # nothing wraps around


@pytest.mark.parametrize("name", NAMES)
def test_each_has_its_own_probability(name: str, face: np.ndarray) -> None:
    always = Augmenter(**OFF, more={name: 1.0})
    assert not np.array_equal(always(face, generator(0)), face)
    seldom = Augmenter(**OFF, more={name: 0.3})
    changed = sum(seldom(face, generator(seed)) is not face for seed in range(300))
    assert 65 < changed < 115


def test_what_is_off_changes_no_number_of_a_run(face: np.ndarray) -> None:
    off = Augmenter(0.5, 0.5, 0.5, more=dict.fromkeys(NAMES, 0.0))
    for seed in range(20):
        random, without = generator(seed), generator(seed)
        assert np.array_equal(off(face, random), Augmenter(0.5, 0.5, 0.5)(face, without))
        assert random.random() == without.random()


def test_the_result_lies_where_it_is_asked_for(face: np.ndarray) -> None:
    augment, batch = Augmenter(0.5, 0.5, 0.5, more=dict.fromkeys(NAMES, 0.3)), np.zeros((40, *face.shape), np.uint8)
    for seed, out in enumerate(batch):
        result = augment(face, generator(seed), out)
        assert np.shares_memory(result, batch) and np.array_equal(out, augment(face, generator(seed)))


def test_bad_names_and_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"noise_prob is a probability: expected a number in \[0, 1\], got 2"):
        Augmenter(**OFF, more={"noise": 2.0})
    with pytest.raises(KeyError, match=r"no augmentations .*'rain'"):
        Augmenter(**OFF, more={"rain": 0.5})


def test_each_has_an_option_that_is_off() -> None:
    assert parse([])[0].augmentation.more_augmentations == dict.fromkeys(NAMES, 0.0)
    for name in NAMES:
        config, _ = parse([f"--{name}_augmentation_prob", "0.25"])
        assert config.augmentation.more_augmentations == {**dict.fromkeys(NAMES, 0.0), name: 0.25}
        with pytest.raises(ValueError, match=rf"--{name}_augmentation_prob must be between 0 and 1, got 1.5"):
            parse([f"--{name}_augmentation_prob", "1.5"])
