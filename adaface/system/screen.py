"""Log lines on the screen: the handler that the commands set up for the logger ``adaface``.

Library modules log to ``logging.getLogger(__name__)`` and do not print. Without a command, a program that uses the
library sees warnings and errors on stderr, as from any logger without a handler, and its own logging configuration
applies. During a command, handlers that the program gave to the root logger get the records too, except those that
write to the screen.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator

_LIBRARY = "adaface"


class _Screen(logging.Handler):
    """Writes messages without level or time to stdout, those from a level on to stderr.

    The streams are looked up for each line, since tests and notebooks replace them. An error of a stream is raised,
    where ``logging.StreamHandler`` would print it and go on: a full disk, or a reader that is gone, ends a command.
    """

    def __init__(self, errors_from: int) -> None:
        super().__init__(logging.INFO)
        self._errors_from = errors_from

    def handle(self, record: logging.LogRecord) -> bool:
        """Write without the handler's lock: a blocked stdout must not block what another thread writes to stderr."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, and flush it."""
        stream = sys.stderr if record.levelno >= self._errors_from else sys.stdout
        if stream is None:  # Python without a console
            return
        encoding = stream.encoding or "utf-8"
        line = f"{self.format(record)}\n".encode(encoding, "backslashreplace")  # file names need not be text
        stream.write(line.decode(encoding))
        stream.flush()


class _OtherHandlers(logging.Handler):
    """Passes records on to the handlers of the root logger, except those that would show a line on the screen again.

    A program that has configured logging, such as a notebook with a log file, gets what a command logs.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        for handler in logging.getLogger().handlers:
            if record.levelno >= handler.level and not _is_on_screen(handler):
                handler.handle(record)


def _is_on_screen(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)  # Rich's
    return stream is not None and any(stream is one for one in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__))


@contextlib.contextmanager
def log_to_screen(errors_from: int = logging.WARNING) -> Iterator[None]:
    """Show what the library logs from level INFO on, during a block; inside another such block, in place of that one.

    Args:
        errors_from: messages from this level on go to stderr, those below to stdout.
    """
    logger = logging.getLogger(_LIBRARY)
    level, propagate = logger.level, logger.propagate
    outer = [handler for handler in logger.handlers if isinstance(handler, _Screen)]
    added: list[logging.Handler] = [_Screen(errors_from)]
    if propagate:  # else the program does not want it, or an outer block does it
        added.append(_OtherHandlers(logger.getEffectiveLevel()))
    for handler in outer:
        logger.removeHandler(handler)
    for new in added:
        logger.addHandler(new)
    logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.setLevel(level)
        for new in added:
            logger.removeHandler(new)
        for handler in outer:
            logger.addHandler(handler)
