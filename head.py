"""The margins, under the official import path: ``from head import build_head``.

The code is in ``adaface/heads/``: the margins in ``heads/margins.py``, what they share in ``base.py``.
"""

from adaface.heads.base import Head as Head
from adaface.heads.margins import HEADS as HEADS
from adaface.heads.margins import AdaFace as AdaFace
from adaface.heads.margins import ArcFace as ArcFace
from adaface.heads.margins import CombinedMargin as CombinedMargin
from adaface.heads.margins import CosFace as CosFace
from adaface.heads.margins import CurricularFace as CurricularFace
from adaface.heads.margins import MagFace as MagFace
from adaface.heads.margins import SubCenterArcFace as SubCenterArcFace
from adaface.heads.margins import build_head as build_head
