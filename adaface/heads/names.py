"""The margins by name, with the options of their papers: what the command line needs to know, without PyTorch."""

from collections.abc import Mapping
from typing import NamedTuple


class Margin(NamedTuple):
    """A margin as the command line shows it.

    Attributes:
        text: one line on what it does, and where it is from.
        options: its options, with the values of its paper.
    """

    text: str
    options: Mapping[str, float]


MARGINS: dict[str, Margin] = {
    "adaface": Margin(
        "Quality-adaptive margin: emphasizes easy samples at low feature norms, hard samples at high ones.",
        {"m": 0.4, "h": 0.333, "t_alpha": 0.01},
    ),
    "arcface": Margin(
        "Additive angular margin: s cos(theta + m). Paper: m 0.5, s 64.",
        {"m": 0.5},
    ),
    "cosface": Margin(
        "Additive cosine margin: s (cos theta - m). Paper: m 0.35 or 0.4, s 64.",
        {"m": 0.35},
    ),
    "magface": Margin(
        "Angular margin that grows with the feature norm, and a regularizer that increases the norm.",
        {"l_margin": 0.45, "u_margin": 0.8, "l_a": 10.0, "u_a": 110.0, "lambda_g": 35.0},
    ),
    "curricularface": Margin(
        "ArcFace's margin, with hard negatives weighted more as training progresses. Paper: m 0.5, t_alpha 0.01, s 64.",
        {"m": 0.5, "t_alpha": 0.01},
    ),
    "subcenter_arcface": Margin(
        "ArcFace with several centers per class, for noisy labels. Paper: m 0.5, 3 centers, s 64.",
        {"m": 0.5, "sub_centers": 3},
    ),
    "combined": Margin(
        "Multiplicative and both additive margins: s (cos(m1 theta + m2) - m3). Paper: 1, 0.3, 0.2, s 64 (ArcFace, eq. "
        "4).",
        {"m1": 1.0, "m2": 0.3, "m3": 0.2},
    ),
}
MOST_CENTERS = 255  # per class: the index of the nearest one is kept in 8 bits
