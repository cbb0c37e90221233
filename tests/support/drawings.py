"""Trainings without the plots and the report, which take longer to draw than a small run to train."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from adaface.commands import train

_NAMES = ("plot_loss", "plot_health", "plot_roc", "plot_similarity_histograms", "write_run_report")


@contextmanager
def undrawn() -> Iterator[None]:
    """Draw nothing at the end of the trainings of this process."""
    with ExitStack() as patches:
        for name in _NAMES:
            patches.enter_context(mock.patch.object(train, name, lambda *_, **__: None))
        yield
