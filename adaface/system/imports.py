"""Imports of a command: they stay in memory to its end, and the garbage collector need not look at them."""

import contextlib
import gc
from collections.abc import Iterator

from adaface.system import interrupt


@contextlib.contextmanager
def imported_for_good() -> Iterator[None]:
    """Import without garbage collections, and leave out of later ones what exists at the end of the block.

    PyTorch and Lightning create a million objects that live as long as the process. The collector would walk all of
    them again and again while they are imported, at each full collection, and at exit. Does nothing in a process that
    is not a command's own, whose objects are not ours to keep.
    """
    if not interrupt.is_process_of_command():
        yield
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
