"""Hashes of looks, and the search for those that are nearly the same."""

import itertools

import cv2
import numpy as np
import pytest

from adaface.audit import hashing as module
from adaface.audit.hashing import (
    LEAST_LIKENESS,
    MOST_BITS_APART,
    bits_apart,
    frequencies,
    likeness,
    mirrored,
    near_pairs,
    picture_hash,
    usual_frequencies,
)
from adaface.demo.dataset import DemoSize, draw_picture, training_pictures


@pytest.fixture(scope="module")
def faces() -> list[np.ndarray]:
    """60 drawn faces of 12 people."""
    return [draw_picture(picture) for picture in training_pictures(DemoSize(12, 5, 10, 2))]


def hashes_of(images: list[np.ndarray]) -> np.ndarray:
    found = np.array([frequencies(image) for image in images])
    return picture_hash(found, usual_frequencies(found))


def random_hashes(count: int, seed: int) -> np.ndarray:
    """Random hashes, some of which differ little from others or from their mirrors."""
    rng = np.random.default_rng(seed)
    bits = rng.random((count, 256)) < 0.5
    hashes = np.packbits(bits, axis=1).view(np.uint64)
    for place in range(0, count - 1, 3):
        changed = bits[place].copy()
        changed[rng.choice(256, place % 40, replace=False)] ^= True
        copy = np.packbits(changed).view(np.uint64)
        hashes[place + 1] = mirrored(copy) if place % 2 else copy
    return hashes


def bit_by_bit(a: np.ndarray, b: np.ndarray) -> int:
    return sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(a, b, strict=True))


def share_a_band(a: np.ndarray, b: np.ndarray, width: int) -> bool:
    one, other = a.tobytes(), b.tobytes()
    return any(one[i : i + width] == other[i : i + width] for i in range(0, 32 - width + 1, width))


@pytest.mark.parametrize("large", [False, True])
def test_the_search_finds_what_comparing_all_with_all_finds(large, monkeypatch):
    hashes = random_hashes(240, 3)
    if large:
        monkeypatch.setattr(module, "_LARGE", 100)
    width = 3 if large else 2
    expected = []
    for i, j in itertools.combinations(range(len(hashes)), 2):
        for other in (hashes[j], mirrored(hashes[j])):
            if bit_by_bit(hashes[i], other) <= MOST_BITS_APART and share_a_band(hashes[i], other, width):
                expected.append([i, j])
    expected = [list(pair) for pair in dict.fromkeys(map(tuple, expected))]
    assert len(expected) > 40
    for threads in (1, 3):
        assert near_pairs(hashes, threads=threads).tolist() == expected


def test_the_search_ends_where_all_hashes_are_the_same(monkeypatch):
    hashes = np.repeat(random_hashes(1, 0), 50, axis=0)
    assert len(near_pairs(hashes)) == 50 * 49 / 2
    monkeypatch.setattr(module, "_MOST_NEIGHBORS", 4)
    found = near_pairs(hashes)
    assert set(found.ravel().tolist()) == set(range(50))
    assert len(found) <= 50 * 4 * 2


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_hashes_have_no_pairs(count):
    assert near_pairs(random_hashes(2, 0)[:count]).shape == (0, 2)


def test_the_hash_of_a_mirrored_picture_follows_from_that_of_the_picture(faces):
    usual = usual_frequencies(np.array([frequencies(face) for face in faces]))
    for face in faces:
        own = picture_hash(frequencies(face), usual)
        mirror = picture_hash(frequencies(np.ascontiguousarray(face[:, ::-1])), usual)
        assert bits_apart(mirrored(own), mirror) <= 2


def test_bits_apart_is_counted_right():
    hashes = random_hashes(30, 5)
    for a, b in itertools.pairwise(hashes):
        assert bits_apart(a, b) == bit_by_bit(a, b)


def test_the_same_picture_is_near_and_other_pictures_are_not(faces):
    shift = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    copies = [
        lambda x: cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1),
        lambda x: cv2.convertScaleAbs(x, alpha=0.85, beta=5),
        lambda x: cv2.GaussianBlur(x, (0, 0), 1.2),
        lambda x: cv2.warpAffine(x, shift, (112, 112), borderMode=cv2.BORDER_REPLICATE),
        lambda x: np.ascontiguousarray(x[:, ::-1]),
    ]
    both = faces + [copies[i % len(copies)](face) for i, face in enumerate(faces)]
    found = near_pairs(hashes_of(both)).tolist()
    assert found == [[i, i + len(faces)] for i in range(len(faces))]
    for i, j in found:
        assert likeness(both[i], both[j]) >= LEAST_LIKENESS
    others = [likeness(a, b) for a, b in itertools.combinations(faces, 2)]
    assert max(others) < LEAST_LIKENESS


def test_likeness_of_flat_pictures_is_a_number():
    flat = np.full((112, 112, 3), 90, np.uint8)
    assert likeness(flat, flat) == 0
    assert frequencies(flat).tolist() == [0] * 256
