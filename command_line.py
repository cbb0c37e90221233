"""What the command lines have in common: how they are parsed, how they end."""

import argparse
import contextlib
import difflib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

FAILED = 2
INTERRUPTED = 130
EXPECTED_ERRORS = (ValueError, FileNotFoundError, RuntimeError, OSError)  # told in a line, without a traceback


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and names the nearest option to a misspelt one.

    Args:
        options: as of ``argparse.ArgumentParser``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the program, so that there is one way to report errors."""
        raise ValueError(f"{message} (python {self.prog.removeprefix('python ')} --help lists the options)")

    def parse(self, words: list[str]) -> argparse.Namespace:
        """Parse all words; unknown ones are an error."""
        options, unknown = self.parse_known_args(words)
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], names, n=1)
            self.error(f"unknown option {unknown[0]}" + (f"; did you mean {near[0]}?" if near else ""))
        return options


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, until something else takes the signals."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
