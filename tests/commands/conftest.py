"""Fixtures that tests of several commands use."""

from collections.abc import Iterator

import pytest

from tests.support import drawings


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Spare the plots and the report of runs of which nobody looks at them."""
    with drawings.undrawn():
        yield
