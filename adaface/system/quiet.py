"""Suppress what libraries print although the commands report it: warnings about damaged images, errors of threads."""

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2

_ERROR_OUTPUT = 2


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Suppress warnings of Pillow and OpenCV about damaged metadata, large images and truncated files."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        cv2.utils.logging.setLogLevel(level)


@contextlib.contextmanager
def quiet_event_writer() -> Iterator[None]:
    """Suppress the traceback of TensorBoard's thread if it cannot write: the next logged number raises its error."""
    told = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError) or not type(args.thread).__module__.startswith("tensorboard."):
            told(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = told


@contextlib.contextmanager
def quiet_error_output() -> Iterator[None]:
    """Suppress what C libraries such as libjpeg write to stderr; what Python writes to `sys.stderr` is kept."""
    python = sys.stderr
    python.flush()
    with contextlib.ExitStack() as undo:
        kept = os.dup(_ERROR_OUTPUT)
        undo.callback(os.close, kept)
        undo.callback(os.dup2, kept, _ERROR_OUTPUT)
        nowhere = undo.enter_context(Path(os.devnull).open("wb"))
        os.dup2(nowhere.fileno(), _ERROR_OUTPUT)
        if _is_error_output(python):
            through = os.fdopen(os.dup(kept), "w", 1, encoding=python.encoding, errors="backslashreplace")
            sys.stderr = undo.enter_context(through)
            undo.callback(setattr, sys, "stderr", python)
        yield


def _is_error_output(stream: object) -> bool:
    try:
        return stream.fileno() == _ERROR_OUTPUT  # type: ignore[attr-defined]
    except (AttributeError, OSError, io.UnsupportedOperation):
        return False  # replaced, as by pytest
