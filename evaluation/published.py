"""The published results of the paper's models, and how measured ones compare with them.

Source: the tables of the official AdaFace repository (accuracy, TAR at FAR 1e-4, rank-1 and rank-5, percent).
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

_SETS = ("lfw", "cfp_fp", "cplfw", "calfw", "agedb_30", "ijbb", "ijbc")
RANK_1, RANK_5 = "tinyface rank-1", "tinyface rank-5"
_ROUNDING = 0.005  # of the published figures


@dataclass(frozen=True)
class PublishedModel:
    """A model of the paper.

    Attributes:
        arch: backbone.
        data: training set.
        file: name of the published checkpoint.
        numbers: percent, by set: mean 10-fold accuracy, of ``ijbb`` and ``ijbc`` the TAR at FAR 1e-4, of TinyFace two
            ranks.
    """

    arch: str
    data: str
    file: str
    numbers: Mapping[str, float]

    @property
    def name(self) -> str:
        """Architecture and training set."""
        return f"{self.arch} {self.data}"


def _model(arch: str, data: str, file: str, figures: str, tinyface: str = "") -> PublishedModel:
    numbers = dict(zip(_SETS, map(float, figures.split()), strict=False))
    numbers |= dict(zip((RANK_1, RANK_5), map(float, tinyface.split()), strict=False))
    return PublishedModel(arch, data, file, numbers)


PUBLISHED = (
    _model("ir_18", "CASIA-WebFace", "adaface_ir18_casia.ckpt", "99.13 92.59 87.00 92.65 92.72"),
    _model("ir_18", "VGGFace2", "adaface_ir18_vgg2.ckpt", "99.47 97.13 91.72 93.90 94.07 90.67 92.95"),
    _model("ir_18", "WebFace4M", "adaface_ir18_webface4m.ckpt", "99.53 97.26 92.28 95.52 96.47 93.03 94.99"),
    _model("ir_50", "CASIA-WebFace", "adaface_ir50_casia.ckpt", "99.42 96.41 89.97 93.23 94.38"),
    _model("ir_50", "MS1MV2", "adaface_ir50_ms1mv2.ckpt", "99.82 97.86 92.83 96.07 97.85 94.82 96.27"),
    _model("ir_50", "WebFace4M", "adaface_ir50_webface4m.ckpt", "99.78 98.97 94.17 95.98 97.78 95.44 96.98"),
    _model(
        "ir_101", "MS1MV2", "adaface_ir101_ms1mv2.ckpt", "99.82 98.49 93.53 96.08 98.05 95.67 96.89", "68.21 71.54"
    ),
    _model("ir_101", "MS1MV3", "adaface_ir101_ms1mv3.ckpt", "99.78 98.91 93.93 96.02 98.17 95.84 97.09"),
    _model(
        "ir_101", "WebFace4M", "adaface_ir101_webface4m.ckpt", "99.80 99.17 94.63 96.05 97.90 96.03 97.39",
        "72.02 74.52",
    ),
    _model(
        "ir_101", "WebFace12M", "adaface_ir101_webface12m.ckpt", "99.82 99.26 94.57 96.12 98.00 96.41 97.66",
        "72.29 74.97",
    ),
)  # fmt: skip


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
    close = difflib.get_close_matches(name.lower(), by_name, n=1)
    hint = f"; did you mean {by_name[close[0]].name!r}?" if close else ""
    known = ", ".join(repr(model.name) for model in PUBLISHED if not arch or name or model.arch == arch)
    got = f"--published {name!r} is not in the table" if name else f"{file} is not the name of a published checkpoint"
    raise ValueError(f"{got}{hint}: give --published with the row to compare with: {known or 'none of this arch'}")


def compare(model: PublishedModel, measured: Mapping[str, Measurement]) -> list[Comparison]:
    """Put the published numbers of a model beside the measured ones.

    Args:
        model: of the table.
        measured: by set, as in ``PublishedModel.numbers``.
    """
    return [Comparison(what, value, measured.get(what)) for what, value in model.numbers.items()]


def comparison_table(model: PublishedModel, comparisons: list[Comparison]) -> str:
    """Lay out comparisons as text."""
    lines = [
        f"published results of {model.name}, percent",
        f"{'':<16}{'published':>10}{'measured':>10}{'difference':>12}  95 % interval",
    ]
    for row in comparisons:
        head = f"{row.what:<16}{row.published:>10.2f}"
        if row.measured is None:
            lines.append(f"{head}{'-':>10}              not checked: its data was not found")
            continue
        got = row.measured
        verdict = {True: "", False: "  OUTSIDE", None: ""}[row.inside]
        interval = "  none" if math.isnan(got.low) else f"  {got.low:.2f} to {got.high:.2f}{verdict}"
        lines.append(f"{head}{got.value:>10.2f}{got.value - row.published:>+12.2f}{interval}")
    return "\n".join(lines)
