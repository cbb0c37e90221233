"""Silence for libjpeg, which writes a line to the error output, without a name, each time it meets a damaged image."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_ERROR_OUTPUT = 2


@contextlib.contextmanager
def quiet_decoder() -> Iterator[None]:
    """Drop what libraries write to the error output; what Python writes to `sys.stderr` still comes through."""
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
        return False  # a test's
