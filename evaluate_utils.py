"""Verification metrics, under the official import path: ``from evaluate_utils import evaluate``.

The code is in ``adaface/metrics/verification.py``.
"""

from adaface.metrics.verification import auc as auc
from adaface.metrics.verification import best_accuracy as best_accuracy
from adaface.metrics.verification import eer as eer
from adaface.metrics.verification import evaluate as evaluate
from adaface.metrics.verification import fold_decisions as fold_decisions
from adaface.metrics.verification import fuse_flip as fuse_flip
from adaface.metrics.verification import pair_similarities as pair_similarities
from adaface.metrics.verification import roc as roc
from adaface.metrics.verification import tar_at_far as tar_at_far
