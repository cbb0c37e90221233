"""The margins, under the official import path: ``from head import build_head``.

The code is in ``adaface/heads/``: the margins in ``margins.py``, what they share in ``base.py``.
"""

from margin_head import Head as Head
from margins import HEADS as HEADS
from margins import AdaFace as AdaFace
from margins import ArcFace as ArcFace
from margins import CombinedMargin as CombinedMargin
from margins import CosFace as CosFace
from margins import CurricularFace as CurricularFace
from margins import MagFace as MagFace
from margins import SubCenterArcFace as SubCenterArcFace
from margins import build_head as build_head
