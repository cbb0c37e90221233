"""How measured results compare with the published ones of the paper's models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adaface.checkpoints.published import PUBLISHED, PublishedModel
from adaface.system.command_line import nearest
from adaface.system.text_table import aligned

_ROUNDING = 0.005  # of the published figures


@dataclass(frozen=True)
class Measurement:
    """A measured number, percent, and the ends of its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A published number beside a measured one.

    Attributes:
        what: the set.
        published: percent.
        measured: None where the data was not there.
    """

    what: str
    published: float
    measured: Measurement | None

    @property
    def inside(self) -> bool | None:
        """Whether the measured number's interval holds the published one; None where nothing was measured."""
        if self.measured is None or math.isnan(self.measured.low):
            return None
        return self.measured.low - _ROUNDING <= self.published <= self.measured.high + _ROUNDING


def find_published(name: str, *, arch: str = "", file: str = "") -> PublishedModel:
    """Return the published model that a name, or the name of its file, stands for.

    Args:
        name: such as ``ir_50 MS1MV2``; where empty, the file's name decides.
        arch: of the model that is evaluated, for the message.
        file: name of its file.

    Raises:
        ValueError: none; the names are listed.
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
    got = f"--published {name!r} is not in the table" if name else f"{file} is not the name of a published checkpoint"
    hint = nearest(
        repr(name) if name else "",
        (f"{model.name!r}" for model in PUBLISHED),
        always=f"give --published with the row to compare with: {known or 'none of this arch'}",
    )
    raise ValueError(f"{got}: {hint}")


def compare(model: PublishedModel, measured: Mapping[str, Measurement]) -> list[Comparison]:
    """Put the published numbers of a model beside the measured ones.

    Args:
        model: of the table.
        measured: by set, as in ``PublishedModel.numbers``.
    """
    return [Comparison(what, value, measured.get(what)) for what, value in model.numbers.items()]


def comparison_table(model: PublishedModel, comparisons: list[Comparison]) -> str:
    """Lay out comparisons as text."""
    rows = [["", "published", "measured", "difference", "95 % interval"]]
    for row in comparisons:
        if row.measured is None:
            rows.append([row.what, f"{row.published:.2f}", "-", "", "not checked: its data was not found"])
            continue
        got = row.measured
        verdict = {True: "", False: "  OUTSIDE", None: ""}[row.inside]
        interval = "none" if math.isnan(got.low) else f"{got.low:.2f} to {got.high:.2f}{verdict}"
        difference = f"{got.value - row.published:+.2f}"
        rows.append([row.what, f"{row.published:.2f}", f"{got.value:.2f}", difference, interval])
    return "\n".join([f"published results of {model.name}, percent", *aligned(rows, "<>>><")])
