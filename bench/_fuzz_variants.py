"""What the targets of `bench/fuzz.py` share."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from bench._fuzz_mutations import Mutation


class HangError(BaseException):
    """The time of a case is over."""


class WrongResultError(AssertionError):
    """A reader returned something that is not in the file."""


@dataclass(frozen=True)
class Variant:
    """A valid file and its reader.

    Attributes:
        content: the valid file.
        read: writes a damaged copy and calls the reader on it; raises ``WrongResultError`` if the result is wrong.
        mutations: those that know the format.
        weight: how often it is chosen, relative to the other variants of the target.
    """

    content: bytes
    read: Callable[[bytes], None]
    mutations: tuple[Mutation, ...] = ()
    weight: int = 1


def require(condition: object, what: str) -> None:
    """Raise WrongResultError unless a condition holds."""
    if not condition:
        raise WrongResultError(what)


@contextlib.contextmanager
def said() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings; a command shows each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def face(shade: int) -> np.ndarray:
    """Return a picture of 112x112 that compresses to less than a kilobyte."""
    image = np.full((112, 112, 3), (shade, 128, 255 - shade), np.uint8)
    image[40:60, 30:80] = (20, shade, 90)
    return image


def encoded(extension: str, image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(extension, image, options)[1].tobytes()


def in_first(size: int, change: Mutation) -> Mutation:
    """Return a mutation of the first bytes alone."""
    return lambda rng, data: change(rng, data[:size]) + data[size:]
