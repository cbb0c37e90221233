"""Compare measured results with the published ones of the paper's models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adaface.checkpoints.published import PUBLISHED, PublishedModel
from adaface.system.command_line import nearest
from adaface.system.text_table import aligned

_ROUNDING = 0.005  # of the published figures


@dataclass(frozen=True)
class Measurement:
    """A measured number in percent, with the ends of its 95 % interval; NaN without one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A published number and the measured one.

    Attributes:
        what: name of the data set.
        published: published number in percent.
        measured: measured number; None if the data was not found.
    """

    what: str
    published: float
    measured: Measurement | None

    @property
    def inside(self) -> bool | None:
        """Whether the measured number's interval contains the published one; None without a measured one."""
        if self.measured is None or math.isnan(self.measured.low):
            return None
        return self.measured.low - _ROUNDING <= self.published <= self.measured.high + _ROUNDING


def find_published(name: str, *, arch: str = "", file: str = "") -> PublishedModel:
    """Return the published model of a name or of a file name.

    Args:
        name: such as ``ir_50 MS1MV2``; if empty, the file name is used.
        arch: architecture of the evaluated model, for the message.
        file: file name of the evaluated model.

    Raises:
        ValueError: there is no such model; the message lists the names.
    """
    by_name = {model.name.lower(): model for model in PUBLISHED}
    if name:
        if name.lower() in by_name:
            return by_name[name.lower()]
    else:
        of_file = [model for model in PUBLISHED if model.file == file]
        if of_file:
            return of_file[0]
    known = ", ".join(repr(model.name) for model in PUBLISHED if not arch or name or model.arch == arch)
    problem = f"--published {name!r} is not in the table" if name else f"{file} is not a published checkpoint's name"
    hint = nearest(
        repr(name) if name else "",
        (f"{model.name!r}" for model in PUBLISHED),
        always=f"set --published to the row to compare with: {known}"
        if known
        else f"no model of {arch} is published: evaluate it with the protocols pairs, ijbb, ijbc and tinyface",
    )
    raise ValueError(f"{problem}: {hint}")


def compare(model: PublishedModel, measured: Mapping[str, Measurement]) -> list[Comparison]:
    """Match the published numbers of a model with the measured ones.

    Args:
        model: published model.
        measured: measured numbers by data set, with the names of ``PublishedModel.numbers``.
    """
    return [Comparison(what, value, measured.get(what)) for what, value in model.numbers.items()]


def comparison_table(model: PublishedModel, comparisons: list[Comparison]) -> str:
    """Format comparisons as a text table."""
    rows = [["", "published", "measured", "difference", "95 % interval"]]
    for row in comparisons:
        if row.measured is None:
            rows.append([row.what, f"{row.published:.2f}", "-", "", "not checked: data not found"])
            continue
        measured = row.measured
        verdict = {True: "", False: "  OUTSIDE", None: ""}[row.inside]
        interval = "none" if math.isnan(measured.low) else f"{measured.low:.2f} to {measured.high:.2f}{verdict}"
        difference = f"{measured.value - row.published:+.2f}"
        rows.append([row.what, f"{row.published:.2f}", f"{measured.value:.2f}", difference, interval])
    return "\n".join([f"published results of {model.name}, percent", *aligned(rows, "<>>><")])
